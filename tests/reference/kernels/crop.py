"""Reference of kernels/crop.cu: see :mod:`tests.reference.kernels`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mpn.types import Float32Array, UInt8Array
from tests.reference.kernels.boxes import Int32Array
from tests.reference.kernels.taps import linear


def crop_pack_f32(
    rgb: UInt8Array,
    prob: Float32Array,
    rois: Int32Array,
    objects: Int32Array | None,
    slots: int,
    channels: int,
    height: int,
    width: int,
    size: int,
    gain0: float,
    gain1: float,
    gain2: float,
    offset0: float,
    offset1: float,
    offset2: float,
    packed: npt.NDArray[Any],
) -> None:
    """Resize normalised RGB and probability of each ROI; zeros if it is empty."""
    gains, offsets = (gain0, gain1, gain2), (offset0, offset1, offset2)
    for slot in range(slots):
        k = slot if objects is None else int(objects[slot])
        x0, y0, x1, y1 = (int(side) for side in rois[k])
        if x1 <= x0 or y1 <= y0:
            packed[slot, :4] = 0
            continue
        box = (slice(y0, y1), slice(x0, x1))
        for c in range(3):
            levels = linear(rgb[(*box, c)], (size, size))
            packed[slot, c] = levels * np.float32(gains[c]) + np.float32(offsets[c])
        packed[slot, 3] = linear(prob[k][box], (size, size))


crop_pack_f16 = crop_pack_f32
