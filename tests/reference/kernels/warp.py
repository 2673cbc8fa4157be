"""Twins of kernels/warp.cu: see :mod:`tests.reference.kernels`."""

from __future__ import annotations

import numpy as np

from mpn.types import Float32Array
from tests.reference.kernels.boxes import Int32Array, add_hits
from tests.reference.kernels.sampling import confidence as confidence_of
from tests.reference.kernels.sampling import inside
from tests.reference.kernels.sampling import warped as warped_planes


def warp_bilinear(
    prob: Float32Array,
    flow_to_prev_px: Float32Array,
    boxes: Int32Array | None,
    objects: int,
    height: int,
    width: int,
    warped: Float32Array,
) -> None:
    """Planes sampled by the flow inside their boxes, 0 outside."""
    carried = warped_planes(prob, flow_to_prev_px, None, 0, 0)
    for k in range(objects):
        held = True if boxes is None else inside(boxes[k], height, width)
        warped[k] = np.where(held, carried[k], np.float32(0))


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
    """The same with the flow check, and the pixels above the threshold."""
    carried = warped_planes(prob, flow_to_prev_px, flow_from_prev_px, sigma_px, sigma_frac)
    for k in range(objects):
        warped[k] = np.where(inside(reach[k], height, width), carried[k], np.float32(0))
        add_hits(warped[k] > np.float32(threshold), boxes[k], areas[k : k + 1])


def flow_confidence(
    flow_to_prev_px: Float32Array,
    flow_from_prev_px: Float32Array,
    x0: int,
    y0: int,
    box_height: int,
    box_width: int,
    height: int,
    width: int,
    sigma_px: float,
    sigma_frac: float,
    confidence: Float32Array,
) -> None:
    """How far the flow of a box's pixels comes back to where it started."""
    whole = confidence_of(flow_to_prev_px, flow_from_prev_px, sigma_px, sigma_frac)
    confidence[:] = whole[y0 : y0 + box_height, x0 : x0 + box_width]
