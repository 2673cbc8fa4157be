"""Twin of kernels/overlay.cu: see :mod:`tests.reference.kernels`."""

from __future__ import annotations

import numpy as np

from mpn.types import UInt8Array


def draw_overlay(
    rgb: UInt8Array,
    labels: UInt8Array,
    palette: UInt8Array,
    height: int,
    width: int,
    opacity: float,
    rest: float,
    drawn: UInt8Array,
) -> None:
    """Each object tinted, its outline opaque."""
    colours = palette[labels]
    # In double the products are exact and the sum rounds once, as a fused multiply-add does.
    tint = colours.astype(np.float32) * np.float32(opacity)
    mixed = (rgb * np.float64(np.float32(rest)) + tint).astype(np.float32)
    padded = np.pad(labels, 1, mode="edge")
    near = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    is_edge = np.any([other != labels for other in near], axis=0)
    inside = np.where(is_edge[..., None], colours, np.clip(np.rint(mixed), 0, 255))
    drawn[:] = np.where(labels[..., None] > 0, inside, rgb)
