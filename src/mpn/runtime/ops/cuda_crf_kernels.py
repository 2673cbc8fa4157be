"""The two pairwise kernels of a dense CRF on the device; see :mod:`mpn.runtime.crf_kernels`."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from mpn.cuda.array import Arguments, DeviceArray, KernelDevice
from mpn.runtime.ops.cuda_lattice import NARROWEST_SIGMA, CudaLattice, PixelRegions
from mpn.types import Float32Array

_REACH_SIGMAS = 5.5
"""As in mpn.runtime.crf_kernels."""


class PairwiseKernel(Protocol):
    """A kernel over the pixels of each region, not normalised."""

    def prepare(self, rgb: DeviceArray) -> None:
        """Take from a frame, (H, W, 3) uint8 RGB, what :meth:`filter` needs."""

    def filter(
        self, planes: DeviceArray | None, norm: DeviceArray | None, channels: int
    ) -> DeviceArray:
        """Weighted sums over all pixels of a region.

        Args:
            planes: (channels, capacity) float32; None for planes of 1.
            norm: (capacity,) float32 that the planes are multiplied with; None for 1.
            channels: Number of planes.

        Returns:
            (channels or more, capacity) float32; overwritten by the next call.
        """


class SpatialKernel:
    """exp(-|p_i - p_j|^2 / (2 sxy^2)), exact: see mpn.runtime.crf_kernels.SpatialKernel.

    Args:
        device: Where to work.
        pixels: Which pixels.
        channels: Most planes at a time.
        sxy: Standard deviation in pixels.
    """

    def __init__(
        self, device: KernelDevice, pixels: PixelRegions, *, channels: int, sxy: float
    ) -> None:
        self._device = device
        self._pixels = pixels
        taps = spatial_taps(sxy, max(pixels.size_hw))
        self._reach = len(taps) - 1
        self._taps = device.upload(taps)
        self._rows = device.empty((channels, pixels.capacity), np.float32)
        self._filtered = device.empty((channels, pixels.capacity), np.float32)

    def prepare(self, rgb: DeviceArray) -> None:
        """Nothing: the kernel does not look at colours."""

    def filter(
        self, planes: DeviceArray | None, norm: DeviceArray | None, channels: int
    ) -> DeviceArray:
        """See :class:`PairwiseKernel`."""
        pixels = self._pixels
        here: Arguments = {
            "regions": pixels.boxes,
            "starts": pixels.starts,
            "objects": pixels.count,
            "width": pixels.size_hw[1],
            "taps": self._taps,
            "reach": self._reach,
            "channels": channels,
            "capacity": pixels.capacity,
        }
        self._device.launch("crf_rows", planes=planes, norm=norm, filtered=self._rows, **here)
        self._device.launch("crf_columns", planes=self._rows, filtered=self._filtered, **here)
        return self._filtered


class BilateralKernel:
    """The bilateral kernel: on a lattice, and over all pairs of pixels in small regions.

    Args:
        device: Where to work.
        pixels: Which pixels.
        channels: Most planes at a time.
        sxy: Standard deviation in pixels.
        srgb: Standard deviation in levels of 0..255.
        exact_pixels: Most pixels of a small region.

    Raises:
        InputError: If the lattice's cells cannot be numbered.
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
        self._sxy, self._srgb = sxy, srgb
        self._exact_pixels = exact_pixels
        self._lattice = CudaLattice(
            device, pixels, channels=channels, sxy=sxy, srgb=srgb, exact_pixels=exact_pixels
        )
        self._rgb: DeviceArray | None = None
        self._filtered = device.empty((channels, pixels.capacity), np.float32)

    def prepare(self, rgb: DeviceArray) -> None:
        """Build the lattice."""
        self._rgb = rgb
        self._lattice.build(rgb)

    def filter(
        self, planes: DeviceArray | None, norm: DeviceArray | None, channels: int
    ) -> DeviceArray:
        """See :class:`PairwiseKernel`."""
        pixels = self._pixels
        self._lattice.filter(planes, norm, channels=channels, filtered=self._filtered)
        self._device.launch(
            "crf_all_pairs",
            rgb=self._rgb,
            regions=pixels.boxes,
            starts=pixels.starts,
            objects=pixels.count,
            width=pixels.size_hw[1],
            planes=planes,
            norm=norm,
            sxy=self._sxy,
            srgb=self._srgb,
            exact_pixels=self._exact_pixels,
            channels=channels,
            capacity=pixels.capacity,
            filtered=self._filtered,
        )
        return self._filtered


class NormalisedKernel:
    """A kernel with D^-1/2, D = K 1, on its inner side; crf_update multiplies the outer one.

    Args:
        device: Where to work.
        pixels: Which pixels.
        kernel: What is normalised.
    """

    def __init__(self, device: KernelDevice, pixels: PixelRegions, kernel: PairwiseKernel) -> None:
        self._device = device
        self._pixels = pixels
        self._kernel = kernel
        self.norm = device.empty((pixels.capacity,), np.float32)
        """(capacity,) float32, D^-1/2."""

    def prepare(self, rgb: DeviceArray) -> None:
        """Take a frame, (H, W, 3) uint8 RGB, and work out :attr:`norm`."""
        self._kernel.prepare(rgb)
        self._device.launch(
            "crf_norm",
            degree=self._kernel.filter(None, None, 1),
            starts=self._pixels.starts,
            objects=self._pixels.count,
            capacity=self._pixels.capacity,
            norm=self.norm,
        )

    def apply(self, planes: DeviceArray | None, channels: int) -> DeviceArray:
        """K D^-1/2 of (channels, capacity) planes, or of planes of 1."""
        return self._kernel.filter(planes, self.norm, channels)


def spatial_taps(sigma_px: float, side_px: int) -> Float32Array:
    """The middle of a Gaussian and one side of it, cut off where float32 adds nothing.

    Args:
        sigma_px: Standard deviation.
        side_px: Longest side of a picture.

    Returns:
        (reach + 1,) float32, the middle (1) first.
    """
    sigma_px = max(sigma_px, NARROWEST_SIGMA)
    reach = min(math.ceil(_REACH_SIGMAS * sigma_px), side_px - 1)
    offset = np.arange(reach + 1, dtype=np.float64)
    taps: Float32Array = np.exp(-0.5 * (offset / sigma_px) ** 2).astype(np.float32)
    return taps
