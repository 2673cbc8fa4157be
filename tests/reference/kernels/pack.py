"""Reference of kernels/pack.cu: see :mod:`tests.reference.kernels`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mpn.types import UInt8Array
from tests.reference.kernels.taps import area_levels, linear_levels


def pack_rgb_f32(
    rgb: UInt8Array,
    height: int,
    width: int,
    to_height: int,
    to_width: int,
    is_bgr: int,
    gain0: float,
    gain1: float,
    gain2: float,
    offset0: float,
    offset1: float,
    offset2: float,
    planes: npt.NDArray[Any],
) -> None:
    """Resize and normalise each channel: levels times gain plus offset."""
    levels = _levels(rgb, (to_height, to_width))
    gains, offsets = (gain0, gain1, gain2), (offset0, offset1, offset2)
    out = planes.reshape(3, to_height, to_width)
    for c in range(3):
        channel = levels[..., 2 - c if is_bgr else c].astype(np.float32)
        out[c] = channel * np.float32(gains[c]) + np.float32(offsets[c])


pack_rgb_f16 = pack_rgb_f32


def pack_rgb_same_f32(
    rgb: UInt8Array,
    pixels: int,
    is_bgr: int,
    gain0: float,
    gain1: float,
    gain2: float,
    offset0: float,
    offset1: float,
    offset2: float,
    planes: npt.NDArray[Any],
) -> None:
    """Normalise as pack_rgb_f32 without a resize."""
    gains, offsets = (gain0, gain1, gain2), (offset0, offset1, offset2)
    row, out = rgb.reshape(1, pixels, 3), planes.reshape(3, 1, pixels)
    pack_rgb_f32(row, 1, pixels, 1, pixels, is_bgr, *gains, *offsets, out)


pack_rgb_same_f16 = pack_rgb_same_f32


def resize_rgb(
    rgb: UInt8Array, height: int, width: int, to_height: int, to_width: int, resized: UInt8Array
) -> None:
    """Resize by area means if both sides shrink, bilinearly otherwise."""
    resized[:] = _levels(rgb, (to_height, to_width))


def _levels(rgb: UInt8Array, to_hw: tuple[int, int]) -> npt.NDArray[Any]:
    height, width = rgb.shape[:2]
    if (height, width) == to_hw:
        return rgb
    resize = area_levels if to_hw[0] <= height and to_hw[1] <= width else linear_levels
    return np.stack([resize(rgb[..., c], to_hw) for c in range(3)], axis=-1)
