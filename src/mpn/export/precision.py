"""Half precision made in the module, and the ledger of what really became half in the graph.

TensorRT 11 has no FP16 switch: it does what the graph says. Exporting a halved module with float32
edges is the one form that both onnxruntime and NVIDIA's parser take; graph converters fail there.

What stays float32, and why (models.md 7.3):

* everything the flow network computes in pixels (mean colour, channel norms, scaling, upsampling,
  grid and GridSample): its own code keeps that, whatever the dtype of its layers;
* the last layer of each flow member: half steps by 0.5 px above 512 px;
* the global average pool of DeepLab: a mean of a thousand values accumulates in float32;
* its last 1x1 layer, so that logits are interpolated and enter the softmax unrounded;
* softmax and sigmoid: :mod:`mpn.export.tracing`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from mpn.engines.spec import Precision, Role
from mpn.errors import ExportError
from mpn.networks.osvos import OsvosVgg, rescale_trunk

HALF_MAX = 65504.0
"""Largest finite half-precision number."""

_FLOAT32_LAYERS: dict[Role, tuple[str, ...]] = {"propagation": ("decoder.last_conv.8",)}
_WEIGHT_OPERATORS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
_SHOWN = 3


@dataclass(frozen=True)
class PreparedNetwork:
    """A network made ready for its graph.

    Attributes:
        network: The copy to trace: BatchNorm folded, rescaled and halved where fp16 is asked for.
        float32_layers: Layers that keep float32 weights although fp16 is asked for.
        underflows: Weights that are not 0 and become 0 in half precision.
    """

    network: nn.Module
    float32_layers: tuple[str, ...] = ()
    underflows: int = 0


@dataclass(frozen=True)
class PrecisionLedger:
    """How many convolution and matmul weight tensors of a graph are half.

    Attributes:
        half_weights: How many are half ...
        total_weights: ... of how many.
        float32_names: The others, by name.
    """

    half_weights: int
    total_weights: int
    float32_names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.half_weights}/{self.total_weights}"


def prepare_network(
    role: Role, network: nn.Module, precision: Precision, probe: Sequence[Tensor]
) -> PreparedNetwork:
    """A copy of ``network`` with BatchNorm folded into the convolutions, in the precision asked.

    Args:
        role: What the network is.
        network: In evaluation mode; it is not changed.
        precision: ``"fp16"`` halves all layers but those of the module's docstring.
        probe: Inputs of the network of any size it takes, to see which layer feeds which.

    Raises:
        ExportError: If a weight is not finite, or beyond what half precision holds.
    """
    if precision == "fp32":
        return PreparedNetwork(folded_network(role, network, probe))
    prepared = folded_network(role, network, probe, for_half=True)
    underflows = check_half_range(role, prepared)
    float32_layers = getattr(prepared, "float32_layers", _FLOAT32_LAYERS.get(role, ()))
    halve(prepared, float32_layers)
    return PreparedNetwork(prepared, tuple(float32_layers), underflows)


def folded_network(
    role: Role, network: nn.Module, probe: Sequence[Tensor], *, for_half: bool = False
) -> nn.Module:
    """A float32 copy of ``network``, without BatchNorm, its activations brought into half's range.

    Args:
        role: What the network is.
        network: In evaluation mode; it is not changed.
        probe: As for :func:`prepare_network`.
        for_half: Rescale the trunk of OSVOS.

    Raises:
        ExportError: If a weight is not finite.
    """
    folded = copy.deepcopy(network).eval().requires_grad_(False)
    fold_batch_norms(folded, probe)
    check_finite_weights(role, folded)
    # Nothing normalises on the way through VGG16, and it sees 0..255.
    return rescale_trunk(folded) if for_half and isinstance(folded, OsvosVgg) else folded


def fold_batch_norms(network: nn.Module, probe: Sequence[Tensor]) -> int:
    """Fold every BatchNorm that reads a convolution's output into that convolution, in place.

    Folded here, in float64, rather than by the exporter: it would fold halved statistics, and a
    variance of 1e-8 is 0 in half precision. Names of the convolutions stay.

    Args:
        network: In evaluation mode.
        probe: Inputs that make every layer run once.

    Returns:
        How many were folded.

    Raises:
        ExportError: If a BatchNorm does not read a convolution's output.
    """
    norms = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    if not norms:
        return 0
    made_by: dict[int, nn.Conv2d] = {}
    kept: list[Tensor] = []  # alive while the probe runs: an id is unique among living objects only
    pairs: dict[str, nn.Conv2d] = {}

    def remember(conv: nn.Conv2d) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            kept.append(output)
            made_by[id(output)] = conv

        return keep

    def pair(name: str) -> Any:
        def look(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if id(inputs[0]) in made_by:
                pairs[name] = made_by[id(inputs[0])]

        return look

    handles = [norm.register_forward_pre_hook(pair(name)) for name, norm in norms]
    handles += [
        module.register_forward_hook(remember(module))
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        with torch.inference_mode():
            network(*probe)
    finally:
        for handle in handles:
            handle.remove()
    for name, norm in norms:
        if name not in pairs:
            raise ExportError(
                f"BatchNorm '{name}' does not follow a convolution and cannot be folded into one: "
                "export a network of the classes in mpn.networks"
            )
        _fold(pairs[name], norm)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())
    return len(norms)


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ExportError("a BatchNorm without running statistics cannot be exported: train it")
    gain = norm.weight.double() / torch.sqrt(variance.double() + norm.eps)
    bias = torch.zeros_like(mean) if conv.bias is None else conv.bias
    folded_bias = norm.bias.double() + (bias.double() - mean.double()) * gain
    conv.weight.copy_(conv.weight.double() * gain[:, None, None, None])
    conv.bias = nn.Parameter(folded_bias.to(conv.weight.dtype), requires_grad=False)


def check_finite_weights(role: Role, network: nn.Module) -> None:
    """Raise ExportError if any weight is NaN or infinite."""
    broken = [name for name, value in network.named_parameters() if not value.isfinite().all()]
    if broken:
        raise ExportError(
            f"the {role} network holds {len(broken)} tensors with NaN or infinity ("
            f"{_shortened(broken)}): the training run diverged, take an earlier checkpoint"
        )


def check_half_range(role: Role, network: nn.Module) -> int:
    """Check that every weight fits half precision, as it is after folding and rescaling.

    Returns:
        How many weights are not 0 and become 0 in half precision (under 3e-8).

    Raises:
        ExportError: If one is beyond 65504.
    """
    too_large: list[str] = []
    underflows = 0
    for name, value in network.named_parameters():
        largest = value.abs().max().item() if value.numel() else 0.0
        if largest > HALF_MAX:
            too_large.append(f"{name} up to {largest:.3g}")
        underflows += int(torch.count_nonzero((value != 0) & (value.half() == 0)))
    if too_large:
        raise ExportError(
            f"the {role} network does not fit fp16: {len(too_large)} tensors are beyond "
            f"{HALF_MAX:g} after folding BatchNorm ({_shortened(too_large)}): "
            "export with --precision fp32"
        )
    return underflows


def halve(network: nn.Module, float32_layers: Sequence[str]) -> None:
    """Make all layers half but those named and the global average pools, in place.

    Inputs of the layers that stay float32 are cast by hooks, so that no name changes.
    """
    network.half()
    for name in float32_layers:
        network.get_submodule(name).float().register_forward_pre_hook(_inputs_to_float32)
    for module in network.modules():
        if isinstance(module, nn.AdaptiveAvgPool2d):
            module.register_forward_pre_hook(_inputs_to_float32)
            module.register_forward_hook(_output_to_half)


def _inputs_to_float32(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.float() for value in inputs)


def _output_to_half(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output.half()


def ledger_from_graph(path: Path) -> PrecisionLedger:
    """Count the weight tensors of convolutions and matrix products in a written graph.

    Args:
        path: The ``.onnx`` file; its external data is not read.
    """
    graph = onnx.load(path, load_external_data=False).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    weights = {
        name
        for node in graph.node
        if node.op_type in _WEIGHT_OPERATORS
        for name in node.input[:2]
        if name in types
    }
    half = {name for name in weights if types[name] == onnx.TensorProto.FLOAT16}
    return PrecisionLedger(len(half), len(weights), tuple(sorted(weights - half)))


def check_ledger(
    role: Role, ledger: PrecisionLedger, precision: Precision, float32_layers: Sequence[str]
) -> None:
    """Check that the graph has the precision asked for.

    Raises:
        ExportError: If fp16 was asked for and other layers than ``float32_layers`` are float32, or
            fp32 and some are half.
    """
    if precision == "fp32":
        if ledger.half_weights:
            raise ExportError(f"{role}: fp32 was asked for, but {ledger} weight tensors are half")
        return
    allowed = {f"{layer}.weight" for layer in float32_layers}
    surplus = [name for name in ledger.float32_names if name not in allowed]
    if surplus or not ledger.half_weights:
        raise ExportError(
            f"{role}: fp16 was asked for, but only {ledger} weight tensors became half (float32: "
            f"{_shortened(surplus)}): this is a fault of the exporter, use --precision fp32"
        )


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


@dataclass(frozen=True)
class ActivationPeak:
    """The largest magnitude that any module of a network put out.

    Attributes:
        layer: Its name.
        magnitude: The value; infinite where anything was NaN.
    """

    layer: str
    magnitude: float


def activation_peak(graph: nn.Module, inputs: Sequence[Tensor]) -> ActivationPeak:
    """Run a float32 network and find the largest activation among the modules inside it.

    Args:
        graph: A module of :mod:`mpn.export.tracing`; its own float32 output does not count.
        inputs: Its inputs.
    """
    peak = ActivationPeak("none", 0.0)
    network = graph.get_submodule("network")
    float32_layers = set(getattr(network, "float32_layers", ()))
    kept_float32: list[Tensor] = []

    def watch(name: str) -> Any:
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal peak
            for tensor in output if isinstance(output, tuple | list) else (output,):
                if name in float32_layers:
                    kept_float32.append(tensor)
                if any(tensor is kept for kept in kept_float32):
                    continue  # of such a layer, or of a member network that ends with one
                largest = tensor.abs().max().item()
                largest = float("inf") if largest != largest else largest
                if largest > peak.magnitude:
                    peak = ActivationPeak(name, largest)

        return look

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in network.named_modules()
        if name
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
