"""Boxes, normalisation and frames as the kernels read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from mpn.cuda.array import DeviceArray
from mpn.errors import InputError
from mpn.types import Roi

Dtype = Literal["float32", "float16"]


def box_rows(boxes: Sequence[Roi | None]) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """Boxes as kernels read them: (K, 4) int32 of x0, y0, x1, y1; None is all 0."""
    return np.array(
        [(0, 0, 0, 0) if box is None else box.box_xyxy for box in boxes], np.int32
    ).reshape(-1, 4)


def boxes_from_rows(
    rows: np.ndarray[tuple[int, ...], np.dtype[np.int32]],
) -> tuple[Roi | None, ...]:
    """The inverse of :func:`box_rows`; every empty row is None."""
    return tuple(
        Roi(x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None for x0, y0, x1, y1 in rows.tolist()
    )


def normalisation(mean: Sequence[float], std: Sequence[float]) -> dict[str, float]:
    """(v / 255 - mean) / std as kernel arguments: a gain and an offset for each channel."""
    arguments: dict[str, float] = {}
    for channel, (m, deviation) in enumerate(zip(mean, std, strict=True)):
        arguments[f"gain{channel}"] = 1 / (255 * deviation)
        arguments[f"offset{channel}"] = -m / deviation
    return arguments


def check_rgb_array(rgb: DeviceArray) -> None:
    """Raise InputError unless ``rgb`` is (H, W, 3) uint8."""
    if len(rgb.shape) != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise InputError(f"a frame must be (H, W, 3) uint8 RGB, got {rgb.shape} {rgb.dtype}")
