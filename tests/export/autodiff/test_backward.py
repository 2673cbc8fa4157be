from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from mpn.errors import ExportError
from mpn.export.autodiff import GraphBuilder, backward, differentiate
from mpn.export.autodiff.builder import Tape
from mpn.types import Float32Array
from tests.export.autodiff.differences import (
    SEED,
    Case,
    analytic,
    away_from_zero,
    numeric,
    op,
)
from tests.tolerances import FINITE_DIFFERENCE

Rng = np.random.Generator


def _ints(*values: int) -> Any:
    return np.asarray(values, np.int64)


def _conv(
    x: tuple[int, ...], w: tuple[int, ...], *, bias: bool = False, **attributes: Any
) -> Callable[[Rng], Case]:
    def make(rng: Rng) -> Case:
        inputs = {"x": away_from_zero(rng, *x), "w": away_from_zero(rng, *w)}
        names = "x w"
        if bias:
            inputs["b"] = away_from_zero(rng, w[0])
            names = "x w b"
        return Case([op("Conv", names, **attributes)], inputs)

    return make


def _pair(kind: str, left: tuple[int, ...], right: tuple[int, ...]) -> Callable[[Rng], Case]:
    return lambda rng: Case(
        [op(kind, "a b")], {"a": away_from_zero(rng, *left), "b": away_from_zero(rng, *right)}
    )


def _matrix(names: str, x: tuple[int, ...], m: tuple[int, ...]) -> Callable[[Rng], Case]:
    return lambda rng: Case(
        [op("MatMul", names)], {"x": away_from_zero(rng, *x)}, {"m": away_from_zero(rng, *m)}
    )


def _resize(way: str, x: tuple[int, ...], size_hw: tuple[int, int]) -> Callable[[Rng], Case]:
    return lambda rng: Case(
        [op("Resize", "x _ _ sizes", mode="linear", coordinate_transformation_mode=way)],
        {"x": away_from_zero(rng, *x)},
        {"sizes": _ints(*x[:2], *size_hw)},
    )


def _max_pool(x: tuple[int, ...], **attributes: Any) -> Callable[[Rng], Case]:
    def make(rng: Rng) -> Case:
        # All different by more than a step of the differences.
        values = rng.permutation(int(np.prod(x))).astype(np.float32).reshape(x)
        node = op("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2], **attributes)
        return Case([node], {"x": values})

    return make


def _slice_to_size_of(rng: Rng) -> Case:
    """Crop as OSVOS does: from fixed starts to another tensor's size."""
    nodes = [
        op("Shape", "y", "ends", start=2, end=4),
        op("Slice", "x starts ends axes", "cut"),
        op("Add", "cut y"),
    ]
    inputs = {"x": away_from_zero(rng, 2, 2, 5, 6), "y": away_from_zero(rng, 2, 2, 4, 5)}
    return Case(nodes, inputs, {"starts": _ints(0, 0), "axes": _ints(2, 3)})


def _slice_from_the_middle(rng: Rng) -> Case:
    """Crop as the public OSVOS does, with computed starts."""
    nodes = [
        op("Shape", "x", "whole", start=2, end=3),
        op("Shape", "y", "part", start=2, end=3),
        op("Sub", "whole part", "spare"),
        op("Div", "spare two", "start"),
        op("Add", "start part", "end"),
        op("Slice", "x start end axes", "cut"),
        op("Add", "cut y"),
    ]
    inputs = {"x": away_from_zero(rng, 1, 2, 7, 3), "y": away_from_zero(rng, 1, 2, 4, 3)}
    return Case(nodes, inputs, {"two": _ints(2), "axes": _ints(2)})


def _two_uses(rng: Rng) -> Case:
    """Read a tensor three times, to get the sum of three gradients."""
    nodes = [op("Relu", "x", "r"), op("Mul", "r x", "m"), op("Add", "m r")]
    return Case(nodes, {"x": away_from_zero(rng, 2, 3, 4, 4)})


CASES: dict[str, Callable[[Rng], Case]] = {
    "add": _pair("Add", (2, 3, 4, 5), (2, 3, 4, 5)),
    "add a number": _pair("Add", (2, 3, 4, 5), (1,)),
    "add a channel's number": _pair("Add", (2, 3, 4, 5), (1, 3, 1, 1)),
    "subtract": _pair("Sub", (2, 3, 4, 5), (2, 3, 4, 5)),
    "multiply": _pair("Mul", (2, 3, 4, 5), (2, 3, 4, 5)),
    "multiply by a gain": _pair("Mul", (1,), (2, 1, 4, 5)),
    "negate": lambda rng: Case([op("Neg", "x")], {"x": away_from_zero(rng, 2, 3, 4, 5)}),
    "relu": lambda rng: Case([op("Relu", "x")], {"x": away_from_zero(rng, 2, 3, 4, 5)}),
    "clip as ReLU6": lambda rng: Case(
        [op("Clip", "x low high")],
        # Steps of 0.9 that are neither 0 nor 6.
        {"x": (0.25 + 0.9 * (rng.permutation(24) - 8)).astype(np.float32).reshape(2, 3, 2, 2)},
        {"low": np.float32(0), "high": np.float32(6)},
    ),
    "matrix on the right": _matrix("x m", (2, 3, 4, 5), (5, 2)),
    "matrix on the left": _matrix("m x", (2, 3, 4, 5), (2, 4)),
    "read three times": _two_uses,
    "concat": lambda rng: Case(
        [op("Concat", "a b a", axis=1)],
        {"a": away_from_zero(rng, 2, 3, 4, 4), "b": away_from_zero(rng, 2, 1, 4, 4)},
    ),
    "slice of channels": lambda rng: Case(
        [op("Slice", "x starts ends axes steps")],
        {"x": away_from_zero(rng, 2, 4, 3, 3)},
        {"starts": _ints(1), "ends": _ints(3), "axes": _ints(1), "steps": _ints(1)},
    ),
    "slice to a size": _slice_to_size_of,
    "slice from the middle": _slice_from_the_middle,
    "expand": lambda rng: Case(
        [op("Expand", "x sizes")],
        {"x": away_from_zero(rng, 2, 3, 1, 1)},
        {"sizes": _ints(1, 1, 4, 5)},
    ),
    "expand by a first axis": lambda rng: Case(
        [op("Expand", "x sizes")],
        {"x": away_from_zero(rng, 3)},
        {"sizes": _ints(2, 3)},
    ),
    "new axes": lambda rng: Case(
        [op("Unsqueeze", "x axes")],
        {"x": away_from_zero(rng, 2, 3)},
        {"axes": _ints(2, 3)},
    ),
    "sum that drops an axis": lambda rng: Case(
        [op("ReduceSum", "x axes", keepdims=0)],
        {"x": away_from_zero(rng, 2, 3, 4, 5)},
        {"axes": _ints(-1)},
    ),
    "mean of an image": lambda rng: Case(
        [op("ReduceMean", "x axes", keepdims=1)],
        {"x": away_from_zero(rng, 2, 3, 4, 5)},
        {"axes": _ints(-1, -2)},
    ),
    "resize, corners aligned": _resize("align_corners", (2, 2, 4, 3), (7, 9)),
    "resize, corners aligned, 16 n + 1": _resize("align_corners", (1, 2, 3, 2), (9, 5)),
    "resize, corners aligned, smaller": _resize("align_corners", (1, 1, 6, 7), (3, 4)),
    "resize, corners aligned, one pixel": _resize("align_corners", (1, 2, 1, 1), (4, 5)),
    "resize, half-pixel centres": _resize("half_pixel", (2, 2, 3, 4), (6, 8)),
    "resize, half-pixel centres, uneven": _resize("half_pixel", (1, 2, 3, 4), (5, 9)),
    "max pool": _max_pool((2, 3, 4, 6)),
    "max pool, odd size rounded up": _max_pool((2, 3, 5, 7), ceil_mode=1),
    "conv 1x1": _conv((2, 3, 4, 5), (4, 3, 1, 1), bias=True),
    "conv 1x1, every second pixel, odd": _conv((2, 3, 5, 7), (4, 3, 1, 1), strides=[2, 2]),
    "conv 1x1, every second pixel, even": _conv((2, 3, 4, 6), (4, 3, 1, 1), strides=[2, 2]),
    "conv 3x3": _conv((2, 3, 5, 4), (4, 3, 3, 3), bias=True, pads=[1] * 4),
    "conv 3x3, many channels": _conv((2, 9, 4, 5), (3, 9, 3, 3), pads=[1] * 4),
    "conv 3x3, dilated": _conv((1, 3, 6, 5), (2, 3, 3, 3), pads=[2] * 4, dilations=[2, 2]),
    "conv 3x3, dilation beyond the map": _conv(
        (1, 8, 4, 5), (2, 8, 3, 3), pads=[6] * 4, dilations=[6, 6]
    ),
    "conv 3x3, stride 2, odd": _conv((2, 3, 7, 5), (4, 3, 3, 3), pads=[1] * 4, strides=[2, 2]),
    "conv 3x3, stride 2, even": _conv((2, 3, 6, 8), (4, 3, 3, 3), pads=[1] * 4, strides=[2, 2]),
    "conv 3x3, no padding": _conv((1, 2, 6, 5), (3, 2, 3, 3)),
    "depthwise": _conv((2, 4, 5, 6), (4, 1, 3, 3), bias=True, pads=[1] * 4, group=4),
    "depthwise, dilated": _conv(
        (2, 3, 6, 5), (3, 1, 3, 3), pads=[2] * 4, dilations=[2, 2], group=3
    ),
    "depthwise, stride 2, odd": _conv(
        (2, 3, 7, 5), (3, 1, 3, 3), pads=[1] * 4, strides=[2, 2], group=3
    ),
    "depthwise, stride 2, even": _conv(
        (2, 3, 6, 4), (3, 1, 3, 3), pads=[1] * 4, strides=[2, 2], group=3
    ),
    "fixed upsampling": lambda rng: Case(
        [op("ConvTranspose", "x kernel", strides=[2, 2])],
        {"x": away_from_zero(rng, 2, 3, 3, 4)},
        {"kernel": away_from_zero(rng, 3, 3, 4, 4)},
    ),
}


def _worst(case: Case) -> float:
    """Compute the largest relative difference over all tensors."""
    found, seed = analytic(case)
    expected = numeric(case, seed)
    assert all(found[name].shape == values.shape for name, values in case.inputs.items())
    return max(
        float(np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max())
        for name in case.inputs
    )


@pytest.mark.parametrize("name", CASES)
def test_a_rule_agrees_with_finite_differences(name: str) -> None:
    assert _worst(CASES[name](np.random.default_rng(0))) < FINITE_DIFFERENCE


def _with_wrong_sign(rule: Any) -> Any:
    def wrong(tape: Tape, node: onnx.NodeProto, grad: str) -> Iterator[tuple[str, str]]:
        for name, part in rule(tape, node, grad):
            yield name, tape.builder.op("Neg", part)

    return wrong


@pytest.mark.parametrize("kind", sorted(backward.RULES))
def test_a_wrong_sign_in_any_rule_is_found(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = (make(np.random.default_rng(0)) for make in CASES.values())
    case = next(case for case in cases if any(node.op_type == kind for node in case.nodes))
    monkeypatch.setattr(
        backward, "RULES", {**backward.RULES, kind: _with_wrong_sign(backward.RULES[kind])}
    )
    assert _worst(case) > 1000 * FINITE_DIFFERENCE


def test_of_equal_pixels_the_first_gets_the_gradient_as_in_torch() -> None:
    """Flat parts of an image give windows of four equal pixels."""
    x = np.ones((1, 2, 5, 6), np.float32)
    x[0, 0, 2:, 3:] = 2.0
    case = Case([op("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)], {"x": x})
    found, seed = analytic(case)
    leaf = torch.tensor(x, requires_grad=True)
    F.max_pool2d(leaf, 2, 2, ceil_mode=True).backward(torch.tensor(seed))  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    np.testing.assert_array_equal(found["x"], leaf.grad.numpy())


def test_nothing_flows_through_a_relu_at_zero() -> None:
    x = np.zeros((1, 1, 2, 2), np.float32)
    found, _ = analytic(Case([op("Relu", "x")], {"x": x}))
    np.testing.assert_array_equal(found["x"], x)


def test_only_requested_values_are_differentiated() -> None:
    """The image needs no gradient: its convolution has only weight gradients."""
    nodes = [op("Conv", "image w", "h", pads=[1] * 4), op("Relu", "h")]
    shapes = {"image": (None, 3, None, None), "w": (4, 3, 3, 3), "h": (None, 4, None, None)}
    builder = GraphBuilder({**shapes, "z": (None, 4, None, None)})
    differentiate(nodes, "z", SEED, ["w"], builder=builder, constants={})
    assert sum(node.op_type in ("Conv", "ConvTranspose") for node in builder.nodes) == 0


def _grouped() -> Case:
    x, w = np.zeros((1, 4, 3, 3), np.float32), np.zeros((4, 2, 1, 1), np.float32)
    return Case([op("Conv", "x w", group=2)], {"x": x, "w": w})


def _one(node: onnx.NodeProto, **constants: Any) -> Case:
    return Case([node], {"x": np.zeros((1, 4, 4, 4), np.float32)}, constants)


def _square(kernel: tuple[int, int], **attributes: Any) -> Case:
    x = np.zeros((1, 4, 6, 6), np.float32)
    return Case(
        [op("Conv", "x w", **attributes)], {"x": x, "w": np.zeros((2, 4, *kernel), np.float32)}
    )


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (_one(op("Tanh", "x")), "operator Tanh .* has no derivative rule"),
        (_grouped(), "has groups but is not depthwise"),
        (_square((3, 1)), "not symmetric"),
        (_square((3, 3), strides=[2, 1]), "not symmetric"),
        (_square((3, 3), pads=[1, 0, 1, 0]), "not symmetric"),
        (_one(op("Concat", "x x", axis=2)), "Concat along axis 2"),
        (
            _one(op("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2])),
            "not over windows of 2x2",
        ),
        (
            _one(op("Resize", "x _ s", mode="nearest"), s=np.asarray([1, 1, 2, 2], np.float32)),
            "not bilinear",
        ),
        (
            _one(op("Slice", "x s e a t"), s=_ints(0), e=_ints(4), a=_ints(2), t=_ints(2)),
            "steps other than 1",
        ),
        (_one(op("Slice", "x s e a"), s=_ints(-2), e=_ints(4), a=_ints(2)), "from the end"),
        (
            _one(op("Clip", "x low high"), low=np.float32(-1), high=np.float32(1)),
            "does not start at 0",
        ),
        (_one(op("MatMul", "x x")), "has no fixed matrix"),
        (_one(op("ReduceMean", "x a", keepdims=0), a=_ints(2, 3)), "drops axes"),
    ],
)
def test_operator_without_derivative_raises(case: Case, says: str) -> None:
    with pytest.raises(ExportError, match=says):
        analytic(case)


def test_a_kernel_of_upsampling_cannot_be_trained() -> None:
    inputs: dict[str, Float32Array] = {
        "x": np.zeros((1, 2, 3, 3), np.float32),
        "w": np.zeros((2, 2, 4, 4), np.float32),
    }
    with pytest.raises(ExportError, match="cannot be trained"):
        analytic(Case([op("ConvTranspose", "x w", strides=[2, 2])], inputs))


def test_a_tensor_that_does_not_matter_is_an_error() -> None:
    case = Case([op("Relu", "x")], {"x": np.zeros((1, 1, 2, 2), np.float32)})
    builder = GraphBuilder({"x": (1, 1, 2, 2), "z": (1, 1, 2, 2)})
    with pytest.raises(ExportError, match="does not depend on 'other'"):
        differentiate(case.nodes, "z", SEED, ["x", "other"], builder=builder, constants={})
