"""The loss of an adaptation step and its gradient, as ONNX nodes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from mpn.export.autodiff import GraphBuilder

_FLOAT = onnx.TensorProto.FLOAT


@dataclass(frozen=True)
class LossNodes:
    """What :func:`balanced_cross_entropy` made.

    Attributes:
        loss: Name of the scalar.
        gradient: Name of its gradient by the margin, of the margin's shape.
    """

    loss: str
    gradient: str


def balanced_cross_entropy(
    builder: GraphBuilder, margin: str, target: str, *, loss: str
) -> LossNodes:
    """Cross-entropy in which object and background weigh the same, whatever their areas.

    Per image, with N+ of its N pixels in the object and N- outside: N-/N times the cross-entropy
    summed over the object plus N+/N times that summed over the background, divided by N; then the
    mean over the images. That is the published loss (S. Caelles et al., "One-Shot Video Object
    Segmentation", CVPR 2017) over the number of pixels, so that a learning rate holds for every
    size. An image without object, or with nothing else, has loss 0 and no gradient.

    Args:
        builder: Takes the nodes.
        margin: (N, 1, H, W) logits of the foreground against the background.
        target: (N, 1, H, W); a pixel belongs to the object from 0.5 on.
        loss: The name that the scalar is to have.
    """
    op = builder.op
    inside = op("Cast", op("GreaterOrEqual", target, builder.scalar(0.5)), to=_FLOAT)
    share = op("ReduceMean", inside, builder.ints(1, 2, 3), keepdims=1)
    # 1 - share inside, share outside.
    lean = op("Sub", builder.scalar(1.0), op("Add", share, share))
    weights = op("Add", op("Mul", inside, lean), share)
    # -log of the probability of the truth, in a form that cannot overflow.
    magnitude = op("Abs", margin)
    tail = op("Log", op("Add", op("Exp", op("Neg", magnitude)), builder.scalar(1.0)))
    cross_entropy = op("Add", op("Sub", op("Relu", margin), op("Mul", margin, inside)), tail)
    op("ReduceMean", op("Mul", weights, cross_entropy), keepdims=0, output=loss)
    count = op("Cast", op("Size", margin), to=_FLOAT)
    error = op("Sub", op("Sigmoid", margin), inside)
    gradient = op("Mul", error, op("Div", weights, count))
    return LossNodes(loss, gradient)
