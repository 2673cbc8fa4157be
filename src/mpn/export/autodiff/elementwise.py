"""Derivatives of elementwise operators."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from mpn.errors import ExportError
from mpn.export.autodiff.builder import Tape, attributes_of

_STEEP = 1e38
"""Inverse of the smallest number with full float32 precision."""


def add(tape: Tape, node: onnx.NodeProto, grad: str) -> Iterator[tuple[str, str]]:
    """Derive z = a + b."""
    for name in node.input:
        if tape.needs_gradient(name):
            yield name, _unbroadcast(tape, grad, name, node.output[0])


def subtract(tape: Tape, node: onnx.NodeProto, grad: str) -> Iterator[tuple[str, str]]:
    """Derive z = a - b."""
    left, right = node.input
    if tape.needs_gradient(left):
        yield left, _unbroadcast(tape, grad, left, node.output[0])
    if tape.needs_gradient(right):
        negative = tape.builder.op("Neg", grad)
        yield right, _unbroadcast(tape, negative, right, node.output[0])


def negate(tape: Tape, node: onnx.NodeProto, grad: str) -> Iterator[tuple[str, str]]:
    """Derive z = -a."""
    yield node.input[0], tape.builder.op("Neg", grad)


def multiply(tape: Tape, node: onnx.NodeProto, grad: str) -> Iterator[tuple[str, str]]:
    """Derive z = a * b."""
    left, right = node.input
    for name, other in ((left, right), (right, left)):
        if tape.needs_gradient(name):
            product = tape.builder.op("Mul", grad, other)
            yield name, _unbroadcast(tape, product, name, node.output[0])


def relu(tape: Tape, node: onnx.NodeProto, grad: str) -> Iterator[tuple[str, str]]:
    """Derive z = max(a, 0); the gradient is 0 if a is 0, as in PyTorch."""
    builder = tape.builder
    # min(1, slope z) is 1 if z > 0, and takes a third of the time of Sign in onnxruntime.
    positive = builder.op("HardSigmoid", node.output[0], alpha=_STEEP, beta=0.0)
    yield node.input[0], builder.op("Mul", grad, positive)


def clip(tape: Tape, node: onnx.NodeProto, grad: str) -> Iterator[tuple[str, str]]:
    """Derive z = min(max(a, 0), c), as ReLU6 is; the gradient is 0 at both ends."""
    builder = tape.builder
    low, high = (tape.constants.get(name) for name in node.input[1:3])
    if low is None or high is None or float(low) != 0.0:
        raise ExportError(f"Clip '{node.name}' does not start at 0 and has no derivative rule")
    above = builder.op("HardSigmoid", node.output[0], alpha=_STEEP, beta=0.0)
    # c - z is exactly 0 if z was clipped.
    left = builder.op("Sub", builder.scalar(float(high)), node.output[0])
    below = builder.op("HardSigmoid", left, alpha=_STEEP, beta=0.0)
    yield node.input[0], builder.op("Mul", grad, builder.op("Mul", above, below))


def matmul(tape: Tape, node: onnx.NodeProto, grad: str) -> Iterator[tuple[str, str]]:
    """Derive a product of a map with a fixed matrix on its left or right."""
    builder = tape.builder
    left, right = node.input
    matrix, side = (right, "right") if tape.needs_gradient(left) else (left, "left")
    if tape.needs_gradient(matrix) or len(builder.shape(matrix)) != 2:
        raise ExportError(f"MatMul '{node.name}' has no fixed matrix: no derivative rule")
    turned = builder.once("Transpose", matrix, perm=[1, 0])
    if side == "right":
        yield left, builder.op("MatMul", grad, turned)
    else:
        yield right, builder.op("MatMul", turned, grad)


def _unbroadcast(tape: Tape, grad: str, name: str, result: str) -> str:
    """Sum a gradient over the axes along which ``name`` was broadcast.

    ``grad`` has the shape of ``result``. A size that is only known at run time counts as the same
    on both sides: networks broadcast numbers, channels and maps of one pixel, whose sizes are all
    known.
    """
    builder = tape.builder
    shape, full = builder.shape(name), builder.shape(result)
    aligned = (1,) * (len(full) - len(shape)) + shape
    axes = [
        axis
        for axis, (size, whole) in enumerate(zip(aligned, full, strict=True))
        if size == 1 and whole != 1
    ]
    if axes:
        grad = builder.op("ReduceSum", grad, builder.ints(*axes), keepdims=1)
    new = range(len(full) - len(shape))
    return builder.op("Squeeze", grad, builder.ints(*new)) if new else grad


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
    """Derive values repeated along axes of size 1 and new first axes."""
    name = node.input[0]
    yield name, _unbroadcast(tape, grad, name, node.output[0])


def unsqueeze(tape: Tape, node: onnx.NodeProto, grad: str) -> Iterator[tuple[str, str]]:
    """Derive new axes of size 1."""
    yield node.input[0], tape.builder.op("Squeeze", grad, node.input[1])


def reduce_sum(tape: Tape, node: onnx.NodeProto, grad: str) -> Iterator[tuple[str, str]]:
    """Derive a sum over axes."""
    builder = tape.builder
    name = node.input[0]
    if not attributes_of(node).get("keepdims", 1):
        rank = len(builder.shape(name))
        axes = sorted(axis % rank for axis in tape.integers(node.input[1]))
        grad = builder.op("Unsqueeze", grad, builder.ints(*axes))
    yield name, builder.op("Expand", grad, builder.once("Shape", name))


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
