"""Pairs of frames made from still images, with exact flow everywhere.

Like FlyingChairs (A. Dosovitskiy et al., "FlowNet", ICCV 2015, section 4.2), objects move over a
background. Each has its own affine map on top of the background's. In addition, maps bend a little,
and objects are cut out along true masks or random outlines.

Frame 1 is composed first; frame 0 samples it through the maps. So the flow from frame 0 to frame 1
is the maps themselves: no inverse is needed, and pixels hidden in frame 1 have their true flow too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from mpn.errors import TrainingError
from mpn.training.data import StillPair
from mpn.training.propagation.clips import random_outline
from mpn.types import BoolArray, Float32Array

_FEATHER_SIGMA_PX = 0.7
_BACKGROUND_ZOOM = (1.0, 1.6)
_OBJECT_SHARE = (0.1, 0.6)
"""Size of an object over the frame's short side."""

Grid = npt.NDArray[np.float32]
"""(2, H, W) coordinates (x, y) of every pixel."""


@dataclass(frozen=True)
class SyntheticFlowOptions:
    """Extent of the motion between the two frames.

    Attributes:
        objects_max: Largest number of objects in a pair; there is at least one.
        shift_px: Scale of the shifts, whose lengths are exponentially distributed.
        shift_px_max: Bound of the shifts.
        rotation_deg: Scale of the rotations (normal distribution).
        zoom: Scale of the logarithm of the zoom (normal distribution).
        bend_px: Bound of the smooth local bends.
        background_share: Ratio of the background's motion to that of an object.
        still_share: Share of pairs whose background does not move, as with a fixed camera.
    """

    objects_max: int = 4
    shift_px: float = 9.0
    shift_px_max: float = 60.0
    rotation_deg: float = 5.0
    zoom: float = 0.06
    bend_px: float = 4.0
    background_share: float = 0.5
    still_share: float = 0.2


@dataclass(frozen=True)
class FlowSample:
    """Two frames with the flow from the first to the second.

    Attributes:
        frames: (2, 3, H, W) float32 RGB in 0..255.
        flow_px: (2, H, W) float32, (x, y) in pixels.
        valid: (H, W) bool, True if the flow is known.
    """

    frames: Float32Array
    flow_px: Float32Array
    valid: BoolArray


class _Map:
    """Map of the plane: affine about a centre, plus a smooth bend."""

    def __init__(
        self,
        rng: np.random.Generator,
        options: SyntheticFlowOptions,
        centre_xy: npt.NDArray[np.float64],
        size_hw: tuple[int, int],
        share: float,
    ) -> None:
        length = share * min(rng.exponential(options.shift_px), options.shift_px_max)
        direction = rng.uniform(0, 2 * math.pi)
        self.shift = np.array([math.cos(direction), math.sin(direction)]) * length
        angle = math.radians(rng.normal(0, options.rotation_deg)) * share
        zoom = math.exp(rng.normal(0, options.zoom) * share)
        self.linear = zoom * np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        self.centre = centre_xy
        amplitude = rng.uniform(0, share * options.bend_px)
        coarse = rng.uniform(-1, 1, (2, 4, 5)).astype(np.float32) * np.float32(amplitude)
        self.bend = np.stack(
            [cv2.resize(c, size_hw[::-1], interpolation=cv2.INTER_LINEAR) for c in coarse]
        )

    def __call__(self, grid: Grid) -> Grid:
        """Map each point; the bend depends on its place in the result."""
        centred = grid - self.centre[:, None, None]
        moved = np.tensordot(self.linear, centred, axes=1)
        moved += (self.centre + self.shift)[:, None, None]
        bent: Grid = (moved + self.bend).astype(np.float32)
        return bent


class SyntheticPairs:
    """Numbered pairs, each a pure function of seed and number.

    Args:
        stills: Images for backgrounds and objects.
        size_hw: Size of the frames.
        options: Extent of the motion.
        seed: Seed of all random choices.

    Raises:
        TrainingError: If there is no image.
    """

    def __init__(
        self,
        stills: Sequence[StillPair],
        size_hw: tuple[int, int],
        options: SyntheticFlowOptions,
        seed: int,
    ) -> None:
        if not stills:
            raise TrainingError("synthetic flow is made from still images: add --stills")
        self._stills, self._size_hw, self._options, self._seed = stills, size_hw, options, seed

    def pair(self, *number: int) -> FlowSample:
        """Make pair ``number``, one or several integers."""
        rng = np.random.default_rng([self._seed, *number])
        height, width = self._size_hw
        options = self._options
        ys, xs = np.mgrid[:height, :width].astype(np.float32)
        grid: Grid = np.stack([xs, ys])
        moves = 0.0 if rng.random() < options.still_share else options.background_share
        middle = np.array([width / 2, height / 2])
        below = _Map(rng, options, middle, self._size_hw, moves)(grid) if moves else grid
        placed = self._background(rng)
        frame0, frame1 = (_sampled(placed, g) for g in (below, grid))
        flow = below - grid
        for _ in range(int(rng.integers(1, options.objects_max + 1))):
            texture, alpha, matrix = self._object(rng)
            centre = rng.uniform(0, 1, 2) * (width, height)
            matrix = np.hstack([matrix, (-matrix @ centre + _middle(alpha))[:, None]])
            above = _Map(rng, options, centre, self._size_hw, 1.0)(below)
            layers = [(texture, alpha, _applied(matrix, g)) for g in (above, grid)]
            (frame0, cover), (frame1, _) = (
                _pasted(frame, *layer)
                for frame, layer in zip((frame0, frame1), layers, strict=True)
            )
            flow = np.where(cover[None], above - grid, flow)
        frames = np.stack([frame0, frame1]).transpose(0, 3, 1, 2)
        return FlowSample(
            np.ascontiguousarray(frames, dtype=np.float32),
            np.ascontiguousarray(flow, dtype=np.float32),
            np.ones(self._size_hw, np.bool_),
        )

    def _background(self, rng: np.random.Generator) -> tuple[Float32Array, Float32Array]:
        """Choose an image, and the affine map (2, 3) from the frame into it."""
        rgb = self._stills[int(rng.integers(len(self._stills)))].rgb()
        height, width = self._size_hw
        cover = max(height / rgb.shape[0], width / rgb.shape[1])
        scale = 1 / (cover * rng.uniform(*_BACKGROUND_ZOOM))
        mirror = -1.0 if rng.random() < 0.5 else 1.0
        linear = np.array([[mirror * scale, 0.0], [0.0, scale]])
        offset = np.array([rgb.shape[1] / 2, rgb.shape[0] / 2]) - linear @ (width / 2, height / 2)
        return _smoothed(rgb, scale), np.hstack([linear, offset[:, None]]).astype(np.float32)

    def _object(
        self, rng: np.random.Generator
    ) -> tuple[Float32Array, Float32Array, npt.NDArray[np.float64]]:
        """Choose texture and alpha at their size in the frame, and a rotation.

        The rotation maps from the frame into the texture.
        """
        pair = self._stills[int(rng.integers(len(self._stills)))]
        rgb, mask = pair.rgb(), pair.mask()
        if rng.random() < 0.5:
            mask = random_outline((mask.shape[0], mask.shape[1]), int(rng.integers(2**31)))
        ys, xs = np.nonzero(mask)
        extent = max(np.ptp(xs), np.ptp(ys)) + 1 if len(xs) else max(mask.shape)
        scale = rng.uniform(*_OBJECT_SHARE) * min(self._size_hw) / extent
        size = (max(8, round(mask.shape[1] * scale)), max(8, round(mask.shape[0] * scale)))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        texture = cv2.resize(rgb, size, interpolation=how).astype(np.float32)
        alpha = cv2.resize(mask.astype(np.float32), size, interpolation=how)
        alpha = cv2.GaussianBlur(alpha, (0, 0), _FEATHER_SIGMA_PX)
        angle = rng.uniform(-0.5, 0.5)
        turned = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        if rng.random() < 0.5:
            turned[:, 0] *= -1
        return texture, alpha, turned


def _smoothed(rgb: npt.NDArray[np.uint8], scale: float) -> Float32Array:
    """Convert an image to float32 and blur it against aliasing.

    Only if ``scale``, in texture pixels per frame pixel, is well above 1.
    """
    picture = rgb.astype(np.float32)
    if scale > 1.2:
        cv2.GaussianBlur(picture, (0, 0), 0.45 * scale, dst=picture)
    return picture


def _middle(alpha: Float32Array) -> npt.NDArray[np.float64]:
    ys, xs = np.nonzero(alpha > 0.5)
    if not len(xs):
        return np.array(alpha.shape[::-1]) / 2
    return np.array([xs.mean(), ys.mean()])


def _applied(matrix: npt.NDArray[np.float64], grid: Grid) -> Grid:
    moved = np.tensordot(matrix[:, :2], grid, axes=1) + matrix[:, 2][:, None, None]
    return moved.astype(np.float32)


def _sampled(placed: tuple[Float32Array, Float32Array], grid: Grid) -> Float32Array:
    texture, matrix = placed
    at = _applied(matrix.astype(np.float64), grid)
    out: Float32Array = cv2.remap(
        texture, at[0], at[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return out


def _pasted(
    frame: Float32Array, texture: Float32Array, alpha: Float32Array, at: Grid
) -> tuple[Float32Array, BoolArray]:
    """Paste an object over a frame; return the frame and the visible object mask."""
    rgb = cv2.remap(texture, at[0], at[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    share = cv2.remap(alpha, at[0], at[1], cv2.INTER_LINEAR)[..., None]
    return frame + share * (rgb - frame), share[..., 0] > 0.5
