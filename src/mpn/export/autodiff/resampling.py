"""Derivatives of bilinear interpolation and of max pooling."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from mpn.errors import ExportError
from mpn.export.autodiff.builder import GraphBuilder, Tape, attributes_of

_FLOAT = onnx.TensorProto.FLOAT
_STEEP = 1e38
"""Inverse of the smallest difference that counts."""
_NEVER = -1e38
"""Number less than any pixel."""


def resize(tape: Tape, node: onnx.NodeProto, grad: str) -> Iterator[tuple[str, str]]:
    """Derive bilinear interpolation of height and width.

    The derivative is two matrix products with its weights. Interpolation is linear in rows and in
    columns: z = Y x X^T, so dx = Y^T dz X. Row i of a matrix holds max(0, 1 - |s_i - k|) for each
    source pixel k, where s_i is the sampling position of output pixel i.
    """
    builder = tape.builder
    attributes = attributes_of(node)
    way = attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    if attributes.get("mode", b"nearest") != b"linear" or way not in _SOURCES:
        raise ExportError(f"Resize '{node.name}' is not bilinear and has no derivative rule")
    name, result = node.input[0], node.output[0]
    rows = _weights(builder, name, result, 2, way)
    columns = _weights(builder, name, result, 3, way)
    narrow = builder.op("MatMul", grad, columns)
    yield name, builder.op("MatMul", builder.once("Transpose", rows, perm=[1, 0]), narrow)


def max_pool(tape: Tape, node: onnx.NodeProto, grad: str) -> Iterator[tuple[str, str]]:
    """Derive 2x2 max pooling: each gradient goes to the first largest pixel.

    The windows do not overlap. The four pixels of a window are four maps of the output's size. The
    gradient that the first does not take goes to the next. (MaxPool's own indices cost onnxruntime
    ten times the pooling.)
    """
    attributes = attributes_of(node)
    kernel, strides = list(attributes["kernel_shape"]), list(attributes.get("strides", [1, 1]))
    if kernel != [2, 2] or strides != [2, 2] or any(attributes.get("pads", [])):
        raise ExportError(
            f"MaxPool '{node.name}' is not over windows of 2x2 without overlap: no derivative rule"
        )
    op, ints, builder = tape.builder.op, tape.builder.ints, tape.builder
    source, result = node.input[0], node.output[0]
    shares, left_over = [], grad
    for row, column in ((0, 0), (0, 1), (1, 0)):
        pixels = _every_second(builder, source, result, row, column)
        lost = op("HardSigmoid", op("Sub", result, pixels), alpha=_STEEP, beta=0.0)
        passed_on = op("Mul", left_over, lost)
        shares.append(op("Sub", left_over, passed_on))
        left_over = passed_on
    rows = [_interleaved(builder, *pair, axis=3) for pair in (shares[:2], (shares[2], left_over))]
    whole = _interleaved(builder, *rows, axis=2)
    # Odd sizes were rounded up.
    ends = builder.once("Shape", source, start=2, end=4)
    yield source, op("Slice", whole, ints(0, 0), ends, ints(2, 3))


def _every_second(builder: GraphBuilder, source: str, result: str, row: int, column: int) -> str:
    """Return one pixel of every window; outside the map, a smallest value."""
    ends = builder.once("Shape", source, start=2, end=4)
    steps, axes = builder.ints(2, 2), builder.ints(2, 3)
    pixels = builder.op("Slice", source, builder.ints(row, column), ends, axes, steps)
    if (row, column) == (0, 0):
        return pixels
    missing = builder.op("Sub", builder.once("Shape", result), builder.op("Shape", pixels))
    pads = builder.op("Concat", builder.ints(0, 0, 0, 0), missing, axis=0)
    return builder.op("Pad", pixels, pads, builder.scalar(_NEVER))


def _interleaved(builder: GraphBuilder, first: str, second: str, *, axis: int) -> str:
    """Interleave the rows (axis 2) or columns (axis 3) of two maps."""
    last = builder.ints(axis + 1)
    pair = [builder.op("Unsqueeze", name, last) for name in (first, second)]
    stacked = builder.op("Concat", *pair, axis=axis + 1)
    if axis == 3:
        return builder.op("Reshape", stacked, builder.ints(0, 0, 0, -1))
    shape = builder.op("Concat", builder.ints(0, 0, -1), builder.size(first, 3), axis=0)
    return builder.op("Reshape", stacked, shape)


def _weights(builder: GraphBuilder, source: str, result: str, axis: int, way: str) -> str:
    """Make the (outputs, inputs) interpolation matrix of one axis at run time."""
    inputs, outputs = builder.size(source, axis), builder.size(result, axis)
    positions = _SOURCES[way](builder, inputs, outputs)
    pixels = _counted(builder, inputs)
    distance = builder.once(
        "Abs", builder.once("Sub", builder.once("Unsqueeze", positions, builder.ints(1)), pixels)
    )
    return builder.once("Relu", builder.once("Sub", builder.scalar(1.0), distance))


def _aligned(builder: GraphBuilder, inputs: str, outputs: str) -> str:
    """Keep the corners in place: s_i = i (inputs - 1) / (outputs - 1)."""
    one = builder.ints(1)
    steps = builder.once("Max", builder.once("Sub", outputs, one), one)
    span = builder.once("Cast", builder.once("Sub", inputs, one), to=_FLOAT)
    scaled = builder.once("Mul", _counted(builder, outputs), span)
    return builder.once("Div", scaled, builder.once("Cast", steps, to=_FLOAT))


def _half_pixel(builder: GraphBuilder, inputs: str, outputs: str) -> str:
    """Align pixel centres: s_i = (i + 1/2) inputs / outputs - 1/2, clipped."""
    half, zero = builder.scalar(0.5), builder.scalar(0.0)
    last = builder.once(
        "Cast", builder.once("Sub", builder.once("Squeeze", inputs), builder.integer(1)), to=_FLOAT
    )
    centres = builder.once("Add", _counted(builder, outputs), half)
    scale = builder.once(
        "Div",
        builder.once("Cast", inputs, to=_FLOAT),
        builder.once("Cast", outputs, to=_FLOAT),
    )
    return builder.once(
        "Clip", builder.once("Sub", builder.once("Mul", centres, scale), half), zero, last
    )


def _counted(builder: GraphBuilder, size: str) -> str:
    """Make 0, 1, ... size - 1 as float32."""
    stop = builder.once("Squeeze", size)
    numbers = builder.once("Range", builder.integer(0), stop, builder.integer(1))
    return builder.once("Cast", numbers, to=_FLOAT)


_SOURCES = {"align_corners": _aligned, "half_pixel": _half_pixel}
