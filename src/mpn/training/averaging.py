"""The exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class AveragedWeights:
    """Averages every floating-point tensor of a state dict; counters are copied.

    Args:
        network: Whose weights.
        decay: Of the average, below 1. The first steps have less: a young average would be
            dominated by the random start.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self.state = {k: v.detach().clone() for k, v in network.state_dict().items()}

    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after ``step`` steps."""
        decay = min(self._decay, (1 + step) / (10 + step))
        current = network.state_dict()
        pairs = [(average, current[key]) for key, average in self.state.items()]
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_([a for a, _ in floats], [v for _, v in floats], 1 - decay)
            for average, value in pairs:
                if not value.is_floating_point():
                    average.copy_(value)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved average."""
        for key, average in self.state.items():
            average.copy_(state[key])

    def on_cpu(self) -> dict[str, Tensor]:
        """The average, on the CPU, contiguous."""
        return {k: v.cpu() for k, v in self.state.items()}
