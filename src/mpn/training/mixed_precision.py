"""Mixed precision: convolutions in half, weights and losses in float32."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from mpn.errors import TrainingError
from mpn.training.loop_options import Precision

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class MixedPrecision:
    """Autocast and, for float16, a scaled loss.

    Args:
        precision: See :class:`mpn.training.loop_options.LoopOptions`.
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
