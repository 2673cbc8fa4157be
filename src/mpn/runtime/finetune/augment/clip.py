"""Render short augmented clips from the layers of the first frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np

from mpn.runtime.finetune.augment.motion import Light, Motion, MotionRange, smooth_field
from mpn.runtime.finetune.augment.scene import Layer, LucidScene
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
_DISTRACTOR_MOTION = MotionRange(0, 0, 0, 0, 0, 6.0, 0.02, 0.015, 0)
"""A distractor starts at its drawn position."""

_FEATHER_SIGMA_PX = 0.8
"""Blur of a pasted outline: from a hard outline the network would learn the edge of the paste."""


@dataclass(frozen=True)
class LucidRange:
    """Ranges and probabilities that clips are drawn from.

    Attributes:
        objects: Motion of the objects relative to the background.
        camera: Motion of the background.
        static_prob: Probability that all layers start near their given position.
        background_swap_prob: Probability that the background is a random part of the frame. The
            object then moves over parts that it does not cover in the given frame.
        distractor_prob: Probability of distractors: pieces of background that move in front of the
            object or behind it.
        light: Strength of the colour change; 0: none.
        blur_share: Share of clips that are out of focus.
    """

    objects: MotionRange = field(default_factory=lambda: OBJECT_MOTION)
    camera: MotionRange = field(default_factory=lambda: CAMERA_MOTION)
    static_prob: float = 0.2
    background_swap_prob: float = 0.5
    distractor_prob: float = 0.4
    light: float = 1.0
    blur_share: float = 0.15


@dataclass(frozen=True)
class _Actor:
    layer: Layer
    motion: Motion
    is_target: bool = False
    light: Light | None = None


class LucidClip:
    """A clip as a function of time; the object may be occluded or leave the window.

    Args:
        scene: The layers and the background.
        lucid_range: Ranges of the random draws.
        rng: Source of randomness.
    """

    def __init__(
        self, scene: LucidScene, lucid_range: LucidRange, rng: np.random.Generator
    ) -> None:
        self._scene = scene
        amplitude = 0.25 if rng.random() < lucid_range.static_prob else 1.0
        height, width = scene.size_hw
        self._background = (
            _random_background(scene, rng)
            if rng.random() < lucid_range.background_swap_prob
            else _crop(scene.background, scene.window)
        )
        self._camera = Motion(
            rng,
            lucid_range.camera,
            centre_xy=(width / 2, height / 2),
            side_px=scene.target.side_px,
            px_per_px=scene.px_per_px,
            size_hw=scene.size_hw,
            amplitude=amplitude,
        )
        ids = rng.permutation(sorted(scene.layers))
        self._actors = [
            self._object(int(object_id), lucid_range, rng, amplitude) for object_id in ids
        ]
        if rng.random() < lucid_range.distractor_prob:
            for _ in range(int(rng.integers(1, 3))):
                distractor = self._distractor(rng)
                # Most are in front of all layers, the others behind them.
                self._actors.insert(len(self._actors) if rng.random() < 0.7 else 0, distractor)
        self._light = Light(rng, lucid_range.light)
        self._blur_sigma_px = (
            rng.uniform(0.5, 1.5) if rng.random() < lucid_range.blur_share else 0.0
        )

    def frame(self, t: int) -> tuple[UInt8Array, BoolArray]:
        """Render frame ``t``: (h, w, 3) uint8 RGB and the visible mask, (h, w) bool."""
        scene = self._scene
        picture = cv2.remap(
            self._background,
            *self._camera.sampling(t).maps(),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT,
        )
        target = np.zeros(scene.size_hw, np.bool_)
        for actor, region, rgb, alpha in self._visible(t):
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

    def _visible(self, t: int) -> Iterator[tuple[_Actor, Roi, UInt8Array, UInt8Array]]:
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
        lucid_range: LucidRange,
        rng: np.random.Generator,
        amplitude: float,
    ) -> _Actor:
        scene = self._scene
        layer = scene.layers[object_id]
        motion = Motion(
            rng,
            lucid_range.objects,
            centre_xy=_centre_xy(layer.box),
            side_px=layer.side_px,
            px_per_px=scene.px_per_px,
            size_hw=scene.size_hw,
            amplitude=amplitude,
        )
        motion.carried_by(self._camera)
        return _Actor(
            layer, motion, object_id == scene.object_id, Light(rng, 0.5 * lucid_range.light)
        )

    def _distractor(self, rng: np.random.Generator) -> _Actor:
        """Draw a distractor: a bar or blob of background texture, usually recoloured."""
        scene = self._scene
        layer = Layer(*_distractor_shape(scene, rng))
        motion = Motion(
            rng,
            _DISTRACTOR_MOTION,
            centre_xy=_centre_xy(layer.box),
            side_px=scene.target.side_px,
            px_per_px=scene.px_per_px * float(rng.integers(2)),  # half of them do not move
            size_hw=scene.size_hw,
        )
        motion.carried_by(self._camera)
        return _Actor(layer, motion, light=Light(rng, 2.0) if rng.random() < 0.6 else None)


def _centre_xy(box: Roi) -> tuple[float, float]:
    return ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)


def _distractor_shape(
    scene: LucidScene, rng: np.random.Generator
) -> tuple[UInt8Array, UInt8Array, Roi]:
    """Draw background texture and a shape on or near the object."""
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
    return _random_background(scene, rng), alpha, shape


def _random_background(scene: LucidScene, rng: np.random.Generator) -> UInt8Array:
    """Cut a random part of the background with the window's size, possibly flipped."""
    height, width = scene.size_hw
    top = int(rng.integers(0, scene.background.shape[0] - height + 1))
    left = int(rng.integers(0, scene.background.shape[1] - width + 1))
    part = _crop(scene.background, Roi(left, top, left + width, top + height))
    return np.ascontiguousarray(part[:, ::-1]) if rng.integers(2) else part


def _crop(picture: UInt8Array, box: Roi) -> UInt8Array:
    return np.ascontiguousarray(picture[box.y0 : box.y1, box.x0 : box.x1])


def _paste(picture: UInt8Array, rgb: UInt8Array, alpha: UInt8Array) -> None:
    """Blend a layer into a picture in place, with a slightly soft outline."""
    soft = cv2.GaussianBlur(alpha, (0, 0), _FEATHER_SIGMA_PX).astype(np.float32)
    share = cv2.merge([soft, soft, soft]) * np.float32(1 / 255)
    below = picture.astype(np.float32)
    below += share * (rgb - below)
    picture[:] = np.rint(below)
