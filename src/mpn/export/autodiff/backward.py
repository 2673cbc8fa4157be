"""The walk back through a graph: from the gradient of one tensor to those of its weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from mpn.errors import ExportError
from mpn.export.autodiff.builder import GraphBuilder, Tape
from mpn.export.autodiff.convolution import convolution, transposed_convolution
from mpn.export.autodiff.elementwise import (
    add,
    concat,
    expand,
    multiply,
    negate,
    reduce_mean,
    relu,
    slice_,
    subtract,
)
from mpn.export.autodiff.resampling import max_pool, resize

Rule = Callable[[Tape, onnx.NodeProto, str], Iterator[tuple[str, str]]]

RULES: Mapping[str, Rule] = {
    "Add": add,
    "Concat": concat,
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "Expand": expand,
    "MaxPool": max_pool,
    "Mul": multiply,
    "Neg": negate,
    "ReduceMean": reduce_mean,
    "Relu": relu,
    "Resize": resize,
    "Slice": slice_,
    "Sub": subtract,
}


@dataclass(frozen=True)
class Backward:
    """What :func:`differentiate` found.

    Attributes:
        forward: The nodes of the forward pass; pooling nodes give their indices too.
        gradients: Tensor -> the name of its gradient, for every tensor asked for.
    """

    forward: tuple[onnx.NodeProto, ...]
    gradients: Mapping[str, str]


def differentiate(
    nodes: Sequence[onnx.NodeProto],
    output: str,
    seed: str,
    wrt: Collection[str],
    *,
    builder: GraphBuilder,
    constants: Mapping[str, npt.NDArray[np.generic]],
) -> Backward:
    """Append the backward pass of ``nodes`` to ``builder``.

    Args:
        nodes: The forward pass in topological order.
        output: The tensor whose gradient is given.
        seed: Name of that gradient, of the output's shape.
        wrt: Tensors whose gradients are wanted: inputs or weights. Nothing is computed for others.
        builder: Takes the nodes; knows the shapes of the forward tensors.
        constants: Values of the forward pass's small constants: slice bounds, axes.

    Returns:
        The forward nodes and the names of the gradients.

    Raises:
        ExportError: If an operator on the way has no rule, or ``output`` does not depend on one of
            ``wrt``.
    """
    forward = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    active = dependents(forward, wrt)
    tape = Tape(builder, active, constants)
    pending: dict[str, list[str]] = {output: [seed]}
    for node in reversed(forward):
        grads = [name for name in node.output if name in pending]
        if not grads or node.output[0] not in active:
            continue
        if node.op_type not in RULES:
            raise ExportError(
                f"operator {node.op_type} ('{node.name}') has no derivative here: "
                "export with --no-adapt"
            )
        grad = _sum(builder, pending.pop(node.output[0]))
        for name, part in RULES[node.op_type](tape, node, grad):
            pending.setdefault(name, []).append(part)
    missing = [name for name in wrt if name not in pending]
    if missing:
        raise ExportError(f"the output does not depend on '{missing[0]}': it cannot be trained")
    return Backward(tuple(forward), {name: _sum(builder, pending[name]) for name in wrt})


def dependents(nodes: Sequence[onnx.NodeProto], roots: Collection[str]) -> frozenset[str]:
    """``roots`` and every tensor that is computed from one of them."""
    found = set(roots)
    for node in nodes:
        # A shape is an integer: nothing flows back through it.
        if node.op_type != "Shape" and any(name in found for name in node.input):
            found.update(node.output)
    return frozenset(found)


def _sum(builder: GraphBuilder, parts: Sequence[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    return builder.op("Add" if len(parts) == 2 else "Sum", *parts)
