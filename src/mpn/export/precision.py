"""Half precision of a network, and a count of the half weights in its graph.

TensorRT 11 has no FP16 switch: it uses the precision of the graph. A halved module with float32
inputs and outputs is the one form that both onnxruntime and NVIDIA's parser accept; graph
converters fail there.

Parts that stay float32, with reasons:

* all computations of the flow network in pixels (mean colour, channel norms, scaling, upsampling,
  grid and GridSample): its own code does that, for any dtype of its layers;
* the last layer of each flow member: half has steps of 0.5 px above 512 px;
* the global average pool of DeepLab and PSPNet: a mean of a thousand values accumulates in float32;
* the last layer of the propagation network, so that logits are interpolated and enter the softmax
  unrounded;
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
from mpn.networks.flownet2 import FlowNet2
from mpn.networks.flownet2_aligned import align_channels
from mpn.networks.osvos import OsvosVgg, rescale_trunk

HALF_MAX = 65504.0
"""Largest finite number of half precision."""

_WEIGHT_OPERATORS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
_SHOWN = 3


@dataclass(frozen=True)
class PreparedNetwork:
    """Network prepared for tracing.

    Attributes:
        network: The copy to trace: BatchNorm folded; for fp16 also rescaled and halved.
        float32_layers: Layers that keep float32 weights in fp16.
        underflows: Nonzero weights that become 0 in half precision.
    """

    network: nn.Module
    float32_layers: tuple[str, ...] = ()
    underflows: int = 0


@dataclass(frozen=True)
class PrecisionReport:
    """Count of half-precision weights among convolutions and matrix products.

    Attributes:
        half_weights: Number of weight tensors in half precision.
        total_weights: Number of weight tensors.
        float32_names: Names of the others.
    """

    half_weights: int
    total_weights: int
    float32_names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.half_weights}/{self.total_weights}"


def prepare_network(
    role: Role, network: nn.Module, precision: Precision, probe: Sequence[Tensor]
) -> PreparedNetwork:
    """Copy a network with folded BatchNorm, in the requested precision.

    FlowNet 2.0 in float32 gets other convolutions, see :func:`align_channels`.

    Args:
        role: Role of the network.
        network: In evaluation mode; it is not changed.
        precision: ``"fp16"`` halves all layers except those of the module's docstring.
        probe: Network inputs of any valid size, to find the producer of each layer's input.

    Raises:
        ExportError: If a weight is not finite, or exceeds half precision.
    """
    if precision == "fp32":
        folded = folded_network(role, network, probe)
        if isinstance(folded, FlowNet2):  # GPUs, which run half precision, have no need of it
            align_channels(folded)
        return PreparedNetwork(folded)
    prepared = folded_network(role, network, probe, for_half=True)
    underflows = check_half_range(role, prepared)
    float32_layers = getattr(prepared, "float32_layers", ())
    halve(prepared, float32_layers)
    return PreparedNetwork(prepared, tuple(float32_layers), underflows)


def folded_network(
    role: Role, network: nn.Module, probe: Sequence[Tensor], *, for_half: bool = False
) -> nn.Module:
    """Copy a network as float32 without BatchNorm.

    For half precision, activations are rescaled into its range.

    Args:
        role: Role of the network.
        network: In evaluation mode; it is not changed.
        probe: See :func:`prepare_network`.
        for_half: Rescale the trunk of OSVOS.

    Raises:
        ExportError: If a weight is not finite.
    """
    folded = copy.deepcopy(network).eval().requires_grad_(False)
    fold_batch_norms(folded, probe)
    check_finite_weights(role, folded)
    # VGG16 has no normalisation, and its input is 0..255.
    return rescale_trunk(folded) if for_half and isinstance(folded, OsvosVgg) else folded


def fold_batch_norms(network: nn.Module, probe: Sequence[Tensor]) -> int:
    """Fold each BatchNorm into the convolution before it, in place.

    This is done here, in float64, rather than by the exporter: it would fold halved statistics, and
    a variance of 1e-8 is 0 in half precision. Names of the convolutions do not change.

    Args:
        network: In evaluation mode.
        probe: Inputs that run every layer once.

    Returns:
        Number of folded layers.

    Raises:
        ExportError: If a BatchNorm does not follow a convolution.
    """
    norms = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    if not norms:
        return 0
    made_by: dict[int, nn.Conv2d] = {}
    kept: list[Tensor] = []  # keep all alive during the probe: ids of freed objects are reused
    pairs: dict[str, nn.Conv2d] = {}

    def record_output(conv: nn.Conv2d) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            kept.append(output)
            made_by[id(output)] = conv

        return keep

    def pair(name: str) -> Any:
        def record_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if id(inputs[0]) in made_by:
                pairs[name] = made_by[id(inputs[0])]

        return record_input

    handles = [norm.register_forward_pre_hook(pair(name)) for name, norm in norms]
    handles += [
        module.register_forward_hook(record_output(module))
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
    """Check that all folded and rescaled weights fit half precision.

    Returns:
        Number of nonzero weights that become 0 in half precision (below 3e-8).

    Raises:
        ExportError: If a weight exceeds 65504.
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
    """Convert layers to half in place, except named ones and global average pools.

    Inputs of the float32 layers are cast by hooks, so that no name changes.
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


def precision_report(path: Path) -> PrecisionReport:
    """Count the half weights of convolutions and matrix products in a graph.

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
    return PrecisionReport(len(half), len(weights), tuple(sorted(weights - half)))


def check_precision(
    role: Role, report: PrecisionReport, precision: Precision, float32_layers: Sequence[str]
) -> None:
    """Check that the graph has the requested precision.

    Raises:
        ExportError: If the precision is fp16 and other layers than ``float32_layers`` are float32,
            or it is fp32 and some are half.
    """
    if precision == "fp32":
        if report.half_weights:
            raise ExportError(f"{role}: fp32 was requested, but {report} weight tensors are half")
        return
    allowed = {f"{layer}.weight" for layer in float32_layers}
    surplus = [name for name in report.float32_names if name not in allowed]
    if surplus or not report.half_weights:
        raise ExportError(
            f"{role}: fp16 was requested, but only {report} weight tensors became half (float32: "
            f"{_shortened(surplus)}): this is a fault of the exporter, use --precision fp32"
        )


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


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
        graph: A module of :mod:`mpn.export.tracing`; its own float32 output is not included.
        inputs: Its inputs.
    """
    peak = ActivationPeak("none", 0.0)
    network = graph.get_submodule("network")
    float32_layers = set(getattr(network, "float32_layers", ()))
    kept_float32: list[Tensor] = []

    def hook(name: str) -> Any:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal peak
            if isinstance(output, dict):  # the maps of a backbone
                output = tuple(output.values())
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
