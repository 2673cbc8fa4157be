"""Reference of kernels/osvos.cu: see :mod:`tests.reference.kernels`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpn.types import Float32Array
from tests.reference.kernels.boxes import Int32Array

_FIXED_ONE = np.float32(2**24)
_LARGEST_RATIO = np.float32(2)


def shift_odds(pixels: int, less: float, plane: Float32Array) -> None:
    """Multiply the odds by ``less`` in place."""
    share, flat = np.float32(less), plane.reshape(pixels)
    flat[:] = share * flat / (share * flat + (1 - flat))


def osvos_agreement(
    candidates: Float32Array,
    planes: Float32Array,
    plane_of: Int32Array,
    bins: npt.NDArray[np.uint16],
    tables: Float32Array,
    objects: int,
    pixels: int,
    threshold: float,
    sums: npt.NDArray[np.uint64],
) -> None:
    """Sum pixels, OSVOS probability and colour likelihood per object, in 2^-24."""
    for k in range(objects):
        if plane_of[k] < 0:
            continue
        mask = candidates[k].reshape(pixels) > np.float32(threshold)
        plane = planes[plane_of[k]].reshape(pixels)[mask]
        ratio = tables[k][bins.reshape(pixels)[mask]] + _LARGEST_RATIO
        sums[k, 0] += np.uint64(np.count_nonzero(mask))
        for column, values in ((1, plane), (2, ratio)):
            fixed = (values * _FIXED_ONE + np.float32(0.5)).astype(np.uint64)
            sums[k, column] += fixed.sum(dtype=np.uint64)
