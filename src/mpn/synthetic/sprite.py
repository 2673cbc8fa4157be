"""Flat images of objects, and the plane they are drawn in.

An object is along the u axis of its plane, with its nose or tip at u = 1; v points to its side.
Lengths are in half-lengths of the object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpn.types import Float32Array

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
