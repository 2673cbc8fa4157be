"""Generate small random frames for the kernels, with unaligned planes."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from mpn.types import Float32Array, UInt8Array

ODD_HW, EVEN_HW = (37, 53), (40, 52)
"""Numbers of pixels that are and are not a multiple of 4 test both ways of loading."""


@dataclass(frozen=True)
class Scene:
    """Frame with objects.

    Attributes:
        rgb: (H, W, 3) uint8, smooth patches of colour.
        prob: (K, H, W) float32, 0..1.
        there: (2, H, W) float32 in pixels, flow to the previous frame.
        back: (2, H, W) float32 in pixels, flow from it, roughly the inverse.
    """

    rgb: UInt8Array
    prob: Float32Array
    there: Float32Array
    back: Float32Array

    @property
    def size_hw(self) -> tuple[int, int]:
        return (self.rgb.shape[0], self.rgb.shape[1])

    @property
    def sizes(self) -> dict[str, int]:
        return {"height": self.size_hw[0], "width": self.size_hw[1]}


def make_scene(size_hw: tuple[int, int], objects: int = 3, *, seed: int = 0) -> Scene:
    rng = np.random.default_rng(seed)
    height, width = size_hw
    noise = cv2.GaussianBlur(rng.random((height, width, 3), dtype=np.float32), (0, 0), 3)
    rgb = np.clip((noise - 0.35) * 850, 0, 255).astype(np.uint8)
    prob = rng.random((objects, height, width), dtype=np.float32)
    there = rng.normal(0, 3, (2, height, width)).astype(np.float32)
    there[:, 0, 0] = np.nan
    there[0, 1, 1], there[1, 2, 2] = np.inf, -3e38
    there[0, 3, 3] = 2 * width  # outside the frame
    back = -there + rng.normal(0, 1, there.shape).astype(np.float32)
    return Scene(rgb, prob, there, back)


def boxes_in(size_hw: tuple[int, int]) -> npt.NDArray[np.int32]:
    """Return (3, 4) int32: a box inside, an empty box, and the whole frame."""
    height, width = size_hw
    return np.array([[5, 4, width - 6, height - 3], [0, 0, 0, 0], [0, 0, width, height]], np.int32)


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> np.ndarray:
    """Return unwritten memory: NaN, or an integer that no result has."""
    value = np.nan if np.issubdtype(dtype, np.floating) else np.iinfo(dtype).max - 6
    return np.full(shape, value, dtype)
