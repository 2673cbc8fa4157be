"""Objects placed in a frame: coverage, colour and shading of a window."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from mpn.synthetic.motion import (
    BALL_RADIUS_PX,
    KOI_HALF_LENGTH_PX,
    LEAF_HALF_LENGTH_PX,
    Pose,
    ball_pose,
    koi_pose,
    leaf_pose,
)
from mpn.synthetic.texture import (
    LIGHT_XYZ,
    PLANE_U,
    PLANE_V,
    Plane,
    Sprite,
    colour_ramp,
    fractal_noise,
    mixed,
    plane_of,
    smoothstep,
    sprite_from,
)
from mpn.types import Float32Array, Roi

_PANELS_RGB = np.array(
    [
        (178, 58, 50),
        (214, 200, 170),
        (52, 92, 122),
        (206, 196, 172),
        (196, 138, 48),
        (86, 110, 82),
    ],
    np.float32,
)


@dataclass(frozen=True)
class Ball:
    """Sphere that rolls under its texture."""

    skin: Float32Array
    height_px: float = 60
    reach: float = 1.08
    is_submerged: bool = False

    def pose(self, t: float) -> Pose:
        """Return the pose; see :class:`PondObject`."""
        return ball_pose(t)

    def rgba(self, x: Float32Array, y: Float32Array, pose: Pose) -> Float32Array:
        """Render the ball; see :class:`PondObject`."""
        squash = 0.035 * math.sin(pose.bend)
        px = (x - pose.x_px) / (pose.size_px * (1 + squash))
        py = (y - pose.y_px) / (pose.size_px * (1 - squash))
        radius = np.hypot(px, py)
        pz = np.sqrt(np.clip(1 - radius**2, 0, 1))
        # Roll by the distance moved: x rotates about the vertical, y about the horizontal axis.
        qx, qz = _rotated(px, pz, -pose.x_px / pose.size_px)
        qy, qz = _rotated(py, qz, -pose.y_px / pose.size_px)
        qx, qy = _rotated(qx, qy, 0.5 + pose.angle)
        height = self.skin.shape[0]
        map_x = (np.arctan2(qx, qz) / np.pi + 1) * height - 0.5
        map_y = (np.arcsin(np.clip(qy, -1, 1)) / np.pi + 0.5) * height - 0.5
        colour = cv2.remap(
            self.skin,
            map_x.astype(np.float32),
            map_y.astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_WRAP,
        )
        lit = np.clip(px * LIGHT_XYZ[0] + py * LIGHT_XYZ[1] + pz * LIGHT_XYZ[2], 0, 1)
        colour *= (0.36 + 0.74 * lit)[..., None]
        # Blinn's highlight for a viewer directly above.
        hx, hy, hz = LIGHT_XYZ[0], LIGHT_XYZ[1], LIGHT_XYZ[2] + 1
        length = math.hypot(hx, hy, hz)
        shine = np.clip((px * hx + py * hy + pz * hz) / length, 0, 1) ** 38
        colour += 0.32 * shine[..., None]
        cover = np.clip((1 - radius) * pose.size_px + 0.5, 0, 1).astype(np.float32)
        rgba = np.concatenate([np.clip(colour, 0, 1) * cover[..., None], cover[..., None]], axis=2)
        shaded: Float32Array = rgba.astype(np.float32)
        return shaded


def ball_skin(rng: np.random.Generator, height_px: int) -> Float32Array:
    """Paint worn panels of a rubber ball, as an equirectangular map.

    Args:
        rng: Source of randomness.
        height_px: Height; the width is twice that.

    Returns:
        (height_px, 2 * height_px, 3) float32, 0..1; longitude along x, seamless; latitude along y.
    """
    size_hw = (height_px, 2 * height_px)
    lat, lon = np.mgrid[: size_hw[0], : size_hw[1]].astype(np.float32)
    lat = (lat + 0.5) / size_hw[0] * np.pi - np.pi / 2
    lon = (lon + 0.5) / size_hw[1] * 2 * np.pi
    half = fractal_noise(rng, (height_px, height_px), height_px / 9, octaves=5, persistence=0.6)
    worn = np.concatenate([half, half[:, ::-1]], axis=1)  # mirrored, so that it is seamless
    panel = np.mod(lon / (2 * np.pi) * 6 + 0.012 * worn, 6).astype(np.int32)
    skin = _PANELS_RGB[np.minimum(panel, len(_PANELS_RGB) - 1)] / 255
    seam = np.abs(np.mod(lon / (2 * np.pi) * 6 + 0.012 * worn + 0.5, 1.0) - 0.5)
    skin *= (1 - 0.45 * (1 - smoothstep(seam, 0.012, 0.035)))[..., None]
    cap = smoothstep(np.abs(lat), 1.12, 1.16)
    skin = mixed(skin, np.array([0.78, 0.74, 0.66], np.float32), cap)
    grime = smoothstep(worn, 0.6, 1.9)
    skin = mixed(skin, np.array([0.3, 0.28, 0.22], np.float32), 0.55 * grime)
    skin *= (1 + 0.04 * worn)[..., None]
    return np.clip(skin, 0, 1).astype(np.float32)


def _rotated(
    first: Float32Array, second: Float32Array, angle: float
) -> tuple[Float32Array, Float32Array]:
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * first + sin * second, cos * second - sin * first


def koi_sprite(rng: np.random.Generator, px_per_unit: float) -> Sprite:
    """Draw a carp from above: cream with patches, scales, and fins with rays."""
    plane = plane_of(px_per_unit)
    u, v = plane.u, plane.v
    along = np.clip((u + 0.66) / 1.62, 0, 1)  # 0 at the base of the tail, 1 at the nose
    body_half = 0.29 * np.power(along, 0.62) * np.power(np.clip(1 - along**4.5, 0, 1), 0.55)
    body_half = np.where(u < -0.3, np.maximum(body_half, 0.045), body_half)
    body_half = np.where((u > -0.62) & (u < 0.96), body_half, 0)
    body = plane.coverage(body_half.astype(np.float32))

    # Two lobes from the base of the tail, longer at the sides than in the middle.
    reach, turn = np.hypot(u + 0.52, v), np.arctan2(v, -(u + 0.52))
    longest = 0.36 + 0.2 * np.clip(np.abs(turn) / 0.45, 0, 1) ** 1.5
    edge = np.minimum((0.47 - np.abs(turn)) * reach, longest - reach)
    tail = np.clip(edge * px_per_unit + 0.5, 0, 1) * (u < -0.4)
    front_fins = _fin(plane, (0.36, 0.33), (0.24, 0.105), 0.75)
    rear_fins = _fin(plane, (-0.2, 0.19), (0.16, 0.06), 0.5)
    fins = cv2.GaussianBlur(np.maximum(tail, np.maximum(front_fins, rear_fins)), (0, 0), 0.7)
    cover = np.maximum(body, fins)

    patches = fractal_noise(rng, plane.size_hw, 0.62 * px_per_unit, octaves=4, persistence=0.45)
    spots = fractal_noise(rng, plane.size_hw, 0.34 * px_per_unit, octaves=4, persistence=0.45)
    fine = fractal_noise(rng, plane.size_hw, 0.06 * px_per_unit, octaves=3)
    cream = colour_ramp(0.55 + 0.18 * fine, [(196, 186, 166), (236, 228, 210)])
    orange = colour_ramp(0.5 + 0.22 * fine + 0.2 * patches, [(176, 74, 30), (226, 118, 52)])
    ink = colour_ramp(0.5 + 0.3 * fine, [(34, 34, 38), (66, 64, 66)])
    colour = mixed(cream, orange, smoothstep(patches, -0.12, 0.14))
    colour = mixed(colour, ink, smoothstep(spots, 1.0, 1.25))
    scales = _scales(plane, 0.052)
    colour *= 1 - 0.2 * (scales * (1 - smoothstep(u, 0.5, 0.66)))[..., None]

    rays = 0.5 + 0.5 * np.sin(np.arctan2(v, u + 0.35 + 1e-6) * 90)
    membrane = colour_ramp(0.35 + 0.5 * rays, [(168, 128, 96), (232, 212, 184)])
    colour = mixed(mixed(colour, membrane, 0.75), colour, body)
    for side in (-1, 1):
        eye = np.hypot(u - 0.73, v - side * 0.125) / 0.028
        colour = mixed(colour, np.full(3, 0.05, np.float32), 1 - smoothstep(eye, 0.8, 1.15))
    ridge = smoothstep(np.abs(v), 0.0, 0.02) + smoothstep(np.abs(u - 0.02), 0.26, 0.36)
    colour *= (0.72 + 0.28 * np.clip(ridge, 0, 1))[..., None]
    across = np.clip(v / np.maximum(body_half, 1e-3), -1, 1) * body
    return sprite_from(plane, colour, cover, lean_u=np.zeros_like(u), lean_v=0.85 * across**3)


def _fin(
    plane: Plane, root_uv: tuple[float, float], half_uv: tuple[float, float], sweep: float
) -> Float32Array:
    """Draw a pair of fins: ellipses that point back and outward from the body."""
    u, v = plane.u - root_uv[0] + 0.12, np.abs(plane.v) - root_uv[1]
    turned_u = u * np.cos(sweep) - v * np.sin(sweep)
    turned_v = u * np.sin(sweep) + v * np.cos(sweep)
    radius = np.hypot(turned_u / half_uv[0], turned_v / half_uv[1])
    cover: Float32Array = np.clip((1 - radius) * half_uv[1] * plane.px_per_unit + 0.5, 0, 1)
    return cover


def _scales(plane: Plane, pitch: float) -> Float32Array:
    """Draw rows of overlapping arcs, 1 on an arc and 0 elsewhere."""
    row = np.floor(plane.u / (pitch * 0.8))
    shifted = plane.v / pitch + 0.5 * np.mod(row, 2)
    centre_v = np.mod(shifted, 1.0) - 0.5
    centre_u = plane.u / (pitch * 0.8) - row - 0.2
    radius = np.hypot(centre_v, centre_u)
    return (1 - smoothstep(np.abs(radius - 0.5), 0.03, 0.16)).astype(np.float32)


def leaf_sprite(rng: np.random.Generator, px_per_unit: float) -> Sprite:
    """Draw a leaf with a stalk: striped, with a toothed edge and brown parts."""
    plane = plane_of(px_per_unit)
    u, v = plane.u, plane.v
    along = np.clip((u + 0.82) / 1.82, 0, 1)
    swell = np.sin(np.pi * np.power(along, 0.78))
    smooth_half = 0.5 * np.power(np.maximum(swell, 0), 0.85)
    teeth = 0.012 * (np.mod(u * 17, 1.0) - 0.5) * (smooth_half > 0.04)
    half = np.where((u > -0.82) & (u < 1), smooth_half + teeth, 0).astype(np.float32)
    stalk_half = np.where((u > -1.18) & (u < -0.6), 0.026, 0).astype(np.float32)
    blade, stalk = plane.coverage(half), plane.coverage(stalk_half)

    fine = fractal_noise(rng, plane.size_hw, 0.08 * px_per_unit, octaves=4)
    broad = fractal_noise(rng, plane.size_hw, 0.7 * px_per_unit, octaves=3)
    toward_edge = np.abs(v) / np.maximum(smooth_half, 1e-3)
    stripe = 0.5 + 0.5 * np.sin(2 * np.pi * (u - 0.62 * np.abs(v) + 0.012 * broad) * 5.2)
    light = colour_ramp(0.5 + 0.2 * fine + 0.15 * broad, [(136, 142, 66), (184, 180, 98)])
    dark = colour_ramp(0.5 + 0.25 * fine + 0.15 * broad, [(44, 74, 40), (84, 106, 56)])
    colour = mixed(light, dark, smoothstep(stripe + 0.06 * fine, 0.35, 0.7))
    withered = smoothstep(0.9 * toward_edge + 0.3 * broad + 0.12 * fine, 0.85, 1.25)
    brown = colour_ramp(0.5 + 0.25 * fine, [(96, 66, 36), (150, 108, 58)])
    colour = mixed(colour, brown, 0.8 * withered)
    vein_rgb = np.array([0.78, 0.74, 0.52], np.float32)
    from_vein = np.abs(np.mod((u - 0.62 * np.abs(v)) * 5.2 + 0.25, 1.0) - 0.5)
    colour = mixed(colour, vein_rgb, 0.45 * (1 - smoothstep(from_vein, 0.0, 0.05)))
    rib = 0.85 * (1 - smoothstep(np.abs(v), 0.008, 0.02))
    colour = mixed(colour, vein_rgb, np.maximum(rib, stalk * (1 - blade)))
    # Fold along the rib, and curl down at the edge.
    fold = np.tanh(v / 0.05) * (1 - toward_edge.clip(0, 1)) * 0.35
    lean_v = fold - 0.25 * toward_edge * np.sign(v)
    cover = np.maximum(blade, stalk)
    return sprite_from(plane, colour, cover, lean_u=0.25 * np.cos(2.2 * u), lean_v=lean_v)


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
