"""Derivatives of bilinear interpolation and of max pooling."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from mpn.errors import ExportError
from mpn.export.autodiff.builder import GraphBuilder, attributes_of
from mpn.export.autodiff.tape import Tape

_FLOAT = onnx.TensorProto.FLOAT


def resize(tape: Tape, node: onnx.NodeProto, grad: str) -> Iterator[tuple[str, str]]:
    """Bilinear interpolation of height and width: two matrix products with its weights.

    Interpolation is linear in rows and in columns: z = Y x X^T, so dx = Y^T dz X. Row i of a matrix
    holds max(0, 1 - |s_i - k|) for each source pixel k, s_i where output pixel i samples.
    """
    builder = tape.builder
    attributes = attributes_of(node)
    way = attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    if attributes.get("mode", b"nearest") != b"linear" or way not in _SOURCES:
        raise ExportError(f"Resize '{node.name}' is not bilinear and has no derivative here")
    name, result = node.input[0], node.output[0]
    rows = _weights(builder, name, result, 2, way)
    columns = _weights(builder, name, result, 3, way)
    narrow = builder.op("MatMul", grad, columns)
    yield name, builder.op("MatMul", builder.once("Transpose", rows, perm=[1, 0]), narrow)


def max_pool(tape: Tape, node: onnx.NodeProto, grad: str) -> Iterator[tuple[str, str]]:
    """Windows that do not overlap: each gradient goes to the pixel that won, the first of equals.

    Adds the indices of the winners to the outputs of the forward node.
    """
    attributes = attributes_of(node)
    kernel, strides = list(attributes["kernel_shape"]), list(attributes.get("strides", [1, 1]))
    if kernel != strides or any(attributes.get("pads", [])):
        raise ExportError(f"MaxPool '{node.name}' has windows that overlap and no derivative here")
    builder = tape.builder
    if len(node.output) < 2:
        node.output.append(f"{node.output[0]}::winners")
    # Not MaxUnpool, which refuses maps that the window does not divide.
    shape, flat = builder.once("Shape", node.input[0]), builder.ints(-1)
    count = builder.op("Reshape", builder.op("Size", node.input[0]), builder.ints(1))
    scattered = builder.op(
        "ScatterElements",
        builder.op("ConstantOfShape", count),
        builder.op("Reshape", node.output[1], flat),
        builder.op("Reshape", grad, flat),
    )
    yield node.input[0], builder.op("Reshape", scattered, shape)


def _weights(builder: GraphBuilder, source: str, result: str, axis: int, way: str) -> str:
    """The (outputs, inputs) matrix of interpolation along one axis, made at run time."""
    inputs, outputs = builder.size(source, axis), builder.size(result, axis)
    positions = _SOURCES[way](builder, inputs, outputs)
    pixels = _counted(builder, inputs)
    distance = builder.once(
        "Abs", builder.once("Sub", builder.once("Unsqueeze", positions, builder.ints(1)), pixels)
    )
    return builder.once("Relu", builder.once("Sub", builder.scalar(1.0), distance))


def _aligned(builder: GraphBuilder, inputs: str, outputs: str) -> str:
    """Corners stay in place: s_i = i (inputs - 1) / (outputs - 1)."""
    one = builder.ints(1)
    steps = builder.once("Max", builder.once("Sub", outputs, one), one)
    span = builder.once("Cast", builder.once("Sub", inputs, one), to=_FLOAT)
    scaled = builder.once("Mul", _counted(builder, outputs), span)
    return builder.once("Div", scaled, builder.once("Cast", steps, to=_FLOAT))


def _half_pixel(builder: GraphBuilder, inputs: str, outputs: str) -> str:
    """Pixel centres at halves: s_i = (i + 1/2) inputs / outputs - 1/2, clipped to the pixels."""
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
    """0, 1, ... size - 1 as float32."""
    stop = builder.once("Squeeze", size)
    numbers = builder.once("Range", builder.integer(0), stop, builder.integer(1))
    return builder.once("Cast", numbers, to=_FLOAT)


_SOURCES = {"align_corners": _aligned, "half_pixel": _half_pixel}
