"""Backward pass of a graph, from one tensor's gradient to those of its weights."""

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
    clip,
    concat,
    expand,
    matmul,
    multiply,
    negate,
    reduce_mean,
    reduce_sum,
    relu,
    slice_,
    subtract,
    unsqueeze,
)
from mpn.export.autodiff.resampling import max_pool, resize

Rule = Callable[[Tape, onnx.NodeProto, str], Iterator[tuple[str, str]]]

RULES: Mapping[str, Rule] = {
    "Add": add,
    "Clip": clip,
    "Concat": concat,
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "Expand": expand,
    "MatMul": matmul,
    "MaxPool": max_pool,
    "Mul": multiply,
    "Neg": negate,
    "ReduceMean": reduce_mean,
    "ReduceSum": reduce_sum,
    "Relu": relu,
    "Resize": resize,
    "Slice": slice_,
    "Sub": subtract,
    "Unsqueeze": unsqueeze,
}


@dataclass(frozen=True)
class Backward:
    """Result of :func:`differentiate`.

    Attributes:
        forward: The nodes of the forward pass.
        gradients: Tensor -> the name of its gradient, for every requested tensor.
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
        output: The tensor with the given gradient.
        seed: Name of that gradient, of the output's shape.
        wrt: Inputs or weights whose gradients are needed. No other gradients are computed.
        builder: Builder to append to; it has the shapes of the forward tensors.
        constants: Values of the forward pass's small constants: slice bounds, axes.

    Returns:
        The forward nodes and the names of the gradients.

    Raises:
        ExportError: If an operator has no rule, or ``output`` does not depend on one of ``wrt``.
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
            raise ExportError(f"operator {node.op_type} ('{node.name}') has no derivative rule")
        grad = _sum(builder, pending.pop(node.output[0]))
        for name, part in RULES[node.op_type](tape, node, grad):
            pending.setdefault(name, []).append(part)
    missing = [name for name in wrt if name not in pending]
    if missing:
        raise ExportError(f"the output does not depend on '{missing[0]}': it cannot be trained")
    return Backward(tuple(forward), {name: _sum(builder, pending[name]) for name in wrt})


def dependents(nodes: Sequence[onnx.NodeProto], roots: Collection[str]) -> frozenset[str]:
    """Return ``roots`` and every tensor that is computed from one of them."""
    found = set(roots)
    for node in nodes:
        # A shape is an integer and has no gradient.
        if node.op_type != "Shape" and any(name in found for name in node.input):
            found.update(node.output)
    return frozenset(found)


def _sum(builder: GraphBuilder, parts: Sequence[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    return builder.op("Add" if len(parts) == 2 else "Sum", *parts)
