"""Clips to train on: real sequences, and still images set in motion.

A clip is a pure function of its seed: ``frame(t)`` gives the same picture and mask whenever it is
asked, so that an interrupted training run resumes on the very same data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from mpn.training.datasets import DavisSequence, StillPair
from mpn.types import BoolArray, Float32Array, UInt8Array

_STILL_SHORT_SIDE_PX = 400
_STILL_FRAMES = 40


class Clip(Protocol):
    """A short video with the true mask of one object."""

    def __len__(self) -> int: ...

    def frame(self, t: int) -> tuple[UInt8Array, BoolArray]:
        """Frame ``t``: (H, W, 3) uint8 RGB and (H, W) bool mask of the object."""


@dataclass(frozen=True)
class Material:
    """Everything clips are made from."""

    sequences: tuple[DavisSequence, ...]
    stills: tuple[StillPair, ...] = ()


class DavisClip:
    """Consecutive frames of a sequence, played either way and with a stride.

    Args:
        sequence: Where the frames come from.
        object_id: Object whose mask is the target.
        start: First frame.
        stride: Frames from one to the next; negative plays backwards.
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


class Sway:
    """A smooth random signal of t: a sum of two slow sine waves, within +-amplitude.

    Args:
        rng: Source of randomness.
        amplitude: Bound of the signal.
        fastest: Largest rate in radians a frame; amplitude * fastest bounds the speed.
    """

    def __init__(self, rng: np.random.Generator, amplitude: float, fastest: float = 0.2) -> None:
        self.amplitudes = amplitude * rng.uniform(0.2, 0.5, 2)
        self.rates = rng.uniform(0.1, 1.0, 2) * fastest
        self.phases = rng.uniform(0, 2 * np.pi, 2)

    def __call__(self, t: int) -> float:
        """The signal at frame ``t``."""
        return float(np.sum(self.amplitudes * np.sin(self.rates * t + self.phases)))


class _Motion:
    """A moving affine map with a slow elastic deformation, as sampling coordinates."""

    def __init__(self, rng: np.random.Generator, size_hw: tuple[int, int]) -> None:
        height, width = size_hw
        reach = 0.18 * min(size_hw)
        self.shift_x, self.shift_y = Sway(rng, reach), Sway(rng, reach)
        self.angle = Sway(rng, 0.3)
        self.log_scale = Sway(rng, 0.25)
        self.shear = Sway(rng, 0.12)
        self.bends = (Sway(rng, 0.05 * min(size_hw)), Sway(rng, 0.05 * min(size_hw)))
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
        """Where frame ``t`` samples the still picture: two (H, W) float32 maps, x and y."""
        scale = np.exp(-self.log_scale(t))
        cos, sin = scale * np.cos(self.angle(t)), scale * np.sin(self.angle(t))
        shear = self.shear(t)
        bend = sum(sway(t) * field for sway, field in zip(self.bends, self.fields, strict=True))
        map_x = cos * self.xs + (shear - sin) * self.ys + bend[0]  # type: ignore[index]
        map_y = sin * self.xs + cos * self.ys + bend[1]  # type: ignore[index]
        map_x += self.centre_xy[0] + self.shift_x(t)
        map_y += self.centre_xy[1] + self.shift_y(t)
        return map_x.astype(np.float32), map_y.astype(np.float32)


class StillClip:
    """A still image that moves, turns, breathes and bends; borders are mirrored.

    Args:
        pair: Image and mask.
        seed: Decides the motion.
    """

    def __init__(self, pair: StillPair, seed: int) -> None:
        rgb, mask = pair.rgb(), pair.mask()
        scale = _STILL_SHORT_SIDE_PX / min(mask.shape)
        size = (round(mask.shape[1] * scale), round(mask.shape[0] * scale))
        self.rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_LINEAR)
        self.mask = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_LINEAR)
        self.motion = _Motion(np.random.default_rng(seed), self.mask.shape)

    def __len__(self) -> int:
        return _STILL_FRAMES

    def frame(self, t: int) -> tuple[UInt8Array, BoolArray]:
        """See :meth:`Clip.frame`."""
        map_x, map_y = self.motion.coordinates(t)
        rgb = cv2.remap(self.rgb, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        mask = cv2.remap(self.mask, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        return rgb, mask > 127


class PatchClip(StillClip):
    """A random shape cut from a still image: an object that no network can know by its looks.

    Args:
        pair: Where the picture comes from; its mask is not used.
        seed: Decides shape and motion.
    """

    def __init__(self, pair: StillPair, seed: int) -> None:
        super().__init__(pair, seed)
        height, width = self.mask.shape
        self.mask = random_outline((height, width), seed).astype(np.uint8) * 255


def random_outline(size_hw: tuple[int, int], seed: int) -> BoolArray:
    """A random shape in one piece, mostly inside the picture.

    Args:
        size_hw: Height and width.
        seed: Decides the shape.

    Returns:
        (H, W) bool.
    """
    rng = np.random.default_rng([seed, 1])
    height, width = size_hw
    coarse = rng.uniform(-1, 1, (int(rng.integers(4, 9)),) * 2).astype(np.float32)
    noise = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    # A dome keeps the shape inside the picture and in one piece, mostly.
    ys, xs = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    dome = 1.0 - 2.2 * np.hypot(xs, ys)
    shape = (noise * rng.uniform(0.3, 0.9) + dome > 0).astype(np.uint8)
    count, components = cv2.connectedComponents(shape)
    if count > 1:
        largest = 1 + int(np.argmax(np.bincount(components.ravel())[1:]))
        shape = components == largest
    outline: BoolArray = shape > 0
    return outline
