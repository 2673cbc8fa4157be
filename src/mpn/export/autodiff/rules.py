"""Derivative rules by operator name.

A rule takes the tape, the forward node and the name of its output's gradient, and yields the
gradient of each input that needs one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx

from mpn.export.autodiff.arithmetic import add, multiply, negate, relu, subtract
from mpn.export.autodiff.convolution import convolution, transposed_convolution
from mpn.export.autodiff.layout import concat, expand, reduce_mean, slice_
from mpn.export.autodiff.resampling import max_pool, resize
from mpn.export.autodiff.tape import Tape

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
