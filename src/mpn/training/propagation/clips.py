"""Clips to train on: real sequences, and still images with synthetic motion.

A clip is a pure function of its seed: ``frame(t)`` always returns the same image and mask, so an
interrupted training run resumes on exactly the same data.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from mpn._common.validation import check_number
from mpn.errors import TrainingError
from mpn.training.data import DavisSequence, StillPair
from mpn.types import BoolArray, Float32Array, UInt8Array

_STILL_SHORT_SIDE_PX = 400
_STILL_FRAMES = 40


class Clip(Protocol):
    """Short video with the ground-truth mask of one object."""

    def __len__(self) -> int: ...

    def frame(self, t: int) -> tuple[UInt8Array, BoolArray]:
        """Return frame ``t``: (H, W, 3) uint8 RGB and (H, W) bool object mask."""


@dataclass(frozen=True)
class ClipSources:
    """Sequences and still images that clips are made from."""

    sequences: tuple[DavisSequence, ...]
    stills: tuple[StillPair, ...] = ()


class DavisClip:
    """Frames of a sequence, played in either direction with a stride.

    Args:
        sequence: Source of the frames.
        object_id: Object whose mask is the target.
        start: First frame.
        stride: Step between two frames; negative plays backwards.
    """

    def __init__(self, sequence: DavisSequence, object_id: int, start: int, stride: int) -> None:
        self.sequence, self.object_id = sequence, object_id
        stop = len(sequence) if stride > 0 else -1
        self.indices = range(start, stop, stride)

    def __len__(self) -> int:
        return len(self.indices)

    def frame(self, t: int) -> tuple[UInt8Array, BoolArray]:
        """See :meth:`Clip.frame`."""
        index = self.indices[t]
        return self.sequence.rgb(index), self.sequence.labels(index) == self.object_id


class SmoothSignal:
    """Smooth random signal of t: the sum of two slow sine waves, bounded.

    The value stays within +-``amplitude``.

    Args:
        rng: Source of randomness.
        amplitude: Bound of the signal.
        fastest: Largest rate in radians per frame; amplitude * fastest bounds the speed.
    """

    def __init__(self, rng: np.random.Generator, amplitude: float, fastest: float = 0.2) -> None:
        self.amplitudes = amplitude * rng.uniform(0.2, 0.5, 2)
        self.rates = rng.uniform(0.1, 1.0, 2) * fastest
        self.phases = rng.uniform(0, 2 * np.pi, 2)

    def __call__(self, t: int) -> float:
        """Return the signal at frame ``t``."""
        return float(np.sum(self.amplitudes * np.sin(self.rates * t + self.phases)))


class AffineMotion:
    """Time-dependent affine map with a slow elastic deformation.

    Returned as sampling coordinates.
    """

    def __init__(self, rng: np.random.Generator, size_hw: tuple[int, int]) -> None:
        height, width = size_hw
        reach = 0.18 * min(size_hw)
        self.shift_x, self.shift_y = SmoothSignal(rng, reach), SmoothSignal(rng, reach)
        self.angle = SmoothSignal(rng, 0.3)
        self.log_scale = SmoothSignal(rng, 0.25)
        self.shear = SmoothSignal(rng, 0.12)
        self.bends = (
            SmoothSignal(rng, 0.05 * min(size_hw)),
            SmoothSignal(rng, 0.05 * min(size_hw)),
        )
        self.fields = [
            np.stack(
                [
                    cv2.resize(
                        rng.uniform(-1, 1, (5, 6)).astype(np.float32),
                        (width, height),
                        interpolation=cv2.INTER_CUBIC,
                    )
                    for _ in range(2)
                ]
            )
            for _ in range(2)
        ]
        ys, xs = np.mgrid[:height, :width].astype(np.float32)
        self.xs, self.ys = xs - width / 2, ys - height / 2
        self.centre_xy = (width / 2, height / 2)

    def coordinates(self, t: int) -> tuple[Float32Array, Float32Array]:
        """Return the sampling position of frame ``t`` in the image.

        Two (H, W) float32 maps, x and y.
        """
        scale = np.exp(-self.log_scale(t))
        cos, sin = scale * np.cos(self.angle(t)), scale * np.sin(self.angle(t))
        shear = self.shear(t)
        bend = sum(signal(t) * field for signal, field in zip(self.bends, self.fields, strict=True))
        map_x = cos * self.xs + (shear - sin) * self.ys + bend[0]  # type: ignore[index]
        map_y = sin * self.xs + cos * self.ys + bend[1]  # type: ignore[index]
        map_x += self.centre_xy[0] + self.shift_x(t)
        map_y += self.centre_xy[1] + self.shift_y(t)
        return map_x.astype(np.float32), map_y.astype(np.float32)


class StillClip:
    """Still image with random affine and elastic motion; borders are mirrored.

    Args:
        pair: Image and mask.
        seed: Seed of the motion.
    """

    def __init__(self, pair: StillPair, seed: int) -> None:
        rgb, mask = pair.rgb(), pair.mask()
        scale = _STILL_SHORT_SIDE_PX / min(mask.shape)
        size = (round(mask.shape[1] * scale), round(mask.shape[0] * scale))
        self.rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_LINEAR)
        self.mask = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_LINEAR)
        self.motion = AffineMotion(np.random.default_rng(seed), self.mask.shape)

    def moved(self, seed: int) -> StillClip:
        """Return a clip of the same image with another motion."""
        other = copy(self)
        other.motion = AffineMotion(np.random.default_rng(seed), self.mask.shape)
        return other

    def __len__(self) -> int:
        return _STILL_FRAMES

    def frame(self, t: int) -> tuple[UInt8Array, BoolArray]:
        """See :meth:`Clip.frame`."""
        map_x, map_y = self.motion.coordinates(t)
        rgb = cv2.remap(self.rgb, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        mask = cv2.remap(self.mask, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        return rgb, mask > 127


class ShapeClip(StillClip):
    """Random shape cut from a still image.

    No network can recognise this object by its appearance.

    Args:
        pair: Source of the image; its mask is not used.
        seed: Seed of shape and motion.
    """

    def __init__(self, pair: StillPair, seed: int) -> None:
        super().__init__(pair, seed)
        height, width = self.mask.shape
        self.mask = random_outline((height, width), seed).astype(np.uint8) * 255


def random_outline(size_hw: tuple[int, int], seed: int) -> BoolArray:
    """Draw a connected random shape, mostly inside the image.

    Args:
        size_hw: Height and width.
        seed: Seed of the shape.

    Returns:
        (H, W) bool.
    """
    rng = np.random.default_rng([seed, 1])
    height, width = size_hw
    coarse = rng.uniform(-1, 1, (int(rng.integers(4, 9)),) * 2).astype(np.float32)
    noise = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    # The dome keeps most shapes inside the image and connected.
    ys, xs = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    dome = 1.0 - 2.2 * np.hypot(xs, ys)
    shape = (noise * rng.uniform(0.3, 0.9) + dome > 0).astype(np.uint8)
    count, components = cv2.connectedComponents(shape)
    if count > 1:
        largest = 1 + int(np.argmax(np.bincount(components.ravel())[1:]))
        shape = components == largest
    outline: BoolArray = shape > 0
    return outline


_FEATHER_SIGMA_PX = 1.0
"""Blur of a pasted object's edge: a hard edge would reveal its outline to the network."""
_DUPLICATE_TARGET_SHARE = 0.5
"""Share of the duplicates whose pasted object is the target: the other one may be hidden by it."""
_VISIBLE_FRAMES = (2, 9)
_ABSENT_FRAMES = 3


class CompositeClip:
    """Object of one clip pasted over another clip, moving independently.

    Args:
        base: Clip below; the pasted object occludes its object.
        over: Clip whose object is cut out and pasted.
        target_over: True makes the pasted object the target, False the base's object.
        seed: Seed of size and path.
    """

    def __init__(self, base: Clip, over: Clip, *, target_over: bool, seed: int) -> None:
        self.base, self.over, self.target_over = base, over, target_over
        rng = np.random.default_rng(seed)
        size_hw = base.frame(0)[1].shape
        mask = over.frame(0)[1]
        area = max(int(mask.sum()), 1)
        target_area = rng.uniform(0.02, 0.12) * size_hw[0] * size_hw[1]
        self.scale = float(np.clip(np.sqrt(target_area / area), 0.3, 2.0))
        ys, xs = np.nonzero(mask)
        self.anchor_xy = (xs.mean(), ys.mean()) if len(xs) else (0.0, 0.0)
        self.centre_xy = rng.uniform(0.2, 0.8, 2) * (size_hw[1], size_hw[0])
        # At 854x480 seldom over 15 px per frame, the limit of the flow estimator.
        self.path_x = SmoothSignal(rng, 0.4 * size_hw[1], fastest=0.06)
        self.path_y = SmoothSignal(rng, 0.3 * size_hw[0], fastest=0.06)
        self.flip = bool(rng.integers(2))

    def __len__(self) -> int:
        return min(len(self.base), len(self.over))

    def frame(self, t: int) -> tuple[UInt8Array, BoolArray]:
        """See :meth:`Clip.frame`."""
        base_rgb, base_mask = self.base.frame(t)
        over_rgb, over_mask = self.over.frame(t)
        height, width = base_mask.shape
        scale_x = -self.scale if self.flip else self.scale
        matrix = np.array(
            [
                [scale_x, 0, self.centre_xy[0] + self.path_x(t) - scale_x * self.anchor_xy[0]],
                [
                    0,
                    self.scale,
                    self.centre_xy[1] + self.path_y(t) - self.scale * self.anchor_xy[1],
                ],
            ]
        )
        rgb = cv2.warpAffine(over_rgb, matrix, (width, height), flags=cv2.INTER_LINEAR)
        mask = cv2.warpAffine(over_mask.astype(np.uint8) * 255, matrix, (width, height))
        alpha = (
            cv2.GaussianBlur(mask, (0, 0), _FEATHER_SIGMA_PX).astype(np.float32)[..., None] / 255
        )
        mixed = np.rint(base_rgb + alpha * (rgb.astype(np.float32) - base_rgb)).astype(np.uint8)
        pasted = mask > 127
        return mixed, (pasted if self.target_over else base_mask & ~pasted)


class DuplicateClip(CompositeClip):
    """Composite of a clip with a second object like its own, close to it.

    Appearance does not separate the two objects: only the probability of the frame before does.

    Args:
        base: Clip below.
        over: Another clip of the same object.
        target_over: See :class:`CompositeClip`.
        seed: Seed of size, place and path.
    """

    def __init__(self, base: Clip, over: Clip, *, target_over: bool, seed: int) -> None:
        super().__init__(base, over, target_over=target_over, seed=seed)
        rng = np.random.default_rng([seed, 1])
        ys, xs = np.nonzero(base.frame(0)[1])
        if len(xs) == 0:
            return
        area = max(int(over.frame(0)[1].sum()), 1)
        self.scale = float(np.clip(np.sqrt(rng.uniform(0.6, 1.4) * len(xs) / area), 0.3, 2.0))
        box_wh = np.array([np.ptp(xs) + 1, np.ptp(ys) + 1])
        # A target in front may start over its copy, which then comes out from behind it.
        least = 0.0 if target_over else 0.7
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(least, 1.6)
        offset = distance * box_wh * (np.cos(angle), np.sin(angle))
        height, width = base.frame(0)[1].shape
        centre_xy = np.array([xs.mean(), ys.mean()])
        self.centre_xy = np.clip(centre_xy + offset, 0, (width, height))
        self.path_x = SmoothSignal(rng, 0.6 * box_wh[0], fastest=0.1)
        self.path_y = SmoothSignal(rng, 0.4 * box_wh[1], fastest=0.1)


class VanishingClip(CompositeClip):
    """Composite whose pasted object, the target, disappears after some frames.

    The frames after it show the base clip and its own object. Their target is an empty mask, for
    any warped probability.

    Args:
        base: Clip below.
        over: Clip whose object is cut out, pasted and removed.
        seed: Seed of size, path and time.
    """

    def __init__(self, base: Clip, over: Clip, *, seed: int) -> None:
        super().__init__(base, over, target_over=True, seed=seed)
        self.visible_frames = int(np.random.default_rng([seed, 1]).integers(*_VISIBLE_FRAMES))

    def __len__(self) -> int:
        return min(super().__len__(), self.visible_frames + _ABSENT_FRAMES)

    def frame(self, t: int) -> tuple[UInt8Array, BoolArray]:
        """See :meth:`mpn.training.propagation.clips.Clip.frame`."""
        if t < self.visible_frames:
            return super().frame(t)
        rgb, mask = self.base.frame(t)
        return rgb, np.zeros_like(mask)


@dataclass(frozen=True)
class ClipMix:
    """Share of each kind of clip; the shares need not sum to 1.

    In sequences and stills the network can identify the object by its appearance, and then fails on
    unseen objects. A composite has two objects, and only the mask identifies the target.

    Attributes:
        davis: Sequences.
        still: Still images in motion.
        composite: One object pasted over a clip that has its own; either is the target.
        vanishing: Composites whose pasted object, the target, disappears after some frames.
        third_object: Share of the composites with a third object that passes and occludes.
        duplicate: Share of the composites whose second object is a copy of the first, close to it.
    """

    davis: float = 0.35
    still: float = 0.15
    composite: float = 0.50
    vanishing: float = 0.0
    third_object: float = 0.0
    duplicate: float = 0.0

    def __post_init__(self) -> None:
        shares = (self.davis, self.still, self.composite, self.vanishing)
        if min(shares) < 0 or not sum(shares):
            raise TrainingError(
                f"the shares of clips must be at least 0 and not all 0, got davis {self.davis}, "
                f"still {self.still}, composite {self.composite}, vanishing {self.vanishing}"
            )
        for name in ("third_object", "duplicate"):
            check_number(name, getattr(self, name), least=0, most=1, error=TrainingError)


def sample_clip(material: ClipSources, mix: ClipMix, seed: int) -> Clip:
    """Sample a random clip; the same for the same seed and material.

    Raises:
        TrainingError: If a sequence cannot be read.
    """
    rng = np.random.default_rng(seed)
    still = mix.still if material.stills else 0.0
    shares = np.array([mix.davis, still, mix.composite, mix.vanishing])
    kind = rng.choice(len(shares), p=shares / shares.sum())
    if kind == 0:
        return _sample_davis(material, rng)
    if kind == 1:
        return _sample_still(material, rng)
    base = _sample_davis(material, rng) if rng.random() < 0.5 else _sample_still(material, rng)
    if kind == 2 and mix.duplicate and rng.random() < mix.duplicate:
        return DuplicateClip(
            base,
            _another_of(base, rng),
            target_over=rng.random() < _DUPLICATE_TARGET_SHARE,
            seed=int(rng.integers(2**31)),
        )
    over = _sample_pasted(material, rng)
    if kind == 3:
        return VanishingClip(base, over, seed=int(rng.integers(2**31)))
    clip = CompositeClip(
        base, over, target_over=bool(rng.integers(2)), seed=int(rng.integers(2**31))
    )
    if mix.third_object and rng.random() < mix.third_object:
        third = _sample_pasted(material, rng)
        clip = CompositeClip(clip, third, target_over=False, seed=int(rng.integers(2**31)))
    return clip


def _sample_pasted(material: ClipSources, rng: np.random.Generator) -> Clip:
    source = rng.random()
    if source < 0.35:
        return _sample_davis(material, rng)
    return _sample_still(material, rng, StillClip if source < 0.65 else ShapeClip)


def _another_of(clip: Clip, rng: np.random.Generator) -> Clip:
    """Return another clip of the object of a sequence or a still image."""
    if isinstance(clip, DavisClip):
        sequence = clip.sequence
        start = int(rng.integers(len(sequence)))
        stride = 1 if start < len(sequence) // 2 else -1  # at least half of the frames follow
        return DavisClip(sequence, clip.object_id, start, stride)
    assert isinstance(clip, StillClip)
    return clip.moved(int(rng.integers(2**31)))


def _sample_davis(material: ClipSources, rng: np.random.Generator) -> Clip:
    sequence = material.sequences[rng.integers(len(material.sequences))]
    stride = int(rng.choice([1, 2, 3], p=[0.65, 0.25, 0.1])) * int(rng.choice([-1, 1]))
    length = len(sequence)
    # At least four frames remain after the start in the direction of play.
    ahead = min(4 * abs(stride), length - 1)
    start = int(rng.integers(0, length - ahead)) if stride > 0 else int(rng.integers(ahead, length))
    ids: npt.NDArray[Any] = np.unique(sequence.labels(start))
    ids = ids[ids > 0]
    object_id = int(ids[rng.integers(len(ids))]) if len(ids) else 1
    return DavisClip(sequence, object_id, start, stride)


def _sample_still(
    material: ClipSources, rng: np.random.Generator, kind: type[StillClip] = StillClip
) -> Clip:
    if not material.stills:
        return _sample_davis(material, rng)
    pair = material.stills[rng.integers(len(material.stills))]
    return kind(pair, int(rng.integers(2**31)))
