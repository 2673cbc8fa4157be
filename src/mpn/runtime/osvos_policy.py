"""Where an object that propagation has lost may be, in what OSVOS takes for foreground."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mpn.types import BoolArray, Float32Array, Roi


@dataclass(frozen=True)
class Retrieved:
    """A component of the foreground that is taken for the object.

    Attributes:
        prob: (H, W) float32, OSVOS inside the box without the other components, 0 outside.
        box: Its bounding box.
        mask: (H, W) bool, its pixels.
    """

    prob: Float32Array
    box: Roi
    mask: BoolArray


def places(
    foreground: Float32Array,
    others: Sequence[BoolArray],
    *,
    threshold: float,
    min_area_px: float,
    iou_max: float,
    is_like: Callable[[BoolArray, Roi], bool] | None = None,
) -> Iterator[Retrieved]:
    """Where an object may be, the largest place first.

    An 8-connected component above the threshold is a place if it is large enough, is not what
    another object already covers, and looks like the object. The rule and its numbers follow
    VS-ReID's re-identification, which compares looks by a network.

    Args:
        foreground: (H, W) float32, 0..1, from OSVOS.
        others: (H, W) bool masks of the objects that are not lost.
        threshold: 0..1; strict.
        min_area_px: Smallest component, in pixels.
        iou_max: Largest intersection over union with any of ``others``.
        is_like: Whether pixels, given with their box, look like the object; None: all do.
    """
    count, components, stats, _ = cv2.connectedComponentsWithStats(
        (foreground > threshold).view(np.uint8), connectivity=8
    )
    by_area = sorted(range(1, count), key=lambda c: -int(stats[c, cv2.CC_STAT_AREA]))
    for component in by_area:
        x, y, width, height, area = (int(value) for value in stats[component])
        if area < max(min_area_px, 1):
            return
        mask: BoolArray = components == component
        box = Roi(x, y, x + width, y + height)
        if any(iou(mask, other) > iou_max for other in others):
            continue
        if is_like is not None and not is_like(mask, box):
            continue
        rows, columns = slice(y, y + height), slice(x, x + width)
        inside = components[rows, columns]
        prob = np.zeros_like(foreground)
        prob[rows, columns] = np.where(
            (inside == 0) | (inside == component), foreground[rows, columns], 0
        )
        yield Retrieved(prob, box, mask)


def iou(a: BoolArray, b: BoolArray) -> float:
    """Intersection over union of two masks; 0 if both are empty."""
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else 0.0
