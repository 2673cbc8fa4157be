"""Sprite of the koi."""

from __future__ import annotations

import cv2
import numpy as np

from mpn.synthetic.noise import colour_ramp, fractal_noise, smoothstep
from mpn.synthetic.sprite import Plane, Sprite, mixed, plane_of, sprite_from
from mpn.types import Float32Array


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
