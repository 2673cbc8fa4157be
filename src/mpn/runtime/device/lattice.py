"""Filter by the bilateral kernel on the device, on a permutohedral lattice.

See kernels/crf_lattice.cu. No step waits for the host: kernels read the number of vertices from
device memory. Memory is allocated once, for the worst case of six vertices per pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpn.cuda.array import Arguments, DeviceArray, KernelDevice
from mpn.errors import InputError
from mpn.types import Float32Array

DIMENSIONS = 5
"""x, y, red, green, blue."""
AXES = DIMENSIONS + 1
NARROWEST_SIGMA = 0.2
"""As in mpn.runtime.crf.kernels: below it the weight of a neighbour is 0."""

_CELL_BITS = 52
"""Bits of a key for the cell; the others hold region and class."""
_BLOCKS = 1024
"""Blocks of kernels whose amount of work is on the device: each strides through it."""
_LARGEST_LEVEL = 255


@dataclass(frozen=True)
class PixelRegions:
    """Pixels that take part: those of disjoint rectangles, with consecutive numbers.

    Attributes:
        boxes: (count, 4) int32, the rectangles; unused ones are empty and last.
        starts: (count + 1,) int32, number of pixels before each.
        size_hw: (height, width) of the frame.
    """

    boxes: DeviceArray
    starts: DeviceArray
    size_hw: tuple[int, int]

    @property
    def count(self) -> int:
        """Largest number of rectangles."""
        return self.boxes.shape[0]

    @property
    def capacity(self) -> int:
        """Largest number of pixels."""
        return self.size_hw[0] * self.size_hw[1]


@dataclass(frozen=True)
class Packing:
    """Packing of the lattice cells into integer keys.

    Attributes:
        scale: (5,) float32: scales that give the lattice's blur a standard deviation of 1.
        lowest: (5,) int32: smallest cell of each axis.
        steps: (6,) uint64: increment of the key per cell of each axis; 0 for the last axis, whose
            cell follows from the others.
    """

    scale: Float32Array
    lowest: npt.NDArray[np.int32]
    steps: npt.NDArray[np.uint64]


def lattice_packing(size_hw: tuple[int, int], *, sxy: float, srgb: float) -> Packing:
    """Pack all lattice cells that an image of this size can use, with any colours.

    Args:
        size_hw: (height, width) of the frame.
        sxy: Standard deviation in pixels.
        srgb: Standard deviation in levels of 0..255.

    Raises:
        InputError: If there are more cells than 52 bits can number.
    """
    # Adams et al., "Fast High-Dimensional Filtering Using the Permutohedral Lattice", p. 5 and 6.
    i = np.arange(DIMENSIONS)
    deviation = math.sqrt(2 / 3) * AXES
    scale = (deviation / np.sqrt((i + 1) * (i + 2))).astype(np.float32)
    height, width = size_hw
    sigma_px, sigma_rgb = max(sxy, NARROWEST_SIGMA), max(srgb, NARROWEST_SIGMA)
    features = [(width - 1) / sigma_px, (height - 1) / sigma_px, *[_LARGEST_LEVEL / sigma_rgb] * 3]
    largest = np.array(features) * scale
    lowest, sizes = [], []
    for axis in range(DIMENSIONS):
        factor = np.zeros(DIMENSIONS)
        factor[axis:] = 1
        if axis:
            factor[axis - 1] = -axis
        ends = largest * factor
        # Two more cells: one for rounding, one for a vertex next to the last cell.
        low = math.floor(np.minimum(ends, 0).sum() / AXES) - 2
        lowest.append(low)
        sizes.append(math.ceil(np.maximum(ends, 0).sum() / AXES) + 2 - low + 1)
    if math.prod(sizes) > 2**_CELL_BITS:
        raise InputError(
            f"a CRF with sxy_bilateral {sxy:g} and srgb_bilateral {srgb:g} spreads a frame of "
            f"{width}x{height} over {math.prod(sizes):.1e} lattice cells, more than the "
            f"2^{_CELL_BITS} that the device can number: use larger standard deviations"
        )
    steps = [math.prod(sizes[axis + 1 :]) for axis in range(DIMENSIONS)]
    return Packing(scale, np.array(lowest, np.int32), np.array([*steps, 0], np.uint64))


class CudaLattice:
    """Lattice that is rebuilt for each frame, then applied to any number of planes.

    Args:
        device: Runs the kernels.
        pixels: The pixels that take part.
        channels: Largest number of planes per call.
        sxy: Standard deviation in pixels.
        srgb: Standard deviation in levels of 0..255.
        exact_pixels: Rectangles up to this number of pixels are omitted.

    Raises:
        InputError: If the lattice has more cells than its keys can number.
    """

    def __init__(
        self,
        device: KernelDevice,
        pixels: PixelRegions,
        *,
        channels: int,
        sxy: float,
        srgb: float,
        exact_pixels: int,
    ) -> None:
        self._device = device
        self._pixels = pixels
        self._channels = channels
        self._sxy, self._srgb = sxy, srgb
        self._exact_pixels = exact_pixels
        packing = lattice_packing(pixels.size_hw, sxy=sxy, srgb=srgb)
        self._scale = device.upload(packing.scale)
        self._lowest = device.upload(packing.lowest)
        self._steps = device.upload(packing.steps)
        most = AXES * pixels.capacity
        # The hash table is at most two thirds full.
        self._slots = max(256, 1 << math.ceil(math.log2(1.5 * most)))
        self._keys = device.empty((self._slots,), np.uint64)
        self._numbers = device.empty((self._slots,), np.int32)
        self._corners = device.empty((pixels.capacity, AXES), np.int32)
        self._weights = device.empty((pixels.capacity, AXES), np.float32)
        self._vertices = device.empty((1,), np.int32)
        self._vertex_keys = device.empty((most,), np.uint64)
        self._neighbours = device.empty((most, AXES, 2), np.int32)
        self._sums = device.empty((most, channels), np.uint64)
        self._values = device.empty((most, channels), np.float32)
        self._blurred = device.empty((most, channels), np.float32)

    def build(self, rgb: DeviceArray) -> None:
        """Build the lattice from the pixels of a frame, (H, W, 3) uint8 RGB."""
        launch, pixels = self._device.launch, self._pixels
        starts, count, slots = pixels.starts, pixels.count, self._slots
        launch(
            "crf_clear",
            starts=starts,
            objects=count,
            slots=slots,
            blocks=_BLOCKS,
            keys=self._keys,
            vertices=self._vertices,
        )
        launch(
            "crf_insert",
            rgb=rgb,
            regions=pixels.boxes,
            starts=starts,
            objects=count,
            width=pixels.size_hw[1],
            capacity=pixels.capacity,
            sxy=self._sxy,
            srgb=self._srgb,
            scale=self._scale,
            lowest=self._lowest,
            steps=self._steps,
            exact_pixels=self._exact_pixels,
            slots=slots,
            keys=self._keys,
            corners=self._corners,
            weights=self._weights,
        )
        launch(
            "crf_number",
            keys=self._keys,
            starts=starts,
            objects=count,
            slots=slots,
            channels=self._channels,
            blocks=_BLOCKS,
            numbers=self._numbers,
            vertex_keys=self._vertex_keys,
            vertices=self._vertices,
            sums=self._sums,
        )
        launch(
            "crf_renumber",
            starts=starts,
            objects=count,
            numbers=self._numbers,
            capacity=pixels.capacity,
            corners=self._corners,
        )
        launch(
            "crf_neighbours",
            vertex_keys=self._vertex_keys,
            vertices=self._vertices,
            keys=self._keys,
            numbers=self._numbers,
            starts=starts,
            objects=count,
            slots=slots,
            steps=self._steps,
            blocks=_BLOCKS,
            neighbours=self._neighbours,
        )

    def filter(
        self,
        planes: DeviceArray | None,
        norm: DeviceArray | None,
        *,
        channels: int,
        filtered: DeviceArray,
    ) -> None:
        """Compute weighted sums over each rectangle, up to a constant factor.

        Args:
            planes: (channels, capacity) float32; None for planes of 1.
            norm: (capacity,) float32 that the planes are multiplied by; None for 1.
            channels: Number of planes.
            filtered: (channels, capacity) float32; written, except in omitted rectangles.
        """
        launch, pixels = self._device.launch, self._pixels
        here: Arguments = {
            "starts": pixels.starts,
            "objects": pixels.count,
            "capacity": pixels.capacity,
        }
        corners: Arguments = {
            "corners": self._corners,
            "weights": self._weights,
            "channels": channels,
        }
        vertices: Arguments = {"vertices": self._vertices, "neighbours": self._neighbours}
        launch("crf_splat", planes=planes, norm=norm, sums=self._sums, **here, **corners)
        launch(
            "crf_blur_sums",
            sums=self._sums,
            channels=channels,
            blocks=_BLOCKS,
            blurred=self._values,
            **vertices,
        )
        values, blurred = self._values, self._blurred
        for axis in range(1, AXES):
            launch(
                "crf_blur",
                axis=axis,
                values=values,
                channels=channels,
                blocks=_BLOCKS,
                blurred=blurred,
                sums=self._sums if axis == 1 else None,
                **vertices,
            )
            values, blurred = blurred, values
        launch("crf_slice", values=values, planes=filtered, **here, **corners)
