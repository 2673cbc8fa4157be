"""Reference of kernels/warp.cu: see :mod:`tests.reference.kernels`."""

from __future__ import annotations

import numpy as np

from mpn.types import Float32Array
from tests.reference.kernels.boxes import Int32Array, add_hits
from tests.reference.kernels.sampling import inside
from tests.reference.kernels.sampling import warped as warped_planes


def warp_box(
    prob: Float32Array,
    flow_to_prev_px: Float32Array,
    flow_from_prev_px: Float32Array | None,
    reach: Int32Array,
    objects: int,
    height: int,
    width: int,
    sigma_px: float,
    sigma_frac: float,
    threshold: float,
    warped: Float32Array,
    boxes: Int32Array,
    areas: Int32Array,
) -> None:
    """Warp planes inside their bounds, apply the flow check, and add the boxes."""
    carried = warped_planes(prob, flow_to_prev_px, flow_from_prev_px, sigma_px, sigma_frac)
    for k in range(objects):
        warped[k] = np.where(inside(reach[k], height, width), carried[k], np.float32(0))
        add_hits(warped[k] > np.float32(threshold), boxes[k], areas[k : k + 1])
