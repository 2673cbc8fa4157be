"""Loss of a fine-tuning step and its gradient, as ONNX nodes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from mpn.engines.spec import Role
from mpn.export.autodiff import GraphBuilder

_FLOAT = onnx.TensorProto.FLOAT


@dataclass(frozen=True)
class LossNodes:
    """Tensors of :func:`cross_entropy`.

    Attributes:
        loss: Name of the scalar.
        gradient: Name of its gradient with respect to the margin, of the margin's shape.
    """

    loss: str
    gradient: str


BALANCED_ROLES: frozenset[Role] = frozenset({"osvos"})
"""Roles with the balanced loss. OSVOS has it in its paper, because its object is a small part of a
whole frame. A propagation crop is cut to its object, and that network was trained on the plain
loss: the balanced one enlarges its masks (mean J of five training sequences 0.71 instead of 0.75
after 80 steps)."""


def cross_entropy(
    builder: GraphBuilder, margin: str, target: str, *, is_balanced: bool, loss: str
) -> LossNodes:
    """Append a cross-entropy over all pixels, plain or class-balanced.

    Balanced: per image, with N+ of its N pixels in the object and N- outside: N-/N times the
    cross-entropy summed over the object plus N+/N times that summed over the background, divided by
    N; then the mean over the images. This is the published loss (S. Caelles et al., "One-Shot Video
    Object Segmentation", CVPR 2017) divided by the number of pixels, so that one learning rate
    suits every size. An image without object, or without background, has loss 0 and no gradient.

    Args:
        builder: Graph to append to.
        margin: (N, 1, H, W) logits of the foreground against the background.
        target: (N, 1, H, W); a pixel of at least 0.5 belongs to the object.
        is_balanced: Give object and background the same weight, for any areas.
        loss: Name of the scalar.
    """
    op = builder.op
    inside = op("Cast", op("GreaterOrEqual", target, builder.scalar(0.5)), to=_FLOAT)
    weights = _balance(builder, inside) if is_balanced else None
    # -log of the probability of the target, in a form that cannot overflow.
    magnitude = op("Abs", margin)
    tail = op("Log", op("Add", op("Exp", op("Neg", magnitude)), builder.scalar(1.0)))
    entropy = op("Add", op("Sub", op("Relu", margin), op("Mul", margin, inside)), tail)
    weighed = entropy if weights is None else op("Mul", weights, entropy)
    op("ReduceMean", weighed, keepdims=0, output=loss)
    count = op("Cast", op("Size", margin), to=_FLOAT)
    error = op("Sub", op("Sigmoid", margin), inside)
    if weights is not None:
        error = op("Mul", error, weights)
    return LossNodes(loss, op("Div", error, count))


def _balance(builder: GraphBuilder, inside: str) -> str:
    """Append weights: 1 - share of the object inside it, its share outside."""
    op = builder.op
    share = op("ReduceMean", inside, builder.ints(1, 2, 3), keepdims=1)
    lean = op("Sub", builder.scalar(1.0), op("Add", share, share))
    return op("Add", op("Mul", inside, lean), share)
