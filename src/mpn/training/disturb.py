"""Motion blur and flow errors, as they occur at run time."""

from __future__ import annotations

import math

import cv2
import numpy as np

from mpn.types import BoolArray, Float32Array, UInt8Array

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
