"""What the colour kernels read beside the frame: OpenCV's 8-bit CIE Lab as tables, and the blur.

The kernels use OpenCV's own fixed point, so that every one of the 2^24 colours falls into the bin
that ``cv2.cvtColor`` puts it into, and a table made on the CPU is read right on the device.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from mpn.types import Float32Array

GAMMA_LEVELS: Final = 256
CUBE_ROOTS: Final = 3072
"""One and a half times 255 << 3: XYZ over the white point stays below that."""

_GAMMA_SCALE = 255 * 8
_ROOT_SCALE = 1 << 15
_BLUR_SIGMA_PX = 2.0
"""As in mpn.runtime.colour."""
_BLUR_TAPS = 17
"""What cv2.GaussianBlur takes for this sigma on float32: round(8 sigma + 1), made odd."""


def gamma_table() -> npt.NDArray[np.uint16]:
    """Linear light of sRGB levels: (256,) uint16, in 1/8 of a level (IEC 61966-2-1)."""
    level = np.arange(GAMMA_LEVELS) / 255
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    table: npt.NDArray[np.uint16] = np.rint(_GAMMA_SCALE * linear).astype(np.uint16)
    return table


def cube_root_table() -> npt.NDArray[np.uint16]:
    """f(t) of CIE Lab: (3072,) uint16, in 2^-15, of t in 1/2040.

    The cube root is rounded to float32 first, as OpenCV does it: in exact arithmetic three entries
    would differ by one.
    """
    t = np.arange(CUBE_ROOTS) / _GAMMA_SCALE
    root = np.cbrt(t).astype(np.float32)
    value = np.where(t < 0.008856, t * 7.787 + 16 / 116, root)
    table: npt.NDArray[np.uint16] = np.rint(_ROOT_SCALE * value).astype(np.uint16)
    return table


def blur_taps() -> Float32Array:
    """The Gaussian that :func:`mpn.runtime.colour.weigh_by_colour` blurs with: (17,) float32."""
    taps: Float32Array = cv2.getGaussianKernel(_BLUR_TAPS, _BLUR_SIGMA_PX, cv2.CV_32F).ravel()
    return taps
