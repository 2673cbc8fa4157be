"""Refine the masks of a frame with a dense CRF over background and objects."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from mpn.runtime.crf.dense import dense_crf
from mpn.runtime.crf.options import ResolvedCrf
from mpn.runtime.host.merge import Boxes
from mpn.runtime.host.roi import expand_box
from mpn.types import Float32Array, Roi, UInt8Array

_SMALLEST_PROB = 1e-5
"""Probabilities are at least this before -log p."""


def refine(
    merged: Float32Array,
    rgb: UInt8Array,
    *,
    boxes: Boxes | None = None,
    options: ResolvedCrf | None = None,
) -> tuple[Float32Array, tuple[Roi | None, ...]]:
    """Refine the probabilities of all objects by the colours of the frame.

    Boxes that touch with their margins are merged into one region. Each region is one CRF, with
    background and its objects as labels. Outside the regions the probabilities do not change.

    Args:
        merged: (K, H, W) float32 from :func:`mpn.runtime.host.merge.merge`: they and the background
            (1 - their sum) sum to 1.
        rgb: (H, W, 3) uint8 RGB, the frame of that size.
        boxes: Per object a box outside which it is exactly 0, None if it is 0 everywhere.
            [default: the whole frame]
        options: Parameters of the CRF. [default: the documented ones]

    Returns:
        (K, H, W) float32, a new array; per object a box outside which it is exactly 0, or None.

    Raises:
        InputError: If an array has another shape or dtype, or a probability is not finite.
    """
    options = options or ResolvedCrf()
    size_hw = (merged.shape[1], merged.shape[2])
    frame = Roi(0, 0, size_hw[1], size_hw[0])
    where = [frame] * len(merged) if boxes is None else list(boxes)
    refined = merged.copy()
    refined_boxes = list(where)
    for region, members in _regions(where, options, size_hw):
        window = (slice(region.y0, region.y1), slice(region.x0, region.x1))
        prob = np.empty((len(members) + 1, *region.size_hw), np.float32)
        prob[0] = 1
        for label, k in enumerate(members, start=1):
            prob[label] = merged[k][window]
            prob[0] -= prob[label]
        q = _decided(prob, rgb[window], options)
        for label, k in enumerate(members, start=1):
            refined[k][window] = q[label]
            refined_boxes[k] = region
    return refined, tuple(refined_boxes)


def _decided(prob: Float32Array, rgb: UInt8Array, options: ResolvedCrf) -> Float32Array:
    """Return the CRF's marginals of (L, h, w) probabilities, which are overwritten."""
    np.clip(prob, _SMALLEST_PROB, 1, out=prob)
    scale, (height, width) = options.working_scale, rgb.shape[:2]
    small_wh = (max(round(width * scale), 1), max(round(height * scale), 1))
    if small_wh == (width, height):
        return _mean_field(-np.log(prob), rgb, options)
    small = np.stack([cv2.resize(p, small_wh, interpolation=cv2.INTER_AREA) for p in prob])
    unary = -np.log(small)
    picture = cv2.resize(rgb, small_wh, interpolation=cv2.INTER_AREA)
    q = _mean_field(unary, np.asarray(picture, np.uint8).reshape(*small_wh[::-1], 3), options)
    gain = np.log(np.maximum(q, _SMALLEST_PROB)) + unary
    odds = np.log(prob)
    for plane, change in zip(odds, gain, strict=True):
        plane += cv2.resize(change, (width, height), interpolation=cv2.INTER_LINEAR)
    odds -= odds.max(axis=0)
    np.exp(odds, out=odds)
    odds /= odds.sum(axis=0)
    return odds


def _mean_field(unary: Float32Array, rgb: UInt8Array, options: ResolvedCrf) -> Float32Array:
    scale = options.working_scale
    return dense_crf(
        unary,
        rgb,
        sxy_gaussian=options.sxy_gaussian * scale,
        compat_gaussian=options.compat_gaussian,
        sxy_bilateral=options.sxy_bilateral * scale,
        srgb_bilateral=options.srgb_bilateral,
        compat_bilateral=options.compat_bilateral,
        iterations=options.iterations,
    )


def _regions(
    boxes: Sequence[Roi | None], options: ResolvedCrf, size_hw: tuple[int, int]
) -> list[tuple[Roi, list[int]]]:
    """Return disjoint rectangles, each with its objects in ascending order."""
    regions: list[tuple[Roi, list[int]]] = []
    for k, box in enumerate(boxes):
        if box is None:
            continue
        region, members = expand_box(box, 0, options.margin_px, size_hw), [k]
        if options.whole_frame:
            region = Roi(0, 0, size_hw[1], size_hw[0])
        # A rectangle around two may overlap a third, so repeat after each union.
        while others := [other for other in regions if _overlap(region, other[0])]:
            for other in others:
                regions.remove(other)
                region = _around(region, other[0])
                members += other[1]
        regions.append((region, sorted(members)))
    return regions


def _overlap(one: Roi, other: Roi) -> bool:
    return one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1


def _around(one: Roi, other: Roi) -> Roi:
    return Roi(
        min(one.x0, other.x0),
        min(one.y0, other.y0),
        max(one.x1, other.x1),
        max(one.y1, other.y1),
    )
