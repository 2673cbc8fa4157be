"""Fine-tuning step as an ONNX graph without weights.

The graph has forward pass, loss, backward pass and update.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper

from mpn._common.files import output_errors
from mpn._common.text import one_line
from mpn.engines.directory.entries import FinetuneScope
from mpn.engines.spec import OPSET, Role
from mpn.errors import ExportError
from mpn.export.autodiff import GraphBuilder, differentiate
from mpn.export.autodiff.backward import dependents
from mpn.export.finetune.optimizer import (
    BALANCED_ROLES,
    STEP,
    OptimizerSettings,
    append_update,
    cross_entropy,
    state_name,
)
from mpn.export.finetune.trace import MARGIN, ForwardGraph

TARGET = "target"
"""Tensor with the height and width of the network's input, which the head does not get."""


@dataclass(frozen=True)
class TrunkCut:
    """Network in two parts.

    Attributes:
        trunk: Nodes from the network's input to the features.
        head: Nodes from the features to the logits; they read the image size from ``target``.
        features: Tensors that the head takes from the trunk.
    """

    trunk: tuple[onnx.NodeProto, ...]
    head: tuple[onnx.NodeProto, ...]
    features: tuple[str, ...]


def cut_trunk(forward: ForwardGraph, trained: Collection[str]) -> TrunkCut:
    """Split a network before its first trained weight.

    Args:
        forward: The network.
        trained: Its trained weights; nodes that depend on none of them are the trunk.
    """
    active = dependents(forward.nodes, trained)
    sizes: set[str] = set()
    head: list[onnx.NodeProto] = []
    trunk: list[onnx.NodeProto] = []
    for node in forward.nodes:
        of_sizes = any(name in sizes for name in node.input) and all(
            name in sizes or name in forward.constants for name in node.input if name
        )
        if node.op_type == "Shape" or of_sizes:
            # Cheap, and both parts may need them; unneeded copies are removed below.
            sizes.update(node.output)
            trunk.append(node)
            head.append(_with_size_of_target(node, forward.input_name))
        elif node.output[0] in active:
            head.append(node)
        else:
            trunk.append(node)
    kept = _needed(head, (MARGIN,))
    made = {name for node in trunk for name in node.output} - sizes
    features = tuple(dict.fromkeys(name for node in kept for name in node.input if name in made))
    return TrunkCut(_needed(trunk, features), kept, features)


def _with_size_of_target(node: onnx.NodeProto, image: str) -> onnx.NodeProto:
    if node.op_type != "Shape" or node.input[0] != image:
        return node
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[0] = TARGET
    return copy


def _needed(nodes: list[onnx.NodeProto], outputs: Collection[str]) -> tuple[onnx.NodeProto, ...]:
    """Return the nodes that ``outputs`` are computed from."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if any(name in needed for name in node.output):
            kept.append(node)
            needed.update(node.input)
    return tuple(reversed(kept))


LOSS = "loss"
LEARNING_RATE = "learning_rate"

_IR_VERSION = 10
_FIXED_WEIGHTS = ("upscale.", "upscale_.")
"""Bilinear kernels of OSVOS, which are never trained (the public code has learning rate 0)."""


_HEADS: Mapping[Role, tuple[str, ...]] = {
    "propagation": ("aspp.", "decoder.", "head.", "prior_gain"),
    "osvos": ("side_prep.", "fuse."),
}
"""Weights of scope "head": all after the backbone; the side branches and their fusion."""


@dataclass(frozen=True)
class FinetuneGraph:
    """Graph of one step.

    Attributes:
        scope: Trained part of the network.
        model: The graph; it holds no weights.
        features: Graph from the network's input to the features that replace it in the step; None
            if the step takes the input itself.
        trained: Tensors that the step changes, in the order of the graph.
    """

    scope: FinetuneScope
    model: onnx.ModelProto
    features: onnx.ModelProto | None
    trained: tuple[str, ...]


def trained_names(forward: ForwardGraph, scope: FinetuneScope) -> tuple[str, ...]:
    """List the weights that a scope trains, in the order of the network."""
    return tuple(
        name
        for name in forward.weights
        if not name.startswith(_FIXED_WEIGHTS)
        and (scope == "all" or name.startswith(_HEADS[forward.role]))
    )


def adapt_graph(
    forward: ForwardGraph, settings: OptimizerSettings, scope: FinetuneScope = "all"
) -> FinetuneGraph:
    """Build the step that trains the weights of a scope.

    Inputs: the network's input (N, C, H, W), or instead the features of a frozen trunk; ``target``
    (N, 1, H, W); ``learning_rate`` (); every weight it needs by its name; every state
    ``<name>::<state>``, and ``step`` () for AdamW. Outputs: ``loss`` () and every trained tensor
    and state as ``<input>::next``. N, H and W are free.

    Args:
        forward: The network.
        settings: The optimiser.
        scope: Part of the network to train.

    Raises:
        ExportError: If an operator of the network has no derivative in this package.
    """
    trained = trained_names(forward, scope)
    cut = cut_trunk(forward, trained) if scope == "head" else None
    nodes = forward.nodes if cut is None else cut.head
    builder = GraphBuilder(forward.shapes)
    is_balanced = forward.role in BALANCED_ROLES
    loss = cross_entropy(builder, MARGIN, TARGET, is_balanced=is_balanced, loss=LOSS)
    backward = differentiate(
        nodes,
        MARGIN,
        loss.gradient,
        trained,
        builder=builder,
        constants=forward.constants,
    )
    outputs = append_update(builder, settings, backward.gradients)
    body = [*backward.forward, *builder.nodes]
    data = (forward.input_name,) if cut is None else cut.features
    inputs = [*_data_values(forward, data), _value(TARGET, ("batch", 1, *_SIDES))]
    inputs += [_value(LEARNING_RATE, ()), *_weight_values(forward, body)]
    for state in settings.state:
        inputs += [_value(state_name(name, state), forward.shapes[name]) for name in trained]
    if settings.name == "adamw":
        inputs.append(_value(STEP, ()))
    declared = {value.name: value for value in inputs}
    results = [_value(LOSS, ())]
    for name in outputs:
        result = onnx.ValueInfoProto()
        result.CopyFrom(declared[name.removesuffix("::next")])
        result.name = name
        results.append(result)
    constants = [*_constants(forward, body), *builder.constants]
    return FinetuneGraph(
        scope=scope,
        model=_model(f"{forward.role}_adapt_{scope}", body, inputs, results, constants),
        features=None if cut is None else _features_graph(forward, cut),
        trained=trained,
    )


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Check a graph and write it.

    Raises:
        ExportError: If it is not valid ONNX.
        OutputError: If it cannot be written.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path.name} is no valid graph: {one_line(error)}") from error
    with output_errors(path):
        path.write_bytes(model.SerializeToString(deterministic=True))


def _features_graph(forward: ForwardGraph, cut: TrunkCut) -> onnx.ModelProto:
    """Build the graph from input to features, with frozen weights as inputs."""
    inputs = [*_data_values(forward, (forward.input_name,)), *_weight_values(forward, cut.trunk)]
    results = _data_values(forward, cut.features)
    constants = _constants(forward, cut.trunk)
    return _model(f"{forward.role}_features", cut.trunk, inputs, results, constants)


def _model(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[onnx.TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, name, inputs, outputs, constants)
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)


def _data_values(forward: ForwardGraph, names: Sequence[str]) -> list[onnx.ValueInfoProto]:
    """Describe tensors of a batch; each free size gets its own name."""
    values = []
    for name in names:
        shape = forward.shapes[name]
        if name == forward.input_name:
            values.append(_value(name, ("batch", shape[1], *_SIDES)))
            continue
        free = [f"{name}.{axis}" if size is None else size for axis, size in enumerate(shape)]
        values.append(_value(name, ("batch", *free[1:])))
    return values


def _weight_values(
    forward: ForwardGraph, nodes: Sequence[onnx.NodeProto]
) -> list[onnx.ValueInfoProto]:
    used = {name for node in nodes for name in node.input}
    return [_value(name, forward.shapes[name]) for name in forward.weights if name in used]


def _constants(forward: ForwardGraph, nodes: Sequence[onnx.NodeProto]) -> list[onnx.TensorProto]:
    used = {name for node in nodes for name in node.input}
    return [
        numpy_helper.from_array(value, name)
        for name, value in forward.constants.items()
        if name in used
    ]


_SIDES = ("height", "width")


def _value(name: str, shape: Sequence[int | str | None]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
