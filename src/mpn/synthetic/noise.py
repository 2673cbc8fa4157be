"""Textures from seeded noise: fractal value noise, cobbles, colour ramps."""

from __future__ import annotations

import cv2
import numpy as np
from scipy.spatial import cKDTree

from mpn.types import Float32Array


def fractal_noise(
    rng: np.random.Generator,
    size_hw: tuple[int, int],
    cell_px: float,
    *,
    octaves: int = 4,
    persistence: float = 0.5,
) -> Float32Array:
    """Make value noise over several octaves.

    Each octave has half the cell size and ``persistence`` times the height of the one before.

    Args:
        rng: Source of randomness.
        size_hw: (height, width) of the result.
        cell_px: Cell size of the coarsest octave in pixels.
        octaves: Number of octaves; those finer than a pixel are skipped.
        persistence: Height of an octave relative to the coarser one.

    Returns:
        (H, W) float32 of mean 0 and standard deviation 1.
    """
    height, width = size_hw
    total = np.zeros(size_hw, np.float32)
    for octave in range(octaves):
        cell = cell_px / 2**octave
        if octave and cell < 1:
            break
        grid_hw = (max(round(height / cell), 2) + 2, max(round(width / cell), 2) + 2)
        grid = rng.standard_normal(grid_hw).astype(np.float32)
        total += persistence**octave * cv2.resize(
            grid, (width, height), interpolation=cv2.INTER_CUBIC
        )
    total -= total.mean()
    total /= max(float(total.std()), 1e-6)
    return total


def cobbles(
    rng: np.random.Generator, size_hw: tuple[int, int], stone_px: float
) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Make packed rounded stones.

    Uses Worley noise: the distances to the nearest and the second nearest of points.

    Args:
        rng: Source of randomness.
        size_hw: (height, width) of the result.
        stone_px: Mean distance of adjacent stones.

    Returns:
        Three (H, W) float32: the height of the surface (0 in a gap, up to 1 on a stone), and two
        random values of 0..1 per stone.
    """
    height, width = size_hw
    rows, columns = round(height / stone_px) + 4, round(width / stone_px) + 4
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)
    points = (grid - 1.5 + rng.uniform(-0.42, 0.42, grid.shape)) * stone_px
    y, x = np.mgrid[:height, :width].astype(np.float32)
    wobble_px = 0.055 * stone_px
    x = x + wobble_px * fractal_noise(rng, size_hw, stone_px * 0.6, octaves=3)
    y = y + wobble_px * fractal_noise(rng, size_hw, stone_px * 0.6, octaves=3)
    nearest, index = cKDTree(points).query(np.stack([x, y], -1).reshape(-1, 2), k=2)
    gap = (nearest[:, 1] - nearest[:, 0]).reshape(size_hw) / stone_px
    surface = 1 - np.exp(-((gap / 0.25) ** 1.2))
    shades = rng.uniform(0, 1, (2, len(points)))
    stone = index[:, 0].reshape(size_hw)
    return (
        surface.astype(np.float32),
        shades[0][stone].astype(np.float32),
        shades[1][stone].astype(np.float32),
    )


def colour_ramp(value: Float32Array, stops_rgb: list[tuple[int, int, int]]) -> Float32Array:
    """Map values to colours along a ramp of equally spaced stops.

    Args:
        value: (H, W) float32, 0..1; clipped.
        stops_rgb: Colours 0..255, first at 0 and last at 1.

    Returns:
        (H, W, 3) float32, 0..1.
    """
    stops = np.array(stops_rgb, np.float32) / 255
    at = np.clip(value, 0, 1) * (len(stops) - 1)
    lower = np.minimum(at.astype(np.int32), len(stops) - 2)
    share = (at - lower)[..., None].astype(np.float32)
    ramped: Float32Array = stops[lower] * (1 - share) + stops[lower + 1] * share
    return ramped


def smoothstep(
    value: Float32Array, low: float | Float32Array, high: float | Float32Array
) -> Float32Array:
    """Compute 0 below ``low``, 1 above ``high``, and a smooth cubic between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    eased: Float32Array = (t * t * (3 - 2 * t)).astype(np.float32)
    return eased
