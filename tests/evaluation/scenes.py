"""Label maps with blobs that touch, move and reach the border."""

from __future__ import annotations

import cv2
import numpy as np


def blob_labels(
    seed: int, size_hw: tuple[int, int], num_objects: int, *, shift_px: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """Draw (H, W) uint8 objects 1..N with ragged contours.

    ``shift_px`` (x, y) moves them.
    """
    rng = np.random.default_rng(seed)
    height, width = size_hw
    y, x = np.mgrid[:height, :width].astype(np.float32)
    labels = np.zeros(size_hw, np.uint8)
    for k in range(1, num_objects + 1):
        noise = rng.standard_normal(size_hw).astype(np.float32)
        ragged = cv2.GaussianBlur(noise, (0, 0), max(size_hw) / 60)
        ragged /= max(float(ragged.std()), 1e-6)
        cx, cy = rng.uniform(0.15, 0.85, 2) * (width, height)
        rx, ry = rng.uniform(0.1, 0.2, 2) * (width, height)
        distance = np.hypot((x - cx - shift_px[0]) / rx, (y - cy - shift_px[1]) / ry)
        labels[distance + 0.12 * ragged < 1] = k
    return labels
