"""Objects placed in a frame: coverage, colour and shading of a window."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from mpn.synthetic.ball import Ball, ball_skin
from mpn.synthetic.koi import koi_sprite
from mpn.synthetic.leaf import leaf_sprite
from mpn.synthetic.motion import (
    BALL_RADIUS_PX,
    KOI_HALF_LENGTH_PX,
    LEAF_HALF_LENGTH_PX,
    Pose,
    koi_pose,
    leaf_pose,
)
from mpn.synthetic.sprite import LIGHT_XYZ, PLANE_U, PLANE_V, Sprite
from mpn.types import Float32Array, Roi

_OVERSAMPLING = 1.25
"""Pixels of a sprite per pixel of the frame: sharp, but without aliasing."""

_MOTION_MARGIN_PX = 6
"""Bound of an object's motion during the exposure."""

Deformation = Callable[[Float32Array, Float32Array, Pose], tuple[Float32Array, Float32Array]]


class PondObject(Protocol):
    """Object that can be rendered."""

    @property
    def height_px(self) -> float:
        """Height above the pond's floor.

        A higher object covers others and casts a farther shadow.
        """

    @property
    def reach(self) -> float:
        """Radius of its bounding circle, in its half-lengths."""

    @property
    def is_submerged(self) -> bool:
        """Whether it is under water, where caustics are visible."""

    def pose(self, t: float) -> Pose:
        """Return its pose at a time, in reference pixels."""

    def rgba(self, x: Float32Array, y: Float32Array, pose: Pose) -> Float32Array:
        """Render its premultiplied colours and coverage.

        Args:
            x: (H, W) float32, reference pixels from the centre of the frame.
            y: (H, W) float32, the same downward.
            pose: Result of :meth:`pose`.

        Returns:
            (H, W, 4) float32, 0..1.
        """


@dataclass(frozen=True)
class SpriteObject:
    """Flat image that moves, rotates and bends."""

    sprite: Sprite
    motion: Callable[[float], Pose]
    deformation: Deformation
    height_px: float
    reach: float
    relief: float
    is_submerged: bool

    def pose(self, t: float) -> Pose:
        """Return the pose; see :class:`PondObject`."""
        return self.motion(t)

    def rgba(self, x: Float32Array, y: Float32Array, pose: Pose) -> Float32Array:
        """Render the sprite; see :class:`PondObject`."""
        cos, sin = math.cos(pose.angle), math.sin(pose.angle)
        dx, dy = x - pose.x_px, y - pose.y_px
        along = ((cos * dx + sin * dy) / pose.size_px).astype(np.float32)
        across = ((cos * dy - sin * dx) / pose.size_px).astype(np.float32)
        u, v = self.deformation(along, across, pose)
        scale = self.sprite.px_per_unit
        map_x = ((u + PLANE_U) * scale - 0.5).astype(np.float32)
        map_y = ((v + PLANE_V) * scale - 0.5).astype(np.float32)
        rgba = cv2.remap(self.sprite.rgba, map_x, map_y, cv2.INTER_LINEAR)
        lean = cv2.remap(self.sprite.lean_uv, map_x, map_y, cv2.INTER_LINEAR)
        lean_x = cos * lean[..., 0] - sin * lean[..., 1]
        lean_y = sin * lean[..., 0] + cos * lean[..., 1]
        lit = lean_x * LIGHT_XYZ[0] + lean_y * LIGHT_XYZ[1]
        shade = 1 + self.relief * lit / np.maximum(rgba[..., 3], 0.05)
        rgba[..., :3] *= np.clip(shade, 0.3, 1.6)[..., None]
        shaded: Float32Array = rgba
        return shaded


def make_objects(rng: np.random.Generator, scale: float) -> tuple[PondObject, ...]:
    """Make the koi (id 1), the ball (id 2) and the leaf (id 3).

    Args:
        rng: Source of randomness of their textures.
        scale: Pixels of the frame per reference pixel.
    """
    seeds = rng.spawn(3)
    per_px = _OVERSAMPLING * scale
    return (
        SpriteObject(
            koi_sprite(seeds[0], KOI_HALF_LENGTH_PX * per_px),
            koi_pose,
            _swimming,
            height_px=26,
            reach=1.12,
            relief=0.5,
            is_submerged=True,
        ),
        Ball(ball_skin(seeds[1], math.ceil(3 * BALL_RADIUS_PX * scale))),
        SpriteObject(
            leaf_sprite(seeds[2], LEAF_HALF_LENGTH_PX * per_px),
            leaf_pose,
            _curling,
            height_px=44,
            reach=1.22,
            relief=0.45,
            is_submerged=False,
        ),
    )


def window_of(item: PondObject, t: float, scale: float, size_hw: tuple[int, int]) -> Roi | None:
    """Return the window that an object can cover around time ``t``, or None."""
    height, width = size_hw
    pose = item.pose(t)
    radius = item.reach * pose.size_px * scale + _MOTION_MARGIN_PX * scale + 2
    x, y = width / 2 + pose.x_px * scale, height / 2 + pose.y_px * scale
    x0, x1 = max(math.floor(x - radius), 0), min(math.ceil(x + radius) + 1, width)
    y0, y1 = max(math.floor(y - radius), 0), min(math.ceil(y + radius) + 1, height)
    return Roi(x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _swimming(u: Float32Array, v: Float32Array, pose: Pose) -> tuple[Float32Array, Float32Array]:
    # The amplitude grows from the head to the tail.
    backward = np.clip((0.85 - u) / 1.9, 0, 1.2)
    return u, v - (0.012 + 0.075 * backward**2) * np.sin(pose.bend + 2.6 * u)


def _curling(u: Float32Array, v: Float32Array, pose: Pose) -> tuple[Float32Array, Float32Array]:
    bowed = v - 0.1 * math.sin(pose.bend) * (u**2 - 0.3)
    narrowed = 1 - 0.14 * (0.5 + 0.5 * np.sin(0.7 * pose.bend + 1.8 * u))
    return u, (bowed / narrowed).astype(np.float32)
