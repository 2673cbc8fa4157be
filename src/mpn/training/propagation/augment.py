"""Corruption of masks, probabilities and colours while training.

The mask deformation follows MaskTrack (F. Perazzi et al., "Learning Video Object Segmentation from
Static Images", CVPR 2017). Contour points are jittered by up to 10 % of the box and interpolated by
a thin plate spline; the box is scaled by up to 5 % and shifted by up to 10 %.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from scipy.interpolate import RBFInterpolator

from mpn.types import BoolArray, Float32Array, UInt8Array

_CONTOUR_POINTS = 5
_JITTER_FRAC = 0.10
_SCALE_FRAC = 0.05
_SHIFT_FRAC = 0.10
_SPLINE_GRID = 24
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of R, G and B in the luma of ITU-R BT.601."""


def deform_mask(mask: BoolArray, rng: np.random.Generator) -> BoolArray:
    """Bend, scale and shift a mask like an inaccurate previous mask.

    Args:
        mask: (H, W) bool; an empty mask is returned unchanged.
        rng: Source of randomness.

    Returns:
        (H, W) bool.
    """
    ys, xs = np.nonzero(mask)
    if len(xs) < 16:
        return mask
    height, width = mask.shape
    x0, x1, y0, y1 = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
    box_wh = np.array([x1 - x0, y1 - y0], np.float64)
    centre = np.array([x0 + x1, y0 + y1]) / 2
    # Crop with padding first: the spline is evaluated on a coarse grid over the crop.
    pad = np.ceil(0.35 * box_wh).astype(int) + 2
    left, right = max(x0 - pad[0], 0), min(x1 + pad[0], width)
    top, bottom = max(y0 - pad[1], 0), min(y1 + pad[1], height)
    crop = mask[top:bottom, left:right].astype(np.uint8)

    contours, _ = cv2.findContours(crop, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    contour = max(contours, key=len)[:, 0, :].astype(np.float64)
    picks = contour[rng.choice(len(contour), _CONTOUR_POINTS, replace=len(contour) < 8)]
    picks = picks + rng.uniform(-0.01, 0.01, picks.shape)  # no two control points coincide
    moved = picks + rng.uniform(-_JITTER_FRAC, _JITTER_FRAC, picks.shape) * box_wh
    corners = np.array(
        [[x, y] for x in (0.0, crop.shape[1] - 1.0) for y in (0.0, crop.shape[0] - 1.0)]
    )
    spline = RBFInterpolator(
        np.vstack([moved, corners]),
        np.vstack([picks - moved, np.zeros_like(corners)]),
        kernel="thin_plate_spline",
        smoothing=1e-6,
    )
    grid_y, grid_x = np.mgrid[
        0 : crop.shape[0] - 1 : _SPLINE_GRID * 1j, 0 : crop.shape[1] - 1 : _SPLINE_GRID * 1j
    ]
    shift = spline(np.stack([grid_x.ravel(), grid_y.ravel()], axis=1)).astype(np.float32)
    size = (crop.shape[1], crop.shape[0])
    bend_x, bend_y = (
        cv2.resize(shift[:, k].reshape(_SPLINE_GRID, _SPLINE_GRID), size) for k in range(2)
    )
    scale = 1 + rng.uniform(-_SCALE_FRAC, _SCALE_FRAC, 2)
    offset = rng.uniform(-_SHIFT_FRAC, _SHIFT_FRAC, 2) * box_wh
    middle = centre - (left, top)
    ys_out, xs_out = np.mgrid[: crop.shape[0], : crop.shape[1]].astype(np.float32)
    map_x = (xs_out - middle[0] - offset[0]) / scale[0] + middle[0] + bend_x
    map_y = (ys_out - middle[1] - offset[1]) / scale[1] + middle[1] + bend_y
    warped = cv2.remap(
        crop * 255, map_x.astype(np.float32), map_y.astype(np.float32), cv2.INTER_LINEAR
    )
    out = np.zeros_like(mask)
    out[top:bottom, left:right] = warped > 127
    return out


def degrade_prob(
    prob: Float32Array, rng: np.random.Generator, *, share: float = 0.3
) -> Float32Array:
    """Corrupt a warped probability: missing parts, leaks, blur, shift.

    Args:
        prob: (S, S) float32 in 0..1.
        rng: Source of randomness.
        share: Share of calls that may change anything; a sixth of them draws no corruption.

    Returns:
        (S, S) float32 in 0..1.
    """
    side = prob.shape[0]
    if rng.random() < 1 - share:
        return prob
    out = prob
    if rng.random() < 0.4:
        shift = rng.uniform(-0.07, 0.07, 2) * side
        scale = 1 + rng.uniform(-0.08, 0.08, 2)
        matrix = np.array(
            [
                [scale[0], 0, shift[0] + (1 - scale[0]) * side / 2],
                [0, scale[1], shift[1] + (1 - scale[1]) * side / 2],
            ]
        )
        out = cv2.warpAffine(out, matrix, (side, side), flags=cv2.INTER_LINEAR)
    if rng.random() < 0.3:
        out = out * (1 - _ellipse(side, rng, 0.05, 0.22))
    if rng.random() < 0.3:
        out = np.maximum(out, _ellipse(side, rng, 0.04, 0.18) * np.float32(rng.uniform(0.4, 1)))
    if rng.random() < 0.3:
        size = int(rng.integers(2, max(3, side // 20)))
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
        out = (cv2.erode if rng.random() < 0.5 else cv2.dilate)(out, kernel)
    if rng.random() < 0.3:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.5, 4.0))
    return np.ascontiguousarray(out, dtype=np.float32)


def _ellipse(side: int, rng: np.random.Generator, smallest: float, largest: float) -> Float32Array:
    canvas = np.zeros((side, side), np.float32)
    centre = rng.uniform(0.1, 0.9, 2) * side
    axes = rng.uniform(smallest, largest, 2) * side
    cv2.ellipse(
        canvas,
        (int(centre[0]), int(centre[1])),
        (max(int(axes[0]), 1), max(int(axes[1]), 1)),
        float(rng.uniform(0, 180)),
        0,
        360,
        1.0,
        -1,
    )
    return canvas


class ColourShift:
    """Photometric change that is constant over a rollout.

    Args:
        rng: Source of randomness.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.gain = rng.uniform(0.75, 1.25) * rng.uniform(0.92, 1.08, 3)
        self.offset = rng.uniform(-25, 25)
        self.saturation = rng.uniform(0.5, 1.4) if rng.random() < 0.9 else 0.0
        self.gamma = float(np.exp(rng.uniform(-0.25, 0.25)))
        self.blur_px = float(rng.uniform(0.4, 1.2)) if rng.random() < 0.15 else 0.0

    def __call__(self, rgb: Float32Array) -> Float32Array:
        """Recolour an image: (3, H, W) float32 RGB in 0..255 -> the same."""
        grey = np.tensordot(_LUMA, rgb, axes=1)
        value = grey + np.float32(self.saturation) * (rgb - grey)
        value *= self.gain.astype(np.float32)[:, None, None]
        value += np.float32(self.offset)
        np.clip(value, 0, 255, out=value)
        value = np.power(value / 255, np.float32(self.gamma), dtype=np.float32) * np.float32(255)
        if self.blur_px:
            for plane in value:
                cv2.GaussianBlur(plane, (0, 0), self.blur_px, dst=plane)
        return value


_OBJECT_ONLY_SHARE = 0.5
_SHORTEST_PX = 2.0
_SUBPIXEL = 8
"""Samples of the blur line per kernel pixel, so that any angle and length is exact."""


class MotionBlur:
    """Blur along a line, of the whole frame (moving camera) or of the object alone.

    Direction and blurred region are constant in a clip; the length changes from frame to frame.
    Everything is a function of the seed, so that a frame is always blurred the same way.

    Args:
        seed: Seed of all random choices.
        longest_px: Bound of the line's length.
    """

    def __init__(self, seed: int, longest_px: float) -> None:
        rng = np.random.default_rng([seed, 2])
        self._seed = seed
        self.longest_px = float(rng.uniform(_SHORTEST_PX, max(longest_px, _SHORTEST_PX)))
        self.angle = float(rng.uniform(0, math.pi))
        self.object_only = bool(rng.random() < _OBJECT_ONLY_SHARE)

    def __call__(self, rgb: UInt8Array, mask: BoolArray, t: int) -> UInt8Array:
        """Blur frame ``t``.

        Args:
            rgb: (H, W, 3) uint8 RGB.
            mask: (H, W) bool, the object.
            t: Index of the frame in its clip.

        Returns:
            (H, W, 3) uint8 RGB; the input itself if the blur would be shorter than 2 px.
        """
        share = float(np.random.default_rng([self._seed, 3, t]).uniform(0, 1))
        length_px = share * self.longest_px
        if length_px < _SHORTEST_PX:
            return rgb
        kernel = line_kernel(length_px, self.angle)
        if not self.object_only:
            whole: UInt8Array = cv2.filter2D(rgb, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
            return whole
        ys, xs = np.nonzero(mask)
        if not len(xs):
            return rgb
        # Blur a window around the object and blend it by the blurred mask.
        pad = math.ceil(length_px) + 1
        y0, y1 = max(int(ys.min()) - pad, 0), int(ys.max()) + pad + 1
        x0, x1 = max(int(xs.min()) - pad, 0), int(xs.max()) + pad + 1
        window = rgb[y0:y1, x0:x1].astype(np.float32)
        alpha = mask[y0:y1, x0:x1].astype(np.float32)
        # Only the object's colours are blurred: its surroundings do not move.
        smeared = cv2.filter2D(window * alpha[..., None], -1, kernel)
        weight = cv2.filter2D(alpha, -1, kernel)[..., None]
        out = rgb.copy()
        out[y0:y1, x0:x1] = np.rint(np.clip(smeared + (1 - weight) * window, 0, 255))
        return out


def line_kernel(length_px: float, angle: float) -> Float32Array:
    """Compute the weights of a blur along a line.

    Args:
        length_px: Length of the line.
        angle: Its direction in radians, from x towards y.

    Returns:
        (S, S) float32, S odd; sums to 1.
    """
    half = math.ceil(length_px / 2)
    count = max(2, math.ceil(length_px * _SUBPIXEL))
    along = np.linspace(-length_px / 2, length_px / 2, count)
    xs, ys = half + along * math.cos(angle), half + along * math.sin(angle)
    kernel = np.zeros((2 * half + 2, 2 * half + 2), np.float64)
    x0, y0 = np.floor(xs).astype(int), np.floor(ys).astype(int)
    for dx in (0, 1):
        for dy in (0, 1):
            weight = np.abs(1 - dx - (xs - x0)) * np.abs(1 - dy - (ys - y0))
            np.add.at(kernel, (y0 + dy, x0 + dx), weight)
    kernel = kernel[: 2 * half + 1, : 2 * half + 1]
    weights: Float32Array = (kernel / kernel.sum()).astype(np.float32)
    return weights


def disturbed_flow(
    flow_to_prev_px: Float32Array, error_px: float, rng: np.random.Generator
) -> Float32Array:
    """Add the errors of a flow estimator: smooth ones, or too short vectors.

    Args:
        flow_to_prev_px: (2, H, W) float32, (x, y).
        error_px: Bound of the smooth error on each axis.
        rng: Source of randomness.

    Returns:
        (2, H, W) float32, a new array.
    """
    size_hw = flow_to_prev_px.shape[1:]
    out = flow_to_prev_px.copy()
    coarse = rng.uniform(-1, 1, (2, 4, 6)).astype(np.float32) * np.float32(rng.uniform(0, error_px))
    for plane, error in zip(out, coarse, strict=True):
        # Linear interpolation keeps the bound.
        plane += cv2.resize(error, size_hw[::-1], interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        noise = rng.uniform(0, 1, (3, 4)).astype(np.float32)
        region = cv2.resize(noise, size_hw[::-1], interpolation=cv2.INTER_LINEAR) > 0.6
        out[:, region] *= np.float32(rng.uniform(0, 1))
    return out


def misplaced_mask(
    mask: BoolArray, rng: np.random.Generator, *, margin_frac: float, margin_px: int
) -> BoolArray:
    """Move a mask to a place outside its object.

    Args:
        mask: (H, W) bool.
        rng: Source of randomness.
        margin_frac: Free space between old and new place, as a share of the object's box.
        margin_px: Smallest free space.

    Returns:
        (H, W) bool; the mask itself if a few draws find no free place.
    """
    ys, xs = np.nonzero(mask)
    if not len(xs):
        return mask
    height, width = mask.shape
    y0, y1, x0, x1 = int(ys.min()), int(ys.max()) + 1, int(xs.min()), int(xs.max()) + 1
    free_y = (y1 - y0) + max(margin_px, math.ceil(margin_frac * (y1 - y0)))
    free_x = (x1 - x0) + max(margin_px, math.ceil(margin_frac * (x1 - x0)))
    for _ in range(10):
        new_y = int(rng.integers(0, height - (y1 - y0) + 1))
        new_x = int(rng.integers(0, width - (x1 - x0) + 1))
        if abs(new_y - y0) >= free_y or abs(new_x - x0) >= free_x:
            out = np.zeros_like(mask)
            out[new_y : new_y + y1 - y0, new_x : new_x + x1 - x0] = mask[y0:y1, x0:x1]
            return out
    return mask
