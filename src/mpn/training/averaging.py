"""Exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class AveragedWeights:
    """Average of every floating-point tensor of a state dict; counters are copied.

    Args:
        network: Network with the weights.
        decay: Decay of the average, below 1. The first steps use less: otherwise the random initial
            weights would dominate a young average.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self.state = {k: v.detach().clone() for k, v in network.state_dict().items()}

    def update(self, network: nn.Module, step: int) -> None:
        """Add the weights after ``step`` steps to the average."""
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
        """Restore a saved average."""
        for key, average in self.state.items():
            average.copy_(state[key])

    def on_cpu(self) -> dict[str, Tensor]:
        """Copy the average to the CPU, contiguous."""
        return {k: v.cpu() for k, v in self.state.items()}
