"""Clips to train on: real sequences, and still images with synthetic motion.

A clip is a pure function of its seed: ``frame(t)`` always returns the same image and mask, so an
interrupted training run resumes on exactly the same data.
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
