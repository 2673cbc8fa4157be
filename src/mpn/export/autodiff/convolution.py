"""Derivatives of convolutions, in the fastest form for onnxruntime's CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from mpn.errors import ExportError
from mpn.export.autodiff.builder import Tape, attributes_of

_FEW_CHANNELS = 8
"""Number of input channels below which one matrix product per tap is too narrow to be fast."""


@dataclass(frozen=True)
class _Geometry:
    """Parameters of a convolution, symmetric in height and width."""

    outputs: int
    group_inputs: int
    kernel: tuple[int, int]
    stride: int
    dilation: int
    padding: int
    groups: int

    @property
    def pointwise(self) -> bool:
        return self.kernel == (1, 1)

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.group_inputs == 1 and self.outputs == self.groups

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """Start of each tap in the padded input, row by row."""
        return [
            (row * self.dilation, column * self.dilation)
            for row in range(self.kernel[0])
            for column in range(self.kernel[1])
        ]


def convolution(tape: Tape, node: onnx.NodeProto, grad: str) -> Iterator[tuple[str, str]]:
    """Derive the convolution z = w * x + b, dense or depthwise."""
    source, weight = node.input[0], node.input[1]
    shape = _geometry(tape, node, weight)
    if tape.needs_gradient(source):
        yield source, _input_gradient(tape, source, weight, grad, shape)
    if tape.needs_gradient(weight):
        if shape.depthwise:
            yield weight, _depthwise_weight_gradient(tape, source, grad, shape)
        else:
            yield weight, _dense_weight_gradient(tape, source, grad, shape)
    if len(node.input) > 2 and tape.needs_gradient(node.input[2]):
        axes = tape.builder.ints(0, 2, 3)
        yield node.input[2], tape.builder.op("ReduceSum", grad, axes, keepdims=0)


def transposed_convolution(
    tape: Tape, node: onnx.NodeProto, grad: str
) -> Iterator[tuple[str, str]]:
    """Derive the fixed bilinear upsampling of OSVOS.

    Its kernel is not trained.
    """
    if any(tape.needs_gradient(name) for name in node.input[1:]):
        raise ExportError(f"the weights of ConvTranspose '{node.name}' cannot be trained")
    attributes = attributes_of(node)
    if attributes.get("group", 1) != 1 or any(attributes.get("output_padding", [])):
        raise ExportError(f"ConvTranspose '{node.name}' has no derivative rule")
    strides = attributes.get("strides", [1, 1])
    pads = attributes.get("pads", [0, 0, 0, 0])
    yield (
        node.input[0],
        tape.builder.op("Conv", grad, node.input[1], strides=strides, pads=pads),
    )


def _geometry(tape: Tape, node: onnx.NodeProto, weight: str) -> _Geometry:
    attributes = attributes_of(node)
    outputs, group_inputs, rows, columns = (size or 0 for size in tape.builder.shape(weight))
    strides = attributes.get("strides", [1, 1])
    dilations = attributes.get("dilations", [1, 1])
    pads = attributes.get("pads", [0, 0, 0, 0])
    if len({*strides}) > 1 or len({*dilations}) > 1 or len({*pads}) > 1 or rows != columns:
        raise ExportError(f"Conv '{node.name}' is not symmetric: no derivative rule")
    shape = _Geometry(
        outputs=outputs,
        group_inputs=group_inputs,
        kernel=(rows, columns),
        stride=strides[0],
        dilation=dilations[0],
        padding=pads[0],
        groups=attributes.get("group", 1),
    )
    if shape.groups > 1 and not shape.depthwise:
        raise ExportError(f"Conv '{node.name}' has groups but is not depthwise: no derivative rule")
    return shape


def _input_gradient(tape: Tape, source: str, weight: str, grad: str, shape: _Geometry) -> str:
    builder = tape.builder
    extent = shape.dilation * (shape.kernel[0] - 1)
    if shape.stride == 1:
        # The flipped, transposed kernel: faster than ConvTranspose in onnxruntime.
        flipped = weight
        if not shape.depthwise:
            flipped = builder.op("Transpose", flipped, perm=[1, 0, 2, 3])
        if not shape.pointwise:
            bound = builder.ints(-(2**31), -(2**31))
            flipped = builder.op(
                "Slice",
                flipped,
                builder.ints(-1, -1),
                bound,
                builder.ints(2, 3),
                builder.ints(-1, -1),
            )
        return builder.op(
            "Conv",
            grad,
            flipped,
            dilations=[shape.dilation] * 2,
            group=shape.groups,
            pads=[extent - shape.padding] * 4,
        )
    # If the stride does not divide the size, no output depends on the last rows. Make the
    # gradient larger, then cut it to the size of the input.
    larger = builder.op(
        "ConvTranspose",
        grad,
        weight,
        strides=[shape.stride] * 2,
        dilations=[shape.dilation] * 2,
        pads=[shape.padding] * 4,
        output_padding=[shape.stride - 1] * 2,
        group=shape.groups,
    )
    ends = builder.once("Shape", source, start=2, end=4)
    return builder.op("Slice", larger, builder.ints(0, 0), ends, builder.ints(2, 3))


def _taps(tape: Tape, source: str, grad: str, shape: _Geometry) -> list[str]:
    """Return per tap its input pixels, (N, C, H', W') of the output's size."""
    builder = tape.builder
    if shape.pointwise and shape.stride == 1:
        return [source]
    pad = shape.padding
    padded = (
        builder.op("Pad", source, builder.ints(0, 0, pad, pad, 0, 0, pad, pad)) if pad else source
    )
    axes, steps = builder.ints(2, 3), builder.ints(shape.stride, shape.stride)
    # The last pixel of a tap is stride * (size - 1) after its first.
    size = builder.once("Shape", grad, start=2, end=4)
    span = builder.once(
        "Sub", builder.once("Mul", size, steps), builder.ints(*[shape.stride - 1] * 2)
    )
    taps = []
    for offset in shape.offsets:
        start = builder.ints(*offset)
        ends = builder.once("Add", span, start)
        taps.append(builder.op("Slice", padded, start, ends, axes, steps))
    return taps


def _dense_weight_gradient(tape: Tape, source: str, grad: str, shape: _Geometry) -> str:
    """Multiply gradients and input pixels per tap and image; sum over images.

    One product per tap keeps its copies in the cache. A single product over all taps writes nine
    shifted copies of the input first, which is faster only if the input has few channels.
    """
    builder = tape.builder
    pixels = _taps(tape, source, grad, shape)
    inputs, taps = shape.group_inputs, len(pixels)
    rows = builder.op("Reshape", grad, builder.ints(0, shape.outputs, -1))

    def summed(columns: str, channels: int) -> str:
        flat = builder.op("Reshape", columns, builder.ints(0, channels, -1))
        # onnxruntime runs this transposition inside the product.
        product = builder.op("MatMul", rows, builder.op("Transpose", flat, perm=[0, 2, 1]))
        return builder.op("ReduceSum", product, builder.ints(0), keepdims=0)

    if taps == 1:
        total = summed(pixels[0], inputs)
        return builder.op("Reshape", total, builder.ints(shape.outputs, inputs, 1, 1))
    if inputs < _FEW_CHANNELS:
        together = summed(builder.op("Concat", *pixels, axis=1), taps * inputs)
        by_tap = builder.op("Reshape", together, builder.ints(shape.outputs, taps, inputs))
        stacked = builder.op("Transpose", by_tap, perm=[0, 2, 1])
    else:
        one = builder.ints(shape.outputs, inputs, 1)
        parts = [builder.op("Reshape", summed(tap, inputs), one) for tap in pixels]
        stacked = builder.op("Concat", *parts, axis=2)
    return builder.op("Reshape", stacked, builder.ints(shape.outputs, inputs, *shape.kernel))


def _depthwise_weight_gradient(tape: Tape, source: str, grad: str, shape: _Geometry) -> str:
    """Sum input pixels times gradients, per tap and channel."""
    builder = tape.builder
    axes = builder.ints(0, 2, 3)
    sums = [
        builder.op("ReduceSum", builder.op("Mul", pixels, grad), axes, keepdims=1)
        for pixels in _taps(tape, source, grad, shape)
    ]
    rows = builder.op("Concat", *sums, axis=0)  # (taps, C, 1, 1)
    by_channel = builder.op("Transpose", rows, perm=[1, 2, 3, 0])
    return builder.op("Reshape", by_channel, builder.ints(shape.outputs, 1, *shape.kernel))
