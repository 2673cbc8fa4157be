"""Move, bend and recolour the layers of an augmented clip."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from mpn.runtime.host.roi import box_from_prob
from mpn.types import Float32Array, Roi, UInt8Array

_CELL_PX = 8
"""Side of the cells of the coarse grid; positions between cell centres are interpolated."""
_MARGIN_CELLS = 1
_LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in the luma of ITU-R BT.601."""


@dataclass(frozen=True)
class MotionRange:
    """Ranges of a layer's start position and of its speed.

    Start values are uniform within +- these values. Speeds are normal with these standard
    deviations; ``speed_px`` is the mean of an exponential distribution.

    Attributes:
        shift_frac: Shift, as a share of the layer's side.
        angle_rad: Rotation.
        log_scale: Logarithm of the scale.
        shear: Horizontal shear.
        bend_frac: Amplitude of a smooth random displacement, as a share of the layer's side.
        speed_px: Pixels per frame, at a frame height of 480.
        angle_speed: Radians per frame.
        scale_speed: Change of the logarithm of the scale per frame.
        bend_speed: Change of ``bend_frac`` per frame.
    """

    shift_frac: float
    angle_rad: float
    log_scale: float
    shear: float
    bend_frac: float
    speed_px: float
    angle_speed: float
    scale_speed: float
    bend_speed: float


def smooth_field(
    rng: np.random.Generator, size_hw: tuple[int, int], cells: int, planes: int
) -> Float32Array:
    """Draw smooth random fields: (planes, H, W) float32, about -1..1.

    Args:
        rng: Source of randomness.
        size_hw: (height, width).
        cells: Independent values per side, with cubic interpolation between them.
        planes: Number of fields.
    """
    height, width = size_hw
    knots = rng.uniform(-1, 1, (planes, cells, cells)).astype(np.float32)
    return np.stack(
        [cv2.resize(plane, (width, height), interpolation=cv2.INTER_CUBIC) for plane in knots]
    )


class Sampling:
    """The positions at which a frame samples a layer, on a coarse grid.

    Args:
        coarse_xy: (2, rows, columns) float32, positions in the layer for the centres of cells of
            8 px. The grid has one more cell on each side of the frame.
        size_hw: (height, width) of the frame.
    """

    def __init__(self, coarse_xy: Float32Array, size_hw: tuple[int, int]) -> None:
        self._coarse_xy = coarse_xy
        self._size_hw = size_hw

    def region_of(self, box: Roi) -> Roi | None:
        """Return the region of the frame that contains all pixels sampled from ``box``."""
        x, y = self._coarse_xy
        # Interpolated positions lie between those of two cells, at most one step away.
        step_x = max(_largest_step(x), 1.0)
        step_y = max(_largest_step(y), 1.0)
        seen = (x > box.x0 - step_x) & (x < box.x1 + step_x)
        seen &= (y > box.y0 - step_y) & (y < box.y1 + step_y)
        cells = box_from_prob(seen.astype(np.float32), 0.5)
        if cells is None:
            return None
        height, width = self._size_hw
        x0, y0, x1, y1 = ((edge - _MARGIN_CELLS) * _CELL_PX for edge in cells.box_xyxy)
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        return Roi(x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None

    def maps(self, region: Roi | None = None) -> tuple[Float32Array, Float32Array]:
        """Return two (h, w) float32 maps for ``cv2.remap``; None: of the whole frame."""
        height, width = self._size_hw
        box = Roi(0, 0, width, height) if region is None else region
        row0, row1 = box.y0 // _CELL_PX, -(-box.y1 // _CELL_PX) + 2 * _MARGIN_CELLS
        column0, column1 = box.x0 // _CELL_PX, -(-box.x1 // _CELL_PX) + 2 * _MARGIN_CELLS
        part = self._coarse_xy[:, row0:row1, column0:column1]
        size = (part.shape[2] * _CELL_PX, part.shape[1] * _CELL_PX)
        top = box.y0 - (row0 - _MARGIN_CELLS) * _CELL_PX
        left = box.x0 - (column0 - _MARGIN_CELLS) * _CELL_PX
        box_h, box_w = box.size_hw
        fine_x, fine_y = (
            cv2.resize(np.ascontiguousarray(plane), size, interpolation=cv2.INTER_LINEAR)[
                top : top + box_h, left : left + box_w
            ]
            for plane in part
        )
        return fine_x, fine_y


class Motion:
    """An affine map and a smooth bend that change linearly with time.

    Args:
        rng: Source of randomness.
        motion_range: Ranges of position and speed.
        centre_xy: Centre of rotation and scaling, in pixels of the window.
        side_px: Side of the layer.
        px_per_px: Pixels of the window per pixel of a frame with a height of 480.
        size_hw: (height, width) of the window.
        amplitude: Factor of the ranges of the start values.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        motion_range: MotionRange,
        *,
        centre_xy: tuple[float, float],
        side_px: float,
        px_per_px: float,
        size_hw: tuple[int, int],
        amplitude: float = 1.0,
    ) -> None:
        self._centre_xy, self._size_hw = centre_xy, size_hw
        a = motion_range
        furthest = np.array(
            [
                a.shift_frac * side_px,
                a.shift_frac * side_px,
                a.angle_rad,
                a.log_scale,
                a.shear,
                a.bend_frac * side_px,
                a.bend_frac * side_px,
            ]
        )
        self._start = rng.uniform(-1, 1, 7) * furthest * amplitude
        heading = rng.uniform(0, 2 * np.pi)
        speed_px = rng.exponential(a.speed_px) * px_per_px
        bends = rng.normal(0, a.bend_speed * side_px, 2)
        self._speed = np.array(
            [
                speed_px * np.cos(heading),
                speed_px * np.sin(heading),
                rng.normal(0, a.angle_speed),
                rng.normal(0, a.scale_speed),
                0.0,
                *bends,
            ]
        )
        rows, columns = (_cells(side) for side in size_hw)
        knots = int(rng.integers(4, 8))
        self._bends = smooth_field(rng, (rows, columns), knots, 4).reshape(2, 2, rows, columns)

    def carried_by(self, other: Motion) -> None:
        """Add the speed of another layer, such as the camera's, to this one."""
        self._speed[:2] += other._speed[:2]

    def sampling(self, t: float) -> Sampling:
        """Return the positions at which frame ``t`` samples the layer."""
        shift_x, shift_y, angle, log_scale, shear, *bends = self._start + t * self._speed
        shrink = np.exp(-log_scale)
        cos, sin = shrink * np.cos(angle), shrink * np.sin(angle)
        centre_x, centre_y = self._centre_xy
        rows, columns = self._bends.shape[2:]
        x = (_cell_centres(columns) - (centre_x + shift_x))[None, :]
        y = (_cell_centres(rows) - (centre_y + shift_y))[:, None]
        bend = bends[0] * self._bends[0] + bends[1] * self._bends[1]
        coarse = np.stack(
            [
                cos * x + (shear - sin) * y + centre_x + bend[0],
                sin * x + cos * y + centre_y + bend[1],
            ]
        ).astype(np.float32)
        return Sampling(coarse, self._size_hw)


class Light:
    """A random change of gain, offset, saturation and gamma.

    Args:
        rng: Source of randomness.
        strength: Factor of the ranges.
    """

    def __init__(self, rng: np.random.Generator, strength: float = 1.0) -> None:
        gain = np.exp(strength * (rng.uniform(-0.2, 0.2) + rng.uniform(-0.06, 0.06, 3)))
        offset = strength * rng.uniform(-18, 18)
        saturation = max(1 + strength * rng.uniform(-0.35, 0.3), 0.0)
        gamma = np.exp(strength * rng.uniform(-0.2, 0.2))
        grey = np.tile(np.array(_LUMA), (3, 1))
        mix = np.diag(gain) @ (saturation * np.eye(3) + (1 - saturation) * grey)
        self._mix = np.hstack([mix, np.full((3, 1), offset)]).astype(np.float32)
        self._levels = np.rint(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)

    def __call__(self, rgb: UInt8Array) -> UInt8Array:
        """Recolour a picture, (h, w, 3) uint8 RGB."""
        lit: UInt8Array = cv2.LUT(cv2.transform(rgb, self._mix), self._levels)
        return lit


def _cells(side_px: int) -> int:
    return -(-side_px // _CELL_PX) + 2 * _MARGIN_CELLS


def _cell_centres(cells: int) -> npt.NDArray[np.float64]:
    first = (_CELL_PX - 1) / 2 - _MARGIN_CELLS * _CELL_PX
    return first + _CELL_PX * np.arange(cells, dtype=np.float64)


def _largest_step(coarse: Float32Array) -> float:
    down = np.abs(np.diff(coarse, axis=0)).max(initial=0.0)
    across = np.abs(np.diff(coarse, axis=1)).max(initial=0.0)
    return float(max(down, across))
