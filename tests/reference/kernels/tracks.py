"""Reference of kernels/tracks.cu: see :mod:`tests.reference.kernels`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpn.types import Float32Array, UInt8Array
from tests.reference.kernels.boxes import Int32Array, add_hits

_FIXED_ONE = np.float32(2**24)


def track_stats(
    labels: UInt8Array,
    prob: Float32Array,
    object_ids: UInt8Array,
    objects: int,
    height: int,
    width: int,
    boxes: Int32Array,
    areas: Int32Array,
    prob_sums: npt.NDArray[np.uint64],
) -> None:
    """Add box, area and summed probability (in 2^-24) of each object's pixels."""
    for k in range(objects):
        mask = labels.reshape(height, width) == object_ids[k]
        add_hits(mask, boxes[k], areas[k : k + 1])
        fixed = (prob[k][mask] * _FIXED_ONE + np.float32(0.5)).astype(np.uint64)
        prob_sums[k] += fixed.sum(dtype=np.uint64)
