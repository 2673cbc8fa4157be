"""Derivatives of operators that move, repeat or average values."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from mpn.errors import ExportError
from mpn.export.autodiff.builder import attributes_of
from mpn.export.autodiff.tape import Tape


def concat(tape: Tape, node: onnx.NodeProto, grad: str) -> Iterator[tuple[str, str]]:
    """Derive a concatenation along the channels."""
    axis = attributes_of(node)["axis"]
    if axis != 1:
        raise ExportError(f"Concat along axis {axis} has no derivative rule, only axis 1 has")
    sizes = [tape.builder.channels(name) for name in node.input]
    parts = tape.builder.split(grad, sizes, axis)
    for name, part in zip(node.input, parts, strict=True):
        if tape.needs_gradient(name):
            yield name, part


def slice_(tape: Tape, node: onnx.NodeProto, grad: str) -> Iterator[tuple[str, str]]:
    """Derive a slice: the other elements get no gradient.

    Bounds may be computed at run time; starts must not be negative, steps must be 1.
    """
    builder = tape.builder
    name, starts = node.input[0], node.input[1]
    rank = len(builder.shape(name))
    axes = (
        tape.integers(node.input[3])
        if len(node.input) > 3 and node.input[3]
        else tuple(range(rank))
    )
    if len(node.input) > 4 and any(step != 1 for step in tape.integers(node.input[4])):
        raise ExportError(f"Slice '{node.name}' has steps other than 1 and no derivative here")
    if starts in tape.constants and min(tape.integers(starts)) < 0:
        raise ExportError(f"Slice '{node.name}' counts from the end and has no derivative rule")
    begins = [builder.ints(0)] * rank
    for index, axis in enumerate(axes):
        begins[axis % rank] = (
            builder.ints(tape.integers(starts)[index])
            if starts in tape.constants
            else builder.op("Slice", starts, builder.ints(index), builder.ints(index + 1))
        )
    before = builder.op("Concat", *begins, axis=0)
    missing = builder.op("Sub", builder.once("Shape", name), builder.op("Shape", grad))
    after = builder.op("Sub", missing, before)
    yield name, builder.op("Pad", grad, builder.op("Concat", before, after, axis=0))


def expand(tape: Tape, node: onnx.NodeProto, grad: str) -> Iterator[tuple[str, str]]:
    """Derive values repeated along axes of size 1."""
    builder = tape.builder
    name = node.input[0]
    shape, full = builder.shape(name), builder.shape(node.output[0])
    if len(shape) != len(full):
        raise ExportError(f"Expand '{node.name}' adds axes and has no derivative rule")
    axes = [
        axis
        for axis, (size, whole) in enumerate(zip(shape, full, strict=True))
        if size == 1 and whole != 1
    ]
    yield name, builder.op("ReduceSum", grad, builder.ints(*axes), keepdims=1)


def reduce_mean(tape: Tape, node: onnx.NodeProto, grad: str) -> Iterator[tuple[str, str]]:
    """Derive a mean over axes that are kept with size 1."""
    builder = tape.builder
    name = node.input[0]
    if not attributes_of(node).get("keepdims", 1):
        raise ExportError(f"ReduceMean '{node.name}' drops axes and has no derivative rule")
    shape = builder.once("Shape", name)
    rank = len(builder.shape(name))
    axes = sorted(axis % rank for axis in tape.integers(node.input[1]))
    sizes = builder.op("Gather", shape, builder.ints(*axes))
    count = builder.op("Cast", builder.op("ReduceProd", sizes, keepdims=0), to=1)
    yield name, builder.op("Expand", builder.op("Div", grad, count), shape)
