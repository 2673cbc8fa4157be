"""Largest activations of a network, to check that they fit half precision.

onnxruntime's CPU backend computes half graphs in float32 between casts. So a run there may not show
an overflow that a GPU would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpn.engines.spec import Role
from mpn.errors import ExportError
from mpn.export.precision import HALF_MAX


@dataclass(frozen=True)
class ActivationPeak:
    """Largest magnitude among the outputs of a network's modules.

    Attributes:
        layer: Name of the module.
        magnitude: The value; infinite if any value was NaN.
    """

    layer: str
    magnitude: float


def activation_peak(graph: nn.Module, inputs: Sequence[Tensor]) -> ActivationPeak:
    """Run a float32 network and find its largest activation.

    Args:
        graph: A module of :mod:`mpn.export.deploy`; its own float32 output is not included.
        inputs: Its inputs.
    """
    peak = ActivationPeak("none", 0.0)
    network = graph.get_submodule("network")
    float32_layers = set(getattr(network, "float32_layers", ()))
    kept_float32: list[Tensor] = []

    def hook(name: str) -> Any:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal peak
            for tensor in output if isinstance(output, tuple | list) else (output,):
                if name in float32_layers:
                    kept_float32.append(tensor)
                if any(tensor is kept for kept in kept_float32):
                    continue  # output of such a layer, or of a member network that ends with one
                largest = tensor.abs().max().item()
                largest = float("inf") if largest != largest else largest
                if largest > peak.magnitude:
                    peak = ActivationPeak(name, largest)

        return record

    handles = [
        module.register_forward_hook(hook(name)) for name, module in network.named_modules() if name
    ]
    try:
        with torch.inference_mode():
            graph(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return peak


def check_activation_peak(role: Role, peak: ActivationPeak) -> None:
    """Raise ExportError if an activation does not fit half precision."""
    if peak.magnitude > HALF_MAX:
        raise ExportError(
            f"the {role} network does not fit fp16: activations of '{peak.layer}' reach "
            f"{peak.magnitude:.3g}, half precision ends at {HALF_MAX:g}: "
            "export with --precision fp32"
        )
