"""Reference of kernels/resize.cu: see :mod:`tests.reference.kernels`."""

from __future__ import annotations

import numpy as np

from mpn.types import Float32Array
from tests.reference.kernels.taps import area, linear


def resize_planes(
    planes: Float32Array,
    count: int,
    height: int,
    width: int,
    to_height: int,
    to_width: int,
    resized: Float32Array,
) -> None:
    """Resize by area means if both sides shrink, bilinearly otherwise."""
    shrinks = to_height <= height and to_width <= width
    for k in range(count):
        resized[k] = (area if shrinks else linear)(planes[k], (to_height, to_width))


def resize_flow(
    flow_px: Float32Array,
    height: int,
    width: int,
    to_height: int,
    to_width: int,
    gain_x: float,
    gain_y: float,
    resized_px: Float32Array,
) -> None:
    """Resize flow bilinearly and scale its vectors."""
    for plane, out, gain in zip(flow_px, resized_px, (gain_x, gain_y), strict=True):
        out[:] = linear(plane, (to_height, to_width)) * np.float32(gain)
