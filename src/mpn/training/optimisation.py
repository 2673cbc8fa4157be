"""Mixed precision: convolutions in half, weights and losses in float32."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from mpn.errors import TrainingError
from mpn.training.options import Precision
from mpn.training.processes import Processes

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class MixedPrecision:
    """Autocast and, for float16, a scaled loss.

    Args:
        precision: See :class:`mpn.training.options.LoopOptions`.
        device: Device of the network.

    Raises:
        TrainingError: If the device does not support the precision.
    """

    def __init__(self, precision: Precision, device: torch.device) -> None:
        self.precision = chosen_precision(precision, device)
        self._device = device
        self._scaler = torch.amp.GradScaler(
            device.type, enabled=self.precision == "float16" and device.type == "cuda"
        )

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the autocast context of the forward pass."""
        dtype = _DTYPES.get(self.precision)
        return torch.autocast(self._device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def step(
        self,
        loss: Tensor,
        optimiser: torch.optim.Optimizer,
        parameters: Iterable[nn.Parameter],
        clip_norm: float,
    ) -> None:
        """Run backward, clip the gradient's norm, update.

        Gradients that overflowed are skipped.
        """
        optimiser.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(parameters, clip_norm)
        self._scaler.step(optimiser)
        self._scaler.update()

    def state(self) -> dict[str, Any]:
        """Return the state of the loss scale; empty if there is none."""
        return dict(self._scaler.state_dict())

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a state of :meth:`state`."""
        if state and self._scaler.is_enabled():
            self._scaler.load_state_dict(state)


def chosen_precision(precision: Precision, device: torch.device) -> Precision:
    """Resolve ``"auto"`` for a device.

    Raises:
        TrainingError: If the device does not support the precision.
    """
    if precision == "auto":
        if device.type != "cuda":
            return "float32"
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    if precision == "float16" and device.type != "cuda":
        raise TrainingError(
            "float16 trains on a GPU only: take bfloat16 or float32 for the CPU (--precision)"
        )
    return precision


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


def warmed_up(step: int, warmup_steps: int) -> float:
    """Compute the linear rise to 1 over the warm-up; ``step`` counts from 0."""
    return min(1.0, (step + 1) / max(1, warmup_steps))


def cosine(done: int, steps: int) -> float:
    """Compute half a cosine from 1 at 0 to 0 at ``steps``; 1 before, 0 after."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0, done) / max(1, steps))))


GROUPS_PER_PART = 2
"""Parameter groups that :func:`adamw` makes of each part."""


def adamw(*parts: Iterable[nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW with weight decay on tensors of two or more axes only.

    The learning rate is to be set before each step.

    Args:
        parts: Parameters; the parts may have different rates.
        weight_decay: The weight decay.
    """
    groups = []
    for part in parts:
        given = list(part)
        groups += [
            {"params": [p for p in given if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in given if p.ndim < 2], "weight_decay": 0.0},
        ]
    return torch.optim.AdamW(groups)


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the generator states of a network on ``device``."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(saved: Sequence[Mapping[str, Any]], processes: Processes) -> None:
    """Restore this process's generators.

    A process that was not in the saved run keeps its seed.

    Args:
        saved: :func:`random_state` of every process of the resumed run, by rank.
        processes: This process in the present run.
    """
    if processes.rank >= len(saved):
        return
    mine = saved[processes.rank]
    if mine.get("cpu") is not None:
        torch.set_rng_state(mine["cpu"])
    if mine.get("cuda") is not None and processes.device.type == "cuda":
        torch.cuda.set_rng_state(mine["cuda"], processes.device)
