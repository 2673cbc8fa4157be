"""Reference of kernels/target.cu: see :mod:`tests.reference.kernels`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mpn.types import Float32Array
from tests.reference.kernels.boxes import Int32Array
from tests.reference.kernels.sampling import positions, sampled

_HALF, _STRIDE = np.float32(0.5), np.float32(8)
_SLICES = 8


def target_scores_f32(
    features: npt.NDArray[Any],
    weights: Float32Array,
    biases: Float32Array,
    objects: int,
    channels: int,
    points: int,
    scores: Float32Array,
) -> None:
    """Compute sigmoid(weights @ features + biases), added in the kernel's order."""
    flat = features.reshape(channels, points).astype(np.float32)
    for k in range(objects):
        logits = np.zeros(points, np.float32)
        for first in range(_SLICES):
            part = np.zeros(points, np.float32)
            for channel in range(first, channels, _SLICES):
                part += weights[k, channel] * flat[channel]
            logits += part
        logits = np.fmin(np.fmax(logits + biases[k], np.float32(-30)), np.float32(30))
        scores[k] = (np.float32(1) / (np.float32(1) + np.exp(-logits))).reshape(scores[k].shape)


target_scores_f16 = target_scores_f32


def warp_scores(
    scores: Float32Array,
    flow_to_prev_px: Float32Array,
    objects: int,
    height: int,
    width: int,
    grid_height: int,
    grid_width: int,
    scale_x: float,
    scale_y: float,
    step_x: float,
    step_y: float,
    warped: Float32Array,
) -> None:
    """Sample the flow at the grid points, and the scores by it."""
    rows = _frame_from_grid(grid_height, scale_y)
    columns = _frame_from_grid(grid_width, scale_x)
    steps = (np.float32(step_x), np.float32(step_y))
    flow = np.stack(
        [
            _at(plane, rows, columns) * step
            for plane, step in zip(flow_to_prev_px, steps, strict=True)
        ]
    )
    x, y = positions(flow)
    for k in range(objects):
        warped[k] = sampled(scores[k], x, y, repeats_border=False)


def exclude_others(
    scores: Float32Array,
    prob: Float32Array,
    objects: int,
    height: int,
    width: int,
    grid_height: int,
    grid_width: int,
    scale_x: float,
    scale_y: float,
    exclusive: Float32Array,
) -> None:
    """Multiply each score by 1 - the largest probability of the other objects."""
    rows, columns = _frame_from_grid(grid_height, scale_y), _frame_from_grid(grid_width, scale_x)
    at_points = np.stack([_at(prob[k], rows, columns) for k in range(objects)])
    for k in range(objects):
        others = np.delete(at_points, k, axis=0).max(axis=0, initial=0)
        exclusive[k] = scores[k] * (np.float32(1) - others)


def grow_rois(
    scores: Float32Array,
    objects: int,
    height: int,
    width: int,
    grid_height: int,
    grid_width: int,
    scale_x: float,
    scale_y: float,
    cell_x: float,
    cell_y: float,
    growth: float,
    rois: Int32Array,
) -> None:
    """Extend each ROI to one cell around the points above 0.5 within its reach."""
    columns, rows = _frame_from_grid(grid_width, scale_x), _frame_from_grid(grid_height, scale_y)
    for k in range(objects):
        x0, y0, x1, y1 = (int(side) for side in rois[k])
        if x1 <= x0 or y1 <= y0:
            continue
        reach_x, reach_y = np.floor(growth * (x1 - x0)), np.floor(growth * (y1 - y0))
        is_near = ((rows >= y0 - reach_y) & (rows < y1 + reach_y))[:, None]
        is_near = is_near & (columns >= x0 - reach_x) & (columns < x1 + reach_x)
        i, j = np.nonzero(is_near & (scores[k] > _HALF))
        if len(i) == 0:
            continue
        x, y = columns[j], rows[i]
        low_x, low_y = (
            np.floor(x.min() - np.float32(cell_x)),
            np.floor(y.min() - np.float32(cell_y)),
        )
        high_x, high_y = (
            np.ceil(x.max() + np.float32(cell_x)),
            np.ceil(y.max() + np.float32(cell_y)),
        )
        rois[k] = (
            min(max(low_x, 0), x0),
            min(max(low_y, 0), y0),
            max(min(high_x, width), x1),
            max(min(high_y, height), y1),
        )


def crop_scores_f32(
    scores: Float32Array | None,
    rois: Int32Array,
    objects: Int32Array | None,
    slots: int,
    channels: int,
    grid_height: int,
    grid_width: int,
    scale_x: float,
    scale_y: float,
    size: int,
    packed: npt.NDArray[Any],
) -> None:
    """Write the last channel: scores, 0.5 without them, 0 if the ROI is empty."""
    centres = np.arange(size, dtype=np.float32) + _HALF
    for slot in range(slots):
        k = slot if objects is None else int(objects[slot])
        x0, y0, x1, y1 = (int(side) for side in rois[k])
        if x1 <= x0 or y1 <= y0:
            packed[slot, channels - 1] = 0
            continue
        if scores is None:
            packed[slot, channels - 1] = _HALF
            continue
        rows, columns = (
            _grid_from_frame(
                np.float32(first - 0.5) + centres * np.float32((last - first) / size), scale
            )
            for first, last, scale in ((y0, y1, scale_y), (x0, x1, scale_x))
        )
        packed[slot, channels - 1] = _at(scores[k], rows, columns)


crop_scores_f16 = crop_scores_f32


def scores_at_frame(
    scores: Float32Array,
    objects: int,
    grid_height: int,
    grid_width: int,
    scale_x: float,
    scale_y: float,
    height: int,
    width: int,
    planes: Float32Array,
) -> None:
    """Resample the scores to the pixels of the frame."""
    rows = _grid_from_frame(np.arange(height, dtype=np.float32), scale_y)
    columns = _grid_from_frame(np.arange(width, dtype=np.float32), scale_x)
    for k in range(objects):
        planes[k] = _at(scores[k], rows, columns)


def _grid_from_frame(pixels: Float32Array, scale: float) -> Float32Array:
    on_grid: Float32Array = ((pixels + _HALF) * np.float32(scale) - _HALF) / _STRIDE
    return on_grid


def _frame_from_grid(count: int, scale: float) -> Float32Array:
    points = np.arange(count, dtype=np.float32)
    pixels: Float32Array = (points * _STRIDE + _HALF) * np.float32(scale) - _HALF
    return pixels


def _at(plane: Float32Array, rows: Float32Array, columns: Float32Array) -> Float32Array:
    """Sample a plane at all pairs of a row and a column, its border repeated."""
    x, y = np.meshgrid(columns, rows)
    return sampled(plane, x, y, repeats_border=True)
