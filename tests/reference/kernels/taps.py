"""Reference of kernels/taps.cuh: the resizing of OpenCV 5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpn.types import Float32Array

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Taps:
    """Two source indices per target index, and the weight of the second."""

    low: Int64Array
    high: Int64Array
    part: Float32Array


def taps(from_size: int, to_size: int, *, is_row: bool) -> Taps:
    """Compute taps with half-pixel centres.

    At the border, columns have one tap of weight 1, and rows have the same tap twice.
    """
    scale = from_size / to_size
    position = (np.arange(to_size) + 0.5) * scale - 0.5
    floor = np.floor(position)
    low = floor.astype(np.int64)
    part = (position - floor).astype(np.float32)
    if not is_row:
        part = np.where((low < 0) | (low >= from_size - 1), np.float32(0), part)
    high = np.clip(low + 1, 0, from_size - 1)
    return Taps(np.clip(low, 0, from_size - 1), high, part)


def linear(plane: npt.NDArray[Any], to_hw: tuple[int, int]) -> Float32Array:
    """Resize (H, W) of numbers bilinearly to ``to_hw`` float32."""
    rows = taps(plane.shape[0], to_hw[0], is_row=True)
    columns = taps(plane.shape[1], to_hw[1], is_row=False)
    source = plane.astype(np.float32)
    one = np.float32(1)
    across = source[:, columns.low] * (one - columns.part) + source[:, columns.high] * columns.part
    part = rows.part[:, None]
    resized: Float32Array = across[rows.low] * (one - part) + across[rows.high] * part
    return resized


def linear_levels(plane: npt.NDArray[np.uint8], to_hw: tuple[int, int]) -> Int64Array:
    """Resize (H, W) uint8 bilinearly in OpenCV's fixed point of 11 bits."""
    rows = taps(plane.shape[0], to_hw[0], is_row=True)
    columns = taps(plane.shape[1], to_hw[1], is_row=False)
    right, lower = (np.rint(axis.part * 2048).astype(np.int64) for axis in (columns, rows))
    left, upper = (
        np.rint((1 - axis.part) * np.float32(2048)).astype(np.int64) for axis in (columns, rows)
    )
    source = plane.astype(np.int64)
    across = (source[:, columns.low] * left + source[:, columns.high] * right) >> 4
    top = (upper[:, None] * across[rows.low]) >> 16
    bottom = (lower[:, None] * across[rows.high]) >> 16
    levels: Int64Array = (top + bottom + 2) >> 2
    return levels


def area(plane: npt.NDArray[Any], to_hw: tuple[int, int]) -> Float32Array:
    """Resize (H, W) of numbers to ``to_hw`` float32 by means over target pixels."""
    across = _covered(plane.astype(np.float32).T, to_hw[1]).T
    return _covered(across, to_hw[0])


def area_levels(plane: npt.NDArray[np.uint8], to_hw: tuple[int, int]) -> Int64Array:
    """Resize (H, W) uint8 by area means, with the rounding of OpenCV."""
    height, width = plane.shape
    if height % to_hw[0] or width % to_hw[1]:
        return np.clip(np.rint(area(plane, to_hw)), 0, 255).astype(np.int64)
    rows, columns = height // to_hw[0], width // to_hw[1]
    sums = plane.astype(np.int64).reshape(to_hw[0], rows, to_hw[1], columns).sum(axis=(1, 3))
    levels: Int64Array = (sums + 2) >> 2
    if not rows == columns == 2:
        mean = sums.astype(np.float32) * np.float32(1 / (rows * columns))
        levels = np.rint(mean).astype(np.int64)
    return levels


def _covered(values: Float32Array, to_size: int) -> Float32Array:
    """Compute weighted sums over the first axis, in ascending order of the source."""
    from_size = len(values)
    scale = from_size / to_size
    summed = np.zeros((to_size, *values.shape[1:]), np.float32)
    for to in range(to_size):
        start, stop = to * scale, (to + 1) * scale
        width = min(scale, from_size - start)
        for at in range(max(int(start), 0), min(int(np.ceil(stop)), from_size)):
            share = min(at + 1, stop) - max(at, start)
            if share > 1e-3:  # OpenCV ignores smaller shares
                summed[to] += values[at] * np.float32(share / width)
    return summed
