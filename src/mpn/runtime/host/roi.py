"""Compute boxes around probabilities: ROIs to crop, and bounds after a warp.

Boxes are half-open, in pixels. The test is a strict ``prob > threshold``: a pixel at the threshold
is background, and so is a NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mpn.types import Float32Array, Roi


def box_from_prob(prob: Float32Array, threshold: float, *, within: Roi | None = None) -> Roi | None:
    """Compute the smallest box around all pixels above the threshold.

    All components count, not only the largest: an occluder may cut an object in two.

    Args:
        prob: (H, W) float32, 0..1.
        threshold: 0..1; strict.
        within: Pixels outside this box count as background.

    Returns:
        The box in pixels of the whole frame, or None if no pixel is above the threshold.
    """
    x0, y0 = (0, 0) if within is None else (within.x0, within.y0)
    view = prob if within is None else prob[y0 : within.y1, x0 : within.x1]
    above = view > threshold
    rows = np.flatnonzero(above.any(axis=1))
    if rows.size == 0:
        return None
    columns = np.flatnonzero(above.any(axis=0))
    return Roi(
        x0 + int(columns[0]), y0 + int(rows[0]), x0 + int(columns[-1]) + 1, y0 + int(rows[-1]) + 1
    )


def expand_box(box: Roi, frac: float, px: int, size_hw: tuple[int, int]) -> Roi:
    """Add floor(frac * side) + px to each of the four sides, and clip to the frame.

    Args:
        box: Box inside the frame.
        frac: Fraction of the width added left and right, and of the height above and below.
        px: Pixels added in addition.
        size_hw: (height, width) of the frame.
    """
    height, width = box.size_hw
    return _grow(
        box, math.floor(frac * width) + px, math.floor(frac * height) + px, size_hw=size_hw
    )


def roi_from_prob(
    prob: Float32Array,
    *,
    threshold: float,
    margin_frac: float,
    margin_px_min: int,
    within: Roi | None = None,
) -> Roi | None:
    """Compute the input region of the propagation network.

    The box of ``prob > threshold`` with a margin of max(floor(margin_frac * side), margin_px_min)
    pixels on each side, clipped to the frame. VS-ReID uses 15 % per side; the minimum in pixels
    keeps some background around a small object. Training crops by the same rule.

    Args:
        prob: (H, W) float32, the warped probability of one object.
        threshold: 0..1; strict.
        margin_frac: Margin as a fraction of the box's width or height.
        margin_px_min: Smallest margin.
        within: See :func:`box_from_prob`.

    Returns:
        The region, or None if no pixel is above the threshold.
    """
    box = box_from_prob(prob, threshold, within=within)
    return None if box is None else with_margin(box, margin_frac, margin_px_min, prob.shape)


def with_margin(box: Roi, margin_frac: float, margin_px_min: int, size_hw: tuple[int, ...]) -> Roi:
    """Add the margin of :func:`roi_from_prob` to a box."""
    height, width = box.size_hw
    return _grow(
        box,
        max(math.floor(margin_frac * width), margin_px_min),
        max(math.floor(margin_frac * height), margin_px_min),
        size_hw=size_hw,
    )


def reachable_boxes(
    bounds: Sequence[Roi | None], flow_to_prev_px: Float32Array
) -> list[Roi | None]:
    """Compute the bounds of each object after a warp by this flow.

    A pixel x samples from a box x0..x1-1 only if x0 - 1 < x + flow_x(x) < x1, so the extremes
    of the flow bound x; one more pixel on the far side covers the rounding of that sum.

    Args:
        bounds: Per object a box outside which its probability is exactly 0; None: it is 0
            everywhere.
        flow_to_prev_px: (2, H, W) float32, pixels.

    Returns:
        Per object a box outside which its warped probability is exactly 0, or None. The whole
        frame if a value of the flow is not finite.
    """
    height, width = flow_to_prev_px.shape[1:]
    low_x, high_x = float(flow_to_prev_px[0].min()), float(flow_to_prev_px[0].max())
    low_y, high_y = float(flow_to_prev_px[1].min()), float(flow_to_prev_px[1].max())
    if not all(map(math.isfinite, (low_x, high_x, low_y, high_y))):
        return [None if box is None else Roi(0, 0, width, height) for box in bounds]
    return [
        None
        if box is None
        else _clipped(
            math.floor(box.x0 - 1 - high_x),
            math.floor(box.y0 - 1 - high_y),
            math.ceil(box.x1 - low_x) + 1,
            math.ceil(box.y1 - low_y) + 1,
            (height, width),
        )
        for box in bounds
    ]


def tight_boxes(prob: Float32Array, bounds: Sequence[Roi | None]) -> tuple[Roi | None, ...]:
    """Compute the smallest boxes around all pixels above 0.

    Args:
        prob: (K, H, W) float32.
        bounds: Per object a box outside which it is exactly 0, or None.
    """
    return tuple(
        None if box is None else box_from_prob(plane, 0.0, within=box)
        for plane, box in zip(prob, bounds, strict=True)
    )


def scaled_boxes(
    boxes: Sequence[Roi | None], from_hw: tuple[int, int], to_hw: tuple[int, int]
) -> tuple[Roi | None, ...]:
    """Compute boxes around ``boxes`` after a resize, interpolation included.

    Args:
        boxes: In pixels of a frame of ``from_hw``.
        from_hw: (height, width) before.
        to_hw: (height, width) after.
    """
    if from_hw == to_hw:
        return tuple(boxes)
    scale_y, scale_x = to_hw[0] / from_hw[0], to_hw[1] / from_hw[1]
    return tuple(
        None
        if box is None
        else _clipped(
            math.floor((box.x0 - 1) * scale_x) - 1,
            math.floor((box.y0 - 1) * scale_y) - 1,
            math.ceil((box.x1 + 1) * scale_x) + 1,
            math.ceil((box.y1 + 1) * scale_y) + 1,
            to_hw,
        )
        for box in boxes
    )


def _grow(box: Roi, margin_x: int, margin_y: int, *, size_hw: tuple[int, ...]) -> Roi:
    height, width = size_hw
    return Roi(
        max(box.x0 - margin_x, 0),
        max(box.y0 - margin_y, 0),
        min(box.x1 + margin_x, width),
        min(box.y1 + margin_y, height),
    )


def _clipped(x0: int, y0: int, x1: int, y1: int, size_hw: tuple[int, int]) -> Roi | None:
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, size_hw[1]), min(y1, size_hw[0])
    return Roi(x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None
