"""Merge probabilities of two branches of an object, and of all objects.

Each function takes boxes outside which the probabilities are exactly 0, and computes only inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mpn.errors import EngineError
from mpn.types import Float32Array, Roi, UInt8Array

Boxes = Sequence[Roi | None]
"""Per object a box outside which its probability is exactly 0; None: it is 0 everywhere."""


def blend(
    prob: Float32Array, other: Float32Array, boxes: Boxes, *, other_weight: float
) -> Float32Array:
    """Average two probabilities inside the box of each object; 0 outside.

    Args:
        prob: (K, H, W) float32, 0..1.
        other: (K, H, W), or (1, H, W) for all objects, float32.
        boxes: Per object its bounds.
        other_weight: 0..1.

    Returns:
        (K, H, W) float32: (1 - other_weight) * prob + other_weight * other.
    """
    weight = np.float32(other_weight)
    blended = np.zeros(prob.shape, np.float32)  # zeros_like would write all of it
    for k, window in _windows(boxes):
        theirs = other[min(k, len(other) - 1)][window]
        blended[k][window] = (1 - weight) * prob[k][window] + weight * theirs
    return blended


def merge(prob: Float32Array, boxes: Boxes | None = None) -> Float32Array:
    """Merge independent probabilities of K objects into exclusive ones.

    The background is prod(1 - p_k). Background and objects are divided by their sum (VS-ReID). The
    sum is at least 1, so no probability grows and there is no division by 0.

    Args:
        prob: (K, H, W) float32, 0..1, independent per object.
        boxes: Per object its bounds. [default: the whole frame]

    Returns:
        (K, H, W) float32; 1 - sum over K is the background. For one object ``prob`` itself.
    """
    if len(prob) <= 1:
        return prob
    where = _boxes_or_all(prob, boxes)
    background = np.ones(prob.shape[1:], np.float32)
    total = np.zeros(prob.shape[1:], np.float32)
    for k, window in _windows(where):
        background[window] *= 1 - prob[k][window]
        total[window] += prob[k][window]
    total += background
    merged = np.zeros(prob.shape, np.float32)
    for k, window in _windows(where):
        np.divide(prob[k][window], total[window], out=merged[k][window])
    return merged


def labels_from_merged(
    merged: Float32Array, object_ids: Sequence[int], boxes: Boxes | None = None
) -> UInt8Array:
    """Compute the most probable of background and objects at each pixel.

    Args:
        merged: (K, H, W) float32 from :func:`merge`.
        object_ids: The K ids.
        boxes: Per object its bounds. [default: the whole frame]

    Returns:
        (H, W) uint8 ids. A tie goes to the background, then to the first object.
    """
    where = _boxes_or_all(merged, boxes)
    labels = np.zeros(merged.shape[1:], np.uint8)
    if len(merged) == 1:
        for k, window in _windows(where):
            np.multiply(merged[k][window] > 0.5, np.uint8(object_ids[k]), out=labels[window])
        return labels
    best = np.ones(merged.shape[1:], np.float32)
    for k, window in _windows(where):
        best[window] -= merged[k][window]
    for k, window in _windows(where):
        # As bits of uint8: assignment by a mask takes several times as long.
        wins = (merged[k][window] > best[window]).view(np.uint8)
        labels[window] &= wins - np.uint8(1)
        labels[window] |= wins * np.uint8(object_ids[k])
        np.maximum(best[window], merged[k][window], out=best[window])
    return labels


def _boxes_or_all(prob: Float32Array, boxes: Boxes | None) -> Boxes:
    if boxes is not None:
        return boxes
    return [Roi(0, 0, prob.shape[2], prob.shape[1])] * len(prob)


def _windows(boxes: Boxes) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """Yield index and (rows, columns) of each object with a box."""
    for k, box in enumerate(boxes):
        if box is not None:
            yield k, (slice(box.y0, box.y1), slice(box.x0, box.x1))


def check_finite(prob: Float32Array, role: str, object_id: int | None = None) -> None:
    """Raise EngineError if a value is not finite.

    Args:
        prob: Output of an engine; any shape, float32.
        role: Role of the engine, for the message.
        object_id: Object of a fine-tuned engine; None for a common one.
    """
    # NaN is both maximum and minimum. A sum in float64 takes four times as long.
    if not (np.isfinite(prob.max()) and np.isfinite(prob.min())):
        raise not_finite_error(role, object_id)


def not_finite_error(role: str, object_id: int | None = None) -> EngineError:
    """Make the error for a network whose output is not finite."""
    if object_id is None:
        return EngineError(
            f"the {role} engine returned values that are not finite: its weights or its "
            "precision are broken, export it again in fp32"
        )
    return EngineError(
        f"the {role} engine that was fine-tuned on object {object_id} returned values that "
        "are not finite: fine-tune with a lower rate or another seed, or not at all"
    )
