"""Sprite of the leaf."""

from __future__ import annotations

import numpy as np

from mpn.synthetic.noise import colour_ramp, fractal_noise, smoothstep
from mpn.synthetic.sprite import Sprite, mixed, plane_of, sprite_from


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
