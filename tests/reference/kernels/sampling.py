"""Reference of kernels/sampling.cuh: sample positions and samples of a warp."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpn.types import BoolArray, Float32Array

_HALF = np.float32(-0.5)


def positions(flow_px: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Compute sample positions: (2, H, W) float32 -> x and y, each (H, W) float32.

    Positions are limited to one pixel outside the frame, and so are values that are not finite.
    All taps of such a position count as 0.
    """
    height, width = flow_px.shape[1:]
    x = flow_px[0] + np.arange(width, dtype=np.float32)
    y = flow_px[1] + np.arange(height, dtype=np.float32)[:, None]
    is_valid = np.isfinite(x) & np.isfinite(y)
    x, y = (np.where(is_valid, at, np.float32(-1)) for at in (x, y))
    return np.clip(x, -1, width), np.clip(y, -1, height)


def sampled(
    plane: Float32Array, x: Float32Array, y: Float32Array, *, repeats_border: bool
) -> Float32Array:
    """Sample (H, W) float32 bilinearly.

    Taps outside count as 0, or as the nearest pixel if ``repeats_border``.
    """
    height, width = plane.shape
    left, upper = np.floor(x), np.floor(y)
    part_x, part_y = x - left, y - upper
    columns, rows = left.astype(np.int64), upper.astype(np.int64)

    def tap(row: npt.NDArray[np.int64], column: npt.NDArray[np.int64]) -> Float32Array:
        value: Float32Array = plane[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
        if repeats_border:
            return value
        inside: BoolArray = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        return np.where(inside, value, np.float32(0))

    one = np.float32(1)
    top = tap(rows, columns) * (one - part_x) + tap(rows, columns + 1) * part_x
    bottom = tap(rows + 1, columns) * (one - part_x) + tap(rows + 1, columns + 1) * part_x
    blended: Float32Array = top * (one - part_y) + bottom * part_y
    return blended


def confidence(
    flow_to_prev_px: Float32Array,
    flow_from_prev_px: Float32Array,
    sigma_px: float,
    sigma_frac: float,
) -> Float32Array:
    """Compute flow_confidence of the host for whole frames: (H, W) float32."""
    x, y = positions(flow_to_prev_px)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        trip_x, trip_y = (
            there + sampled(back, x, y, repeats_border=True)
            for there, back in zip(flow_to_prev_px, flow_from_prev_px, strict=True)
        )
        length = np.sqrt(flow_to_prev_px[0] ** 2 + flow_to_prev_px[1] ** 2)
        sigma = length * np.float32(sigma_frac) + np.float32(sigma_px)
        miss = np.sqrt(trip_x * trip_x + trip_y * trip_y) / sigma
        weight: Float32Array = np.exp(miss * miss * _HALF)
    return np.where(np.isfinite(weight), weight, np.float32(0))


def warped(
    prob: Float32Array,
    flow_to_prev_px: Float32Array,
    flow_from_prev_px: Float32Array | None,
    sigma_px: float,
    sigma_frac: float,
) -> Float32Array:
    """Warp probabilities and weight them by the flow check: (K, H, W) float32."""
    x, y = positions(flow_to_prev_px)
    carried = np.stack([sampled(plane, x, y, repeats_border=False) for plane in prob])
    if flow_from_prev_px is not None:
        carried *= confidence(flow_to_prev_px, flow_from_prev_px, sigma_px, sigma_frac)
    return carried


def inside(box: npt.NDArray[np.int32], height: int, width: int) -> BoolArray:
    """Return (H, W) bool, true inside a box of x0, y0, x1, y1."""
    x0, y0, x1, y1 = (int(side) for side in box)
    held = np.zeros((height, width), np.bool_)
    held[y0:y1, x0:x1] = True
    return held
