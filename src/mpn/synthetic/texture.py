"""Textures from seeded noise: fractal value noise, cobbles, colour ramps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
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


PLANE_U = 1.3
"""Half-length of the plane, which is from -PLANE_U to PLANE_U along the object."""
PLANE_V = 0.75

LIGHT_XYZ = (-0.46, -0.58, 0.67)
"""Unit vector toward the light, at the upper left above the water."""


@dataclass(frozen=True)
class Sprite:
    """Flat image of an object with the direction of its surface normal.

    Attributes:
        rgba: (H, W, 4) float32, 0..1, premultiplied by the coverage in A.
        lean_uv: (H, W, 2) float32, components of the surface normal along u and v, times the
            coverage.
        px_per_unit: Pixels of the sprite per half-length.
    """

    rgba: Float32Array
    lean_uv: Float32Array
    px_per_unit: float


@dataclass(frozen=True)
class Plane:
    """Coordinates of every pixel of a sprite.

    Attributes:
        u: (H, W) float32.
        v: (H, W) float32.
        px_per_unit: Pixels per half-length.
    """

    u: Float32Array
    v: Float32Array
    px_per_unit: float

    @property
    def size_hw(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.u.shape[0], self.u.shape[1])

    def coverage(self, half_width: npt.NDArray[np.floating[Any]]) -> Float32Array:
        """Compute the coverage of the strip |v| < half_width(u), with soft edges.

        Coverage is 0..1; the edge is one pixel wide along its normal.

        Args:
            half_width: (H, W), the same in every row; 0 gives no coverage.
        """
        slope = np.gradient(half_width, axis=1) * self.px_per_unit
        distance = (half_width - np.abs(self.v)) / np.sqrt(1 + slope**2)
        inside = np.clip(distance * self.px_per_unit + 0.5, 0, 1)
        return np.where(half_width > 0, inside, 0).astype(np.float32)


def plane_of(px_per_unit: float) -> Plane:
    """Make the plane at a resolution."""
    height, width = round(2 * PLANE_V * px_per_unit), round(2 * PLANE_U * px_per_unit)
    v, u = np.mgrid[:height, :width].astype(np.float32)
    return Plane(
        u=((u + 0.5) / px_per_unit - PLANE_U).astype(np.float32),
        v=((v + 0.5) / px_per_unit - PLANE_V).astype(np.float32),
        px_per_unit=px_per_unit,
    )


def sprite_from(
    plane: Plane,
    colour: npt.NDArray[np.floating[Any]],
    cover: npt.NDArray[np.floating[Any]],
    *,
    lean_u: npt.NDArray[np.floating[Any]],
    lean_v: npt.NDArray[np.floating[Any]],
) -> Sprite:
    """Premultiply (H, W, 3) colours and normals by the (H, W) coverage."""
    rgba = np.concatenate([np.clip(colour, 0, 1) * cover[..., None], cover[..., None]], axis=2)
    lean_uv = np.stack([lean_u, lean_v], axis=2) * cover[..., None]
    return Sprite(rgba.astype(np.float32), lean_uv.astype(np.float32), plane.px_per_unit)


def mixed(
    first: Float32Array, second: Float32Array, share: npt.NDArray[np.floating[Any]] | float
) -> Float32Array:
    """Mix two arrays by ``share``: 0 gives the first, 1 the second.

    Colours are on the last axis.
    """
    weight = np.asarray(share, np.float32)
    if weight.ndim == 2:
        weight = weight[..., None]
    blended: Float32Array = first * (1 - weight) + second * weight
    return blended
