"""Corrupt the first mask of an augmented clip with typical propagation errors."""

from __future__ import annotations

import cv2
import numpy as np

from mpn.runtime.finetune.augment.motion import smooth_field
from mpn.runtime.host.roi import box_from_prob
from mpn.types import BoolArray, Float32Array, Roi

_BEND_FRAC = 0.08
_SHIFT_FRAC = 0.06
"""Shares of the box, as in the mask deformation of MaskTrack (F. Perazzi et al., CVPR 2017)."""
_BLOBS_MAX = 2
_LOST_FRAC = (0.05, 0.30)
_LEAK_FRAC = (0.05, 0.25)
_LEAK_REACH_FRAC = 0.2
_BLUR_SIGMA_PX = (1.0, 6.0)
_EDGE_FRAC = 1 / 12


def corrupt_mask(
    prob: Float32Array, rng: np.random.Generator, *, half_share: float
) -> Float32Array:
    """Deform a mask, remove and add parts, and soften or move its outline.

    Args:
        prob: (H, W) float32, 0..1; returned unchanged if no value is above 0.5.
        rng: Source of randomness.
        half_share: Share of masks that lose about half of the object, as after an occlusion.

    Returns:
        (H, W) float32, 0..1.
    """
    box = box_from_prob(prob, 0.5)
    if box is None:
        return prob
    height, width = box.size_hw
    side_px = float(np.sqrt(height * width))
    if rng.random() < 0.6:
        prob = _deform(prob, rng, box, side_px)
    for _ in range(int(rng.integers(0, _BLOBS_MAX + 1))):
        prob = prob * (1 - _blob(prob.shape, rng, box, side_px, _LOST_FRAC, reach_frac=0.0))
    for _ in range(int(rng.integers(0, _BLOBS_MAX + 1))):
        leak = _blob(prob.shape, rng, box, side_px, _LEAK_FRAC, reach_frac=_LEAK_REACH_FRAC)
        prob = np.maximum(prob, leak * np.float32(rng.uniform(0.5, 1)))
    if rng.random() < half_share:
        prob = prob * _half_plane(prob.shape, rng, box)
    if rng.random() < 0.4:
        prob = cv2.GaussianBlur(prob, (0, 0), rng.uniform(*_BLUR_SIGMA_PX))
    if rng.random() < 0.3:
        size = int(rng.integers(2, max(3, round(side_px * _EDGE_FRAC)) + 1))
        prob = (cv2.erode if rng.random() < 0.5 else cv2.dilate)(
            prob, np.ones((size, size), np.uint8)
        )
    return np.ascontiguousarray(prob, dtype=np.float32)


def _deform(prob: Float32Array, rng: np.random.Generator, box: Roi, side_px: float) -> Float32Array:
    cells = int(rng.integers(4, 9))
    bend = smooth_field(rng, prob.shape, cells, 2) * np.float32(
        rng.uniform(0, _BEND_FRAC) * side_px
    )
    height, width = box.size_hw
    shift_x, shift_y = rng.uniform(-_SHIFT_FRAC, _SHIFT_FRAC, 2) * (width, height)
    columns = np.arange(prob.shape[1], dtype=np.float32)[None, :]
    rows = np.arange(prob.shape[0], dtype=np.float32)[:, None]
    deformed: Float32Array = cv2.remap(
        prob,
        bend[0] + columns + np.float32(shift_x),
        bend[1] + rows + np.float32(shift_y),
        cv2.INTER_LINEAR,
    )
    return deformed


def _blob(
    size_hw: tuple[int, ...],
    rng: np.random.Generator,
    box: Roi,
    side_px: float,
    radius_frac: tuple[float, float],
    *,
    reach_frac: float,
) -> Float32Array:
    """Draw an ellipse of ones; its centre is at most ``reach_frac`` outside the box."""
    height, width = box.size_hw
    centre_x = rng.uniform(box.x0 - reach_frac * width, box.x1 + reach_frac * width)
    centre_y = rng.uniform(box.y0 - reach_frac * height, box.y1 + reach_frac * height)
    radii = rng.uniform(*radius_frac) * side_px * rng.uniform(0.5, 1, 2)
    canvas = np.zeros(size_hw, np.float32)
    cv2.ellipse(
        canvas,
        (round(centre_x), round(centre_y)),
        (max(round(radii[0]), 1), max(round(radii[1]), 1)),
        rng.uniform(0, 180),
        0,
        360,
        1.0,
        -1,
    )
    return canvas


def _half_plane(size_hw: tuple[int, ...], rng: np.random.Generator, box: Roi) -> BoolArray:
    """Return a mask of one side of a line through the middle half of the box."""
    height, width = box.size_hw
    angle = rng.uniform(0, 2 * np.pi)
    across = (np.arange(size_hw[1]) - (box.x0 + box.x1) / 2)[None, :] * np.cos(angle) / width
    down = (np.arange(size_hw[0]) - (box.y0 + box.y1) / 2)[:, None] * np.sin(angle) / height
    kept: BoolArray = across + down < rng.uniform(-0.25, 0.3)
    return kept
