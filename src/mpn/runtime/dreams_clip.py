"""A short clip dreamt from the given frame: layers on paths of their own, and passers-by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np

from mpn.runtime.dreams_motion import Light, Motion, MotionRange, smooth_field
from mpn.runtime.dreams_scene import DreamScene, Layer
from mpn.types import BoolArray, Roi, UInt8Array

OBJECT_MOTION = MotionRange(
    shift_frac=0.25,
    angle_rad=0.3,
    log_scale=0.25,
    shear=0.1,
    bend_frac=0.06,
    speed_px=6.0,
    angle_speed=0.02,
    scale_speed=0.015,
    bend_speed=0.012,
)
CAMERA_MOTION = MotionRange(
    shift_frac=0.15,
    angle_rad=0.1,
    log_scale=0.12,
    shear=0.03,
    bend_frac=0.01,
    speed_px=5.0,
    angle_speed=0.005,
    scale_speed=0.008,
    bend_speed=0.002,
)
_PASSER_MOTION = MotionRange(0, 0, 0, 0, 0, 6.0, 0.02, 0.015, 0)
"""What passes by starts where it is drawn."""

_FEATHER_SIGMA_PX = 0.8
"""Blur of a pasted outline: a hard one would tell the network where to cut."""


@dataclass(frozen=True)
class DreamRange:
    """What dreamt clips are made of.

    Attributes:
        objects: How objects move against the background.
        camera: How the background moves.
        calm_share: How often everything stays close to where it was given.
        elsewhere_share: How often the background is another part of the frame: the object will
            pass in front of what is now beside it.
        passer_share: How often pieces of the background pass in front of the object or behind it.
        light: Strength of the change of light; 0 leaves it.
        blur_share: How often the picture is out of focus.
    """

    objects: MotionRange = field(default_factory=lambda: OBJECT_MOTION)
    camera: MotionRange = field(default_factory=lambda: CAMERA_MOTION)
    calm_share: float = 0.2
    elsewhere_share: float = 0.5
    passer_share: float = 0.4
    light: float = 1.0
    blur_share: float = 0.15


@dataclass(frozen=True)
class _Actor:
    layer: Layer
    motion: Motion
    is_target: bool = False
    light: Light | None = None


class DreamClip:
    """A clip as a function of time; the object may be hidden, and leave the window.

    Args:
        scene: What it is made from.
        dream_range: How far it goes.
        rng: Source of randomness.
    """

    def __init__(
        self, scene: DreamScene, dream_range: DreamRange, rng: np.random.Generator
    ) -> None:
        self._scene = scene
        amplitude = 0.25 if rng.random() < dream_range.calm_share else 1.0
        height, width = scene.size_hw
        self._background = (
            _part(scene, rng)
            if rng.random() < dream_range.elsewhere_share
            else _crop(scene.background, scene.window)
        )
        self._camera = Motion(
            rng,
            dream_range.camera,
            centre_xy=(width / 2, height / 2),
            side_px=scene.target.side_px,
            px_per_px=scene.px_per_px,
            size_hw=scene.size_hw,
            amplitude=amplitude,
        )
        ids = rng.permutation(sorted(scene.layers))
        self._actors = [
            self._object(int(object_id), dream_range, rng, amplitude) for object_id in ids
        ]
        if rng.random() < dream_range.passer_share:
            for _ in range(int(rng.integers(1, 3))):
                passer = self._passer(rng)
                # Most pass in front of everything, the others behind.
                self._actors.insert(len(self._actors) if rng.random() < 0.7 else 0, passer)
        self._light = Light(rng, dream_range.light)
        self._blur_sigma_px = (
            rng.uniform(0.5, 1.5) if rng.random() < dream_range.blur_share else 0.0
        )

    def frame(self, t: int) -> tuple[UInt8Array, BoolArray]:
        """Frame ``t``: (h, w, 3) uint8 RGB and (h, w) bool, where the object is seen."""
        scene = self._scene
        picture = cv2.remap(
            self._background,
            *self._camera.sampling(t).maps(),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT,
        )
        target = np.zeros(scene.size_hw, np.bool_)
        for actor, region, rgb, alpha in self._seen(t):
            window = (slice(region.y0, region.y1), slice(region.x0, region.x1))
            _paste(picture[window], rgb if actor.light is None else actor.light(rgb), alpha)
            if actor.is_target:
                target[window] = alpha > 127
            else:
                target[window] &= alpha <= 127
        picture = self._light(picture)
        if self._blur_sigma_px:
            picture = cv2.GaussianBlur(picture, (0, 0), self._blur_sigma_px)
        return picture, target

    def _seen(self, t: int) -> Iterator[tuple[_Actor, Roi, UInt8Array, UInt8Array]]:
        for actor in self._actors:
            sampling = actor.motion.sampling(t)
            region = sampling.region_of(actor.layer.box)
            if region is None:
                continue
            maps = sampling.maps(region)
            alpha = cv2.remap(actor.layer.alpha, *maps, cv2.INTER_LINEAR)
            rgb = cv2.remap(
                actor.layer.rgb, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
            yield actor, region, rgb, alpha

    def _object(
        self,
        object_id: int,
        dream_range: DreamRange,
        rng: np.random.Generator,
        amplitude: float,
    ) -> _Actor:
        scene = self._scene
        layer = scene.layers[object_id]
        motion = Motion(
            rng,
            dream_range.objects,
            centre_xy=_centre_xy(layer.box),
            side_px=layer.side_px,
            px_per_px=scene.px_per_px,
            size_hw=scene.size_hw,
            amplitude=amplitude,
        )
        motion.carried_by(self._camera)
        return _Actor(
            layer, motion, object_id == scene.object_id, Light(rng, 0.5 * dream_range.light)
        )

    def _passer(self, rng: np.random.Generator) -> _Actor:
        """A piece of the background, recoloured more often than not, as a bar or a blob."""
        scene = self._scene
        layer = Layer(*_piece(scene, rng))
        motion = Motion(
            rng,
            _PASSER_MOTION,
            centre_xy=_centre_xy(layer.box),
            side_px=scene.target.side_px,
            px_per_px=scene.px_per_px * float(rng.integers(2)),  # half of them stand
            size_hw=scene.size_hw,
        )
        motion.carried_by(self._camera)
        return _Actor(layer, motion, light=Light(rng, 2.0) if rng.random() < 0.6 else None)


def _centre_xy(box: Roi) -> tuple[float, float]:
    return ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)


def _piece(scene: DreamScene, rng: np.random.Generator) -> tuple[UInt8Array, UInt8Array, Roi]:
    """Texture from anywhere in the background, and a shape on or beside the object."""
    height, width = scene.size_hw
    box, side_px = scene.target.box, scene.target.side_px
    box_h, box_w = box.size_hw
    centre_x = rng.uniform(box.x0 - 0.3 * box_w, box.x1 + 0.3 * box_w)
    centre_y = rng.uniform(box.y0 - 0.3 * box_h, box.y1 + 0.3 * box_h)
    alpha = np.zeros((height, width), np.uint8)
    if rng.random() < 0.4:
        bar = (
            (centre_x, centre_y),
            (rng.uniform(0.6, 3) * side_px, rng.uniform(0.04, 0.22) * side_px),
            90.0 * float(rng.integers(2)) + rng.normal(0, 12),
        )
        cv2.fillPoly(alpha, [np.rint(cv2.boxPoints(bar)).astype(np.int32)], 255)
    else:
        radius_px = rng.uniform(0.15, 0.5) * side_px
        bumps = smooth_field(rng, (height, width), int(rng.integers(4, 8)), 1)[0]
        across = (np.arange(width) - centre_x)[None, :]
        down = (np.arange(height) - centre_y)[:, None] * rng.uniform(0.6, 1.6)
        alpha[1 - np.hypot(across, down) / radius_px + 0.6 * bumps > 0] = 255
    x, y, found_w, found_h = cv2.boundingRect(alpha)
    shape = Roi(x, y, x + max(found_w, 1), y + max(found_h, 1))
    return _part(scene, rng), alpha, shape


def _part(scene: DreamScene, rng: np.random.Generator) -> UInt8Array:
    """A part of the background as large as the window, from anywhere, as it is or mirrored."""
    height, width = scene.size_hw
    top = int(rng.integers(0, scene.background.shape[0] - height + 1))
    left = int(rng.integers(0, scene.background.shape[1] - width + 1))
    part = _crop(scene.background, Roi(left, top, left + width, top + height))
    return np.ascontiguousarray(part[:, ::-1]) if rng.integers(2) else part


def _crop(picture: UInt8Array, box: Roi) -> UInt8Array:
    return np.ascontiguousarray(picture[box.y0 : box.y1, box.x0 : box.x1])


def _paste(picture: UInt8Array, rgb: UInt8Array, alpha: UInt8Array) -> None:
    """Blend a layer in, in place, with a slightly soft outline."""
    soft = cv2.GaussianBlur(alpha, (0, 0), _FEATHER_SIGMA_PX).astype(np.float32)
    share = cv2.merge([soft, soft, soft]) * np.float32(1 / 255)
    below = picture.astype(np.float32)
    below += share * (rgb - below)
    picture[:] = np.rint(below)
