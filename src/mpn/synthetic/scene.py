"""Pond scene: floor, water, objects, light, shadows, and camera noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from mpn.synthetic.objects import PondObject, make_objects, window_of
from mpn.synthetic.texture import LIGHT_XYZ, cobbles, colour_ramp, fractal_noise, smoothstep
from mpn.types import Float32Array, Roi, UInt8Array

REFERENCE_HW = (480, 854)
SHUTTER_FRAMES = 0.4
"""Exposure as a share of a frame's time: a shutter of 144 degrees, slight motion blur."""
SHUTTER_SAMPLES = 3

SHOT_NOISE, READ_NOISE = 0.012, 0.004
"""Standard deviations in full light and in the dark, for 0..1: a camera in daylight."""

_PAN_PX = 44
_CAUSTICS_PX = 60
_WATER_RGB = (0.20, 0.30, 0.30)


@dataclass(frozen=True)
class _Drawn:
    """Rendered object of one frame."""

    window: Roi
    rgba: Float32Array
    cover: Float32Array


class Scene:
    """Renderer of one clip; frames can be rendered in any order.

    Args:
        size_hw: (height, width) of the frames.
        objects: Number of objects, up to three.
        seed: Seed of textures and noise; the motion is the same for every seed.
    """

    def __init__(self, size_hw: tuple[int, int], objects: int, seed: int) -> None:
        self._size_hw = size_hw
        self._seed = seed
        self._scale = min(size_hw[0] / REFERENCE_HW[0], size_hw[1] / REFERENCE_HW[1])
        floor_rng, light_rng, object_rng = np.random.default_rng(seed).spawn(3)
        self._pan_px = math.ceil(_PAN_PX * self._scale)
        self._caustics_px = math.ceil(_CAUSTICS_PX * self._scale)
        self._floor = _floor(floor_rng, size_hw, self._pan_px, self._scale)
        self._ripples = tuple(
            _ripples(light_rng, size_hw, self._caustics_px, self._scale) for _ in range(2)
        )
        self._objects = make_objects(object_rng, self._scale)[:objects]
        y, x = np.mgrid[: size_hw[0], : size_hw[1]].astype(np.float32)
        self._x = (x + 0.5 - size_hw[1] / 2) / self._scale
        self._y = (y + 0.5 - size_hw[0] / 2) / self._scale
        away = np.hypot(self._x / 427, self._y / 240)
        vignette = 1 - 0.14 * smoothstep(away, 0.55, 1.5)
        self._vignette = np.repeat(vignette[..., None], 3, axis=2)

    def frame(self, number: int) -> tuple[UInt8Array, UInt8Array]:
        """Render one frame.

        Args:
            number: Index of the frame, from 0.

        Returns:
            (H, W, 3) uint8 RGB, and (H, W) uint8 ids: the topmost object that covers at least half
            of the pixel in the middle of the exposure.
        """
        image = self._shifted_floor(number)
        labels = np.zeros(self._size_hw, np.uint8)
        light: Float32Array | None = self._light(number)
        by_height = sorted(enumerate(self._objects, 1), key=lambda entry: entry[1].height_px)
        for object_id, item in by_height:
            layer = self._drawn(item, number)
            if layer is None:
                continue
            if item.is_submerged:
                _dim_by_water(layer.rgba)
            elif light is not None:  # all submerged objects are rendered
                image *= light
                light = None
            self._cast_shadow(image, layer, item.height_px)
            part = _inside(layer.window)
            image[part] *= 1 - layer.rgba[..., 3:]
            image[part] += layer.rgba[..., :3]
            labels[part][layer.cover >= 0.5] = object_id
        if light is not None:
            image *= light
        return self._exposed(image, number), labels

    def _shifted_floor(self, number: int) -> Float32Array:
        turn = 2 * math.pi * number
        dx = 0.9 * self._pan_px * math.sin(turn / 190 + 0.4)
        dy = 0.9 * self._pan_px * math.sin(turn / 150 + 2.0)
        return self._shifted(self._floor, self._pan_px, dx, dy)

    def _light(self, number: int) -> Float32Array:
        """Compute caustics (H, W, 1), the light of ripples on submerged surfaces."""
        turn = 2 * math.pi * number
        reach = 0.9 * self._caustics_px
        first, second = (
            self._shifted(
                ripples,
                self._caustics_px,
                reach * math.sin(turn / periods[0] + 1),
                reach * math.cos(turn / periods[1]),
            )
            for ripples, periods in zip(self._ripples, ((97, 131), (113, 89)), strict=True)
        )
        light: Float32Array = 0.95 + 0.62 * np.power(first * second, np.float32(1.4))
        return light[..., None]

    def _drawn(self, item: PondObject, number: int) -> _Drawn | None:
        window = window_of(item, number, self._scale, self._size_hw)
        if window is None:
            return None
        part = _inside(window)
        samples = []
        for sample in range(SHUTTER_SAMPLES):
            t = number + SHUTTER_FRAMES * ((sample + 0.5) / SHUTTER_SAMPLES - 0.5)
            samples.append(item.rgba(self._x[part], self._y[part], item.pose(t)))
        cover = samples[SHUTTER_SAMPLES // 2][..., 3].copy()
        rgba = samples[0]
        for other in samples[1:]:
            rgba += other
        rgba *= np.float32(1 / SHUTTER_SAMPLES)
        return _Drawn(window, rgba, cover)

    def _cast_shadow(self, image: Float32Array, layer: _Drawn, height_px: float) -> None:
        dx, dy = round(0.34 * height_px * self._scale), round(0.42 * height_px * self._scale)
        sigma_px = max(0.2 * height_px * self._scale, 0.5)
        spread = math.ceil(3 * sigma_px)
        height, width = self._size_hw
        window = layer.window
        # The shadow's window is the object's, moved, extended, and clipped to the frame.
        x0, x1 = max(window.x0 + dx - spread, 0), min(window.x1 + dx + spread, width)
        y0, y1 = max(window.y0 + dy - spread, 0), min(window.y1 + dy + spread, height)
        if x0 >= x1 or y0 >= y1:
            return
        spread_out = cv2.copyMakeBorder(
            layer.rgba[..., 3], spread, spread, spread, spread, cv2.BORDER_CONSTANT, value=0
        )
        shadow = cv2.GaussianBlur(spread_out, (0, 0), sigma_px)
        top, left = window.y0 + dy - spread, window.x0 + dx - spread
        shadow = shadow[y0 - top : y1 - top, x0 - left : x1 - left]
        image[y0:y1, x0:x1] *= (1 - 0.42 * shadow)[..., None]

    def _exposed(self, image: Float32Array, number: int) -> UInt8Array:
        image = cv2.GaussianBlur(image * self._vignette, (0, 0), 0.45)
        # Shot noise grows with the root of the light, read noise does not. Each frame has its seed.
        noise = np.random.default_rng((self._seed, number)).standard_normal(
            image.shape, dtype=np.float32
        )
        noise *= np.sqrt(READ_NOISE**2 + SHOT_NOISE**2 * image)
        image += noise
        image *= 255
        exposed: UInt8Array = cv2.convertScaleAbs(np.maximum(image, 0))  # rounds and saturates
        return exposed

    def _shifted(self, texture: Float32Array, margin_px: int, dx: float, dy: float) -> Float32Array:
        """Cut the frame out of a texture that is ``margin_px`` larger on each side."""
        matrix = np.array([[1, 0, margin_px + dx], [0, 1, margin_px + dy]], np.float32)
        shifted: Float32Array = cv2.warpAffine(
            texture,
            matrix,
            self._size_hw[::-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT,
        )
        return shifted


def _floor(
    rng: np.random.Generator, size_hw: tuple[int, int], margin_px: int, scale: float
) -> Float32Array:
    whole_hw = (size_hw[0] + 2 * margin_px, size_hw[1] + 2 * margin_px)
    surface, shade, hue = cobbles(rng, whole_hw, 50 * scale)
    fine = fractal_noise(rng, whole_hw, 26 * scale, octaves=5, persistence=0.6)
    broad = fractal_noise(rng, whole_hw, 240 * scale, octaves=3)
    gray = colour_ramp(
        0.18 + 0.64 * shade + 0.09 * fine,
        [(70, 68, 62), (112, 108, 98), (152, 146, 132), (198, 190, 174)],
    )
    warm = colour_ramp(
        0.2 + 0.6 * shade + 0.1 * fine,
        [(84, 62, 46), (134, 98, 70), (170, 122, 82), (188, 160, 122)],
    )
    mossy = colour_ramp(
        0.3 + 0.5 * shade + 0.12 * fine, [(54, 66, 44), (96, 108, 68), (132, 136, 92)]
    )
    colour = gray + (warm - gray) * smoothstep(hue, 0.5, 0.62)[..., None]
    colour += (mossy - colour) * smoothstep(hue + 0.12 * broad, 0.78, 0.9)[..., None]
    # Shade the slope of the stones by light from the upper left, as for the objects.
    relief = surface + 0.035 * fine
    slope = LIGHT_XYZ[0] * cv2.Sobel(relief, cv2.CV_32F, 1, 0)
    slope += LIGHT_XYZ[1] * cv2.Sobel(relief, cv2.CV_32F, 0, 1)
    lit = 0.30 + 0.62 * surface - 0.35 * np.clip(slope * scale, -0.6, 0.6)
    colour *= np.clip(lit, 0.08, 1.3)[..., None]
    water = np.array(_WATER_RGB, np.float32)
    coloured: Float32Array = np.clip(colour * 0.82 + 0.18 * water + 0.02 * broad[..., None], 0, 1)
    return coloured


def _ripples(
    rng: np.random.Generator, size_hw: tuple[int, int], margin_px: int, scale: float
) -> Float32Array:
    whole_hw = (size_hw[0] + 2 * margin_px, size_hw[1] + 2 * margin_px)
    noise = fractal_noise(rng, whole_hw, 90 * scale, octaves=2)
    return np.exp(-np.abs(noise) * 1.6).astype(np.float32)


def _dim_by_water(rgba: Float32Array) -> None:
    rgba[..., :3] *= 0.9
    rgba[..., :3] += 0.1 * rgba[..., 3:] * np.array(_WATER_RGB, np.float32)


def _inside(window: Roi) -> tuple[slice, slice]:
    return slice(window.y0, window.y1), slice(window.x0, window.x1)
