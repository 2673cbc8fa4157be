"""Reference of kernels/boxes.cu: see :mod:`tests.reference.kernels`."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from mpn.types import BoolArray, Float32Array

Int32Array = npt.NDArray[np.int32]

_PER_BLOCK = 1024


def flow_extent(
    flow_to_prev_px: Float32Array, pixels: int, partials: int, extents: Float32Array
) -> None:
    """Compute the smallest and largest flow per block; NaN if one is not finite."""
    planes = flow_to_prev_px.reshape(2, pixels)
    block = np.arange(pixels) // _PER_BLOCK % partials
    for b in range(partials):
        mine = planes[:, block == b]
        if not np.isfinite(mine).all():
            extents[b] = np.nan
        elif mine.size:
            (low_x, low_y), (high_x, high_y) = mine.min(axis=1), mine.max(axis=1)
            extents[b] = low_x, high_x, low_y, high_y
        else:
            extents[b] = np.inf, -np.inf, np.inf, -np.inf


def reach_boxes(
    supports: Int32Array,
    extents: Float32Array,
    partials: int,
    objects: int,
    height: int,
    width: int,
    reach: Int32Array,
    boxes: Int32Array,
    areas: Int32Array,
) -> None:
    """Compute the bounds of each warped object and clear boxes and areas."""
    known = np.isfinite(extents[:partials, 0]) | np.isinf(extents[:partials, 0])
    low_x, low_y = (float(extents[:partials, i].min()) for i in (0, 2))
    high_x, high_y = (float(extents[:partials, i].max()) for i in (1, 3))
    for k, (x0, y0, x1, y1) in enumerate(supports.tolist()):
        if x1 <= x0 or y1 <= y0:
            box = [0, 0, 0, 0]
        elif not known.all():
            box = [0, 0, width, height]
        else:
            box = [
                max(math.floor(x0 - 1 - high_x), 0),
                max(math.floor(y0 - 1 - high_y), 0),
                min(math.ceil(x1 - low_x) + 1, width),
                min(math.ceil(y1 - low_y) + 1, height),
            ]
        reach[k] = box if box[0] < box[2] and box[1] < box[3] else 0
    reset_boxes(objects, height, width, boxes, areas, None)


def reset_boxes(
    objects: int,
    height: int,
    width: int,
    boxes: Int32Array,
    areas: Int32Array,
    prob_sums: npt.NDArray[np.uint64] | None,
) -> None:
    """Set boxes, areas and sums to the start values of add_hits."""
    boxes[:objects] = width, height, 0, 0
    areas[:objects] = 0
    if prob_sums is not None:
        prob_sums[:objects] = 0


def rois_from_boxes(
    boxes: Int32Array,
    areas: Int32Array,
    first_areas_px: npt.NDArray[np.float64],
    reach: Int32Array,
    objects: int,
    height: int,
    width: int,
    margin_frac: float,
    margin_px_min: int,
    lost_area_frac: float,
    rois: Int32Array,
    supports: Int32Array,
) -> None:
    """Compute ROIs with their margin; ROIs and bounds of lost objects are empty."""
    for k, (x0, y0, x1, y1) in enumerate(boxes[:objects].tolist()):
        if x1 <= x0 or y1 <= y0 or areas[k] < lost_area_frac * first_areas_px[k]:
            rois[k] = supports[k] = 0
            continue
        margin_x = max(math.floor(margin_frac * (x1 - x0)), margin_px_min)
        margin_y = max(math.floor(margin_frac * (y1 - y0)), margin_px_min)
        rois[k] = (
            max(x0 - margin_x, 0),
            max(y0 - margin_y, 0),
            min(x1 + margin_x, width),
            min(y1 + margin_y, height),
        )
        supports[k] = reach[k]


def clear_lost(rois: Int32Array, objects: int, pixels: int, prob: Float32Array) -> None:
    """Set the planes of lost objects to 0."""
    prob.reshape(objects, pixels)[(rois[:, 2] <= rois[:, 0]) | (rois[:, 3] <= rois[:, 1])] = 0


def add_hits(hits: BoolArray, box: Int32Array, area: Int32Array) -> None:
    """Add the pixels of (H, W) bool to one box and its area."""
    rows, columns = np.nonzero(hits)
    if rows.size:
        box[:2] = np.minimum(box[:2], (columns.min(), rows.min()))
        box[2:] = np.maximum(box[2:], (columns.max() + 1, rows.max() + 1))
        area += rows.size
