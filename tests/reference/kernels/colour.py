"""Reference of kernels/colour.cu: see :mod:`tests.reference.kernels`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpn.types import Float32Array, UInt8Array
from tests.reference.kernels.boxes import Int32Array, add_hits
from tests.reference.kernels.sampling import warped as warped_planes

UInt16Array = npt.NDArray[np.uint16]

_MATRIX = np.array([[1777, 1541, 778], [871, 2929, 296], [73, 448, 3575]])
_CERTAIN = np.float32(1e-3)
_NOTHING = np.float32(0.01)


def colour_bins(
    rgb: UInt8Array, pixels: int, gamma: UInt16Array, cube_root: UInt16Array, bins: UInt16Array
) -> None:
    """Compute the bin of each pixel's colour in OpenCV's 8-bit Lab."""
    linear = gamma[rgb.reshape(pixels, 3)].astype(np.int64)
    root = cube_root[_rounded(linear @ _MATRIX.T, 12)].astype(np.int64)
    lightness = _rounded(
        (116 * 255 + 50) // 100 * root[:, 1] - ((16 * 255 * 2**15 + 50) // 100), 15
    )
    a_star = _rounded(500 * (root[:, 0] - root[:, 1]) + 128 * 2**15, 15)
    b_star = _rounded(200 * (root[:, 1] - root[:, 2]) + 128 * 2**15, 15)
    a_bin, b_bin = (np.clip(level - 64, 0, 127) // 4 for level in (a_star, b_star))
    found = (np.clip(lightness, 0, 255) // 32 * 32 + a_bin) * 32 + b_bin
    bins.reshape(pixels)[:] = found


def warp_colour_box(
    prob: Float32Array,
    flow_to_prev_px: Float32Array,
    flow_from_prev_px: Float32Array | None,
    reach: Int32Array,
    bins: UInt16Array,
    tables: Float32Array,
    blur: Float32Array,
    objects: int,
    height: int,
    width: int,
    sigma_px: float,
    sigma_frac: float,
    weight: float,
    threshold: float,
    warped: Float32Array,
    boxes: Int32Array,
    areas: Int32Array,
) -> None:
    """Warp as warp_box and weight by the colour likelihood after the flow check."""
    carried = warped_planes(prob, flow_to_prev_px, flow_from_prev_px, sigma_px, sigma_frac)
    warped[:] = 0
    for k in range(objects):
        x0, y0, x1, y1 = (int(side) for side in reach[k])
        if x1 <= x0 or y1 <= y0:
            continue
        box = (slice(y0, y1), slice(x0, x1))
        ratio = _blurred(_blurred(tables[k][bins.reshape(height, width)[box]], blur).T, blur).T
        certain = np.clip(carried[k][box], _CERTAIN, 1 - _CERTAIN)
        odds = certain / (1 - certain) * np.exp(np.float32(weight) * ratio)
        value = odds / (1 + odds)
        warped[k][box] = np.where(value >= _NOTHING, value, 0)
        add_hits(warped[k] > np.float32(threshold), boxes[k], areas[k : k + 1])


def _rounded(value: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.int64]:
    shifted: npt.NDArray[np.int64] = (value + 2 ** (bits - 1)) >> bits
    return shifted


def _blurred(values: Float32Array, taps: Float32Array) -> Float32Array:
    """Blur rows; the border is reflected about its pixel."""
    reach = len(taps) // 2
    padded = np.pad(values, ((0, 0), (reach, reach)), mode="reflect")
    blurred = np.zeros_like(values)
    for i, tap in enumerate(taps):
        blurred += tap * padded[:, i : i + values.shape[1]]
    return blurred
