"""The loss of an adaptation step and its gradient, as ONNX nodes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from mpn.engines.spec import Role
from mpn.export.autodiff import GraphBuilder

_FLOAT = onnx.TensorProto.FLOAT


@dataclass(frozen=True)
class LossNodes:
    """What :func:`cross_entropy` made.

    Attributes:
        loss: Name of the scalar.
        gradient: Name of its gradient by the margin, of the margin's shape.
    """

    loss: str
    gradient: str


BALANCED_ROLES: frozenset[Role] = frozenset({"osvos"})
"""Roles that learn from the balanced loss. OSVOS does in its paper, for its object is a small part
of a whole frame. A propagation crop is cut to its object, and that network was trained on the plain
loss: the balanced one makes its masks swell (mean J of five training sequences 0.71 instead of
0.75 after 80 steps)."""


def cross_entropy(
    builder: GraphBuilder, margin: str, target: str, *, is_balanced: bool, loss: str
) -> LossNodes:
    """Cross-entropy, the mean over all pixels, or with object and background weighing the same.

    Balanced: per image, with N+ of its N pixels in the object and N- outside: N-/N times the
    cross-entropy summed over the object plus N+/N times that summed over the background, divided by
    N; then the mean over the images. That is the published loss (S. Caelles et al., "One-Shot Video
    Object Segmentation", CVPR 2017) over the number of pixels, so that a learning rate holds for
    every size. An image without object, or with nothing else, then has loss 0 and no gradient.

    Args:
        builder: Takes the nodes.
        margin: (N, 1, H, W) logits of the foreground against the background.
        target: (N, 1, H, W); a pixel belongs to the object from 0.5 on.
        is_balanced: Whatever their areas, object and background weigh the same.
        loss: The name that the scalar is to have.
    """
    op = builder.op
    inside = op("Cast", op("GreaterOrEqual", target, builder.scalar(0.5)), to=_FLOAT)
    weights = _balance(builder, inside) if is_balanced else None
    # -log of the probability of the truth, in a form that cannot overflow.
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
    """1 - share of the object inside it, its share outside."""
    op = builder.op
    share = op("ReduceMean", inside, builder.ints(1, 2, 3), keepdims=1)
    lean = op("Sub", builder.scalar(1.0), op("Add", share, share))
    return op("Add", op("Mul", inside, lean), share)
