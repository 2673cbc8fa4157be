"""Random crops of frames with true flow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from mpn.training.flow.synthetic import FlowSample
from mpn.training.propagation.augment import ColourShift
from mpn.types import Float32Array, UInt8Array

_NOISE_LEVELS = 5.0


@dataclass(frozen=True)
class FlowCropOptions:
    """Options for cropping and changing pairs.

    Attributes:
        zoom_min: Smallest scale of the frames.
        zoom_max: Largest scale; the crop always fits into the frames.
        rotation_deg: Largest rotation in either direction.
        recolour: Share of pairs with changed colours, nearly the same for both frames.
        noise: Share of pairs with noise.
    """

    zoom_min: float = 0.9
    zoom_max: float = 1.6
    rotation_deg: float = 10.0
    recolour: float = 0.8
    noise: float = 0.4


def crop_pair(
    frames: tuple[UInt8Array, UInt8Array],
    flow_px: Float32Array,
    size_hw: tuple[int, int],
    options: FlowCropOptions,
    rng: np.random.Generator,
) -> FlowSample:
    """Crop a pair with random scale, rotation and flip.

    Args:
        frames: (H, W, 3) uint8 RGB each.
        flow_px: (2, H, W) float32 from the first to the second, NaN if unknown.
        size_hw: Size of the crop.
        options: Extent of the changes.
        rng: Source of randomness.

    Returns:
        Frames and flow of the crop; unknown flow, and flow from outside the frame, is not valid.
    """
    height, width = size_hw
    full_h, full_w = flow_px.shape[1:]
    fits = max(height / full_h, width / full_w)
    zoom = max(fits, math.exp(rng.uniform(math.log(options.zoom_min), math.log(options.zoom_max))))
    angle = math.radians(rng.uniform(-options.rotation_deg, options.rotation_deg))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    cos, sin = math.cos(angle) * zoom, math.sin(angle) * zoom
    linear = np.array([[mirror * cos, -sin], [mirror * sin, cos]])
    half = np.array([width, height]) / (2 * zoom)
    extent = np.array([full_w, full_h], np.float64)
    centre = rng.uniform(np.minimum(half, extent / 2), np.maximum(extent - half, extent / 2))
    # The origin of cv2 is the centre of the first pixel; that of the crop's centre is its corner.
    offset = np.array([width - 1, height - 1]) / 2 - linear @ (centre - 0.5)
    matrix = np.hstack([linear, offset[:, None]])
    size = (width, height)
    known = np.isfinite(flow_px).all(axis=0)
    planes = [
        cv2.warpAffine(
            frame, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
        for frame in frames
    ]
    moved = np.stack(
        [
            cv2.warpAffine(np.where(known, axis, 0), matrix, size, flags=cv2.INTER_LINEAR)
            for axis in flow_px
        ]
    )
    # A pixel is known if all pixels of its interpolation are.
    share = cv2.warpAffine(known.astype(np.float32), matrix, size, flags=cv2.INTER_LINEAR)
    turned = np.tensordot(linear, moved, axes=1).astype(np.float32)
    out = np.stack(planes).transpose(0, 3, 1, 2).astype(np.float32)
    return FlowSample(out, np.ascontiguousarray(turned), share > 0.999)


def recoloured(
    sample: FlowSample, options: FlowCropOptions, rng: np.random.Generator
) -> FlowSample:
    """Change colours and add noise; the flow does not change.

    Args:
        sample: Not changed.
        options: Shares of changed pairs.
        rng: Source of randomness.
    """
    frames = sample.frames
    if rng.random() < options.recolour:
        shift = ColourShift(rng)
        frames = np.stack([shift(np.ascontiguousarray(frame)) for frame in frames])
        # Exposure and white balance differ slightly between frames.
        frames[1] = np.clip(frames[1] * rng.uniform(0.97, 1.03, (3, 1, 1)), 0, 255)
    if rng.random() < options.noise:
        sigma = rng.uniform(0, _NOISE_LEVELS)
        frames = np.clip(frames + rng.normal(0, sigma, frames.shape), 0, 255)
    return FlowSample(np.ascontiguousarray(frames, dtype=np.float32), sample.flow_px, sample.valid)
