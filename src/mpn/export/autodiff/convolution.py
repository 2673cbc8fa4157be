"""Derivatives of convolutions, each in the form that onnxruntime's CPU kernels like best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from mpn.errors import ExportError
from mpn.export.autodiff.builder import Tape, attributes_of

_FEW_CHANNELS = 8
"""Of the input; under this many, a matrix product a tap is too narrow to be fast."""


@dataclass(frozen=True)
class _Geometry:
    """Of a convolution over (height, width), symmetric in both."""

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
        """Where each tap starts in the padded input, row by row."""
        return [
            (row * self.dilation, column * self.dilation)
            for row in range(self.kernel[0])
            for column in range(self.kernel[1])
        ]


def convolution(tape: Tape, node: onnx.NodeProto, grad: str) -> Iterator[tuple[str, str]]:
    """Convolution: z = w * x + b, dense or depthwise."""
    source, weight = node.input[0], node.input[1]
    shape = _geometry(tape, node, weight)
    if tape.wants(source):
        yield source, _input_gradient(tape, source, weight, grad, shape)
    if tape.wants(weight):
        if shape.depthwise:
            yield weight, _depthwise_weight_gradient(tape, source, grad, shape)
        else:
            yield weight, _dense_weight_gradient(tape, source, grad, shape)
    if len(node.input) > 2 and tape.wants(node.input[2]):
        axes = tape.builder.ints(0, 2, 3)
        yield node.input[2], tape.builder.op("ReduceSum", grad, axes, keepdims=0)


def transposed_convolution(
    tape: Tape, node: onnx.NodeProto, grad: str
) -> Iterator[tuple[str, str]]:
    """The fixed bilinear upsampling of the public OSVOS: its kernel is not trained."""
    if any(tape.wants(name) for name in node.input[1:]):
        raise ExportError(f"the weights of ConvTranspose '{node.name}' cannot be trained here")
    attributes = attributes_of(node)
    if attributes.get("group", 1) != 1 or any(attributes.get("output_padding", [])):
        raise ExportError(f"ConvTranspose '{node.name}' has no derivative here")
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
        raise ExportError(f"Conv '{node.name}' is not the same both ways: no derivative here")
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
        raise ExportError(f"Conv '{node.name}' has groups but is not depthwise: no derivative here")
    return shape


def _input_gradient(tape: Tape, source: str, weight: str, grad: str, shape: _Geometry) -> str:
    builder = tape.builder
    reach = shape.dilation * (shape.kernel[0] - 1)
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
            pads=[reach - shape.padding] * 4,
        )
    # A size that the stride does not divide leaves rows that no output saw: they are made, then
    # cut to what the input has.
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
    """For each tap, the input pixels it multiplies: (N, C, H', W') of the output's size."""
    builder = tape.builder
    if shape.pointwise and shape.stride == 1:
        return [source]
    pad = shape.padding
    padded = (
        builder.op("Pad", source, builder.ints(0, 0, pad, pad, 0, 0, pad, pad)) if pad else source
    )
    axes, steps = builder.ints(2, 3), builder.ints(shape.stride, shape.stride)
    # The last pixel a tap sees is stride * (size - 1) further on.
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
    """For each tap, per image, the product of gradients and input pixels; summed over the images.

    One product a tap keeps what is copied in the cache; a single one over all taps at once writes
    nine shifted copies of the input first, which pays only where the input has few channels.
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
    """Each tap of each channel: the sum of what it saw times what came of it."""
    builder = tape.builder
    axes = builder.ints(0, 2, 3)
    sums = [
        builder.op("ReduceSum", builder.op("Mul", pixels, grad), axes, keepdims=1)
        for pixels in _taps(tape, source, grad, shape)
    ]
    rows = builder.op("Concat", *sums, axis=0)  # (taps, C, 1, 1)
    by_channel = builder.op("Transpose", rows, perm=[1, 2, 3, 0])
    return builder.op("Reshape", by_channel, builder.ints(shape.outputs, 1, *shape.kernel))
