"""Ball of the clip: a sphere that rolls under its texture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from mpn.synthetic.motion import Pose, ball_pose
from mpn.synthetic.noise import fractal_noise, smoothstep
from mpn.synthetic.sprite import LIGHT_XYZ, mixed
from mpn.types import Float32Array

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
