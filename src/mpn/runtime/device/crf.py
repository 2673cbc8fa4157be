"""Compute the dense CRF of a frame on the device, for all regions at once.

The reference is :mod:`mpn.runtime.crf.dense`. No step waits for the host; see
:mod:`mpn.runtime.device.lattice`.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from mpn.cuda.array import Arguments, DeviceArray, KernelDevice
from mpn.runtime.crf.options import ResolvedCrf
from mpn.runtime.device.lattice import NARROWEST_SIGMA, CudaLattice, PixelRegions
from mpn.types import Float32Array

_REACH_SIGMAS = 5.5
"""As in mpn.runtime.crf.kernels."""


class PairwiseKernel(Protocol):
    """A kernel over the pixels of each region, not normalised."""

    def prepare(self, rgb: DeviceArray) -> None:
        """Prepare :meth:`filter` for a frame, (H, W, 3) uint8 RGB."""

    def filter(
        self, planes: DeviceArray | None, norm: DeviceArray | None, channels: int
    ) -> DeviceArray:
        """Compute weighted sums over all pixels of each region.

        Args:
            planes: (channels, capacity) float32; None for planes of 1.
            norm: (capacity,) float32 that the planes are multiplied by; None for 1.
            channels: Number of planes.

        Returns:
            (channels or more, capacity) float32; overwritten by the next call.
        """


class SpatialKernel:
    """exp(-|p_i - p_j|^2 / (2 sxy^2)), exact.

    See :class:`mpn.runtime.crf.kernels.SpatialKernel`.

    Args:
        device: Runs the kernels.
        pixels: The pixels that take part.
        channels: Largest number of planes.
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
        """Do nothing: the kernel does not depend on colours."""

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
    """Bilateral kernel: on a lattice, and over all pairs of pixels in small regions.

    Args:
        device: Runs the kernels.
        pixels: The pixels that take part.
        channels: Largest number of planes.
        sxy: Standard deviation in pixels.
        srgb: Standard deviation in levels of 0..255.
        exact_pixels: Largest size of a small region, in pixels.

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
    """A kernel times D^-1/2, D = K 1; crf_update multiplies by the other D^-1/2.

    Args:
        device: Runs the kernels.
        pixels: The pixels that take part.
        kernel: The kernel to normalise.
    """

    def __init__(self, device: KernelDevice, pixels: PixelRegions, kernel: PairwiseKernel) -> None:
        self._device = device
        self._pixels = pixels
        self._kernel = kernel
        self.norm = device.empty((pixels.capacity,), np.float32)
        """(capacity,) float32, D^-1/2."""

    def prepare(self, rgb: DeviceArray) -> None:
        """Prepare the kernel for a frame, (H, W, 3) uint8 RGB, and compute :attr:`norm`."""
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
        """Compute K D^-1/2 of (channels, capacity) planes, or of planes of 1."""
        return self._kernel.filter(planes, self.norm, channels)


def spatial_taps(sigma_px: float, side_px: int) -> Float32Array:
    """Compute the middle and one side of a Gaussian, cut off at 5.5 sigmas.

    Args:
        sigma_px: Standard deviation.
        side_px: Longest side of an image.

    Returns:
        (taps,) float32, the middle (1) first.
    """
    sigma_px = max(sigma_px, NARROWEST_SIGMA)
    reach = min(math.ceil(_REACH_SIGMAS * sigma_px), side_px - 1)
    offset = np.arange(reach + 1, dtype=np.float64)
    taps: Float32Array = np.exp(-0.5 * (offset / sigma_px) ** 2).astype(np.float32)
    return taps


_EXACT_PIXELS = 64 * 64
"""As in mpn.runtime.crf.kernels, so that device and CPU compute the same CRF."""


class CudaCrf:
    """Compute the mean field over regions of a frame.

    Args:
        device: Runs the kernels.
        objects: Number of objects; the background is one more label.
        size_hw: (height, width) of the frame.
        options: Standard deviations, weights, iterations and margin.
        exact_pixels: Regions up to this size use all pairs of pixels instead of the lattice.

    Raises:
        InputError: If the lattice has more cells than its keys can number.
    """

    def __init__(
        self,
        device: KernelDevice,
        *,
        objects: int,
        size_hw: tuple[int, int],
        options: ResolvedCrf,
        exact_pixels: int = _EXACT_PIXELS,
    ) -> None:
        self._device = device
        self._objects = objects
        self._options = options
        self._pixels = PixelRegions(
            device.empty((objects, 4), np.int32), device.empty((objects + 1,), np.int32), size_hw
        )
        planes = (objects + 1, self._pixels.capacity)
        self._region_of_object = device.empty((objects,), np.int32)
        self._unary = device.empty(planes, np.float32)
        self._q = device.empty(planes, np.float32)
        self._of_ones = device.empty(planes[1:], np.float32)
        self._spatial: NormalisedKernel | None = None
        self._bilateral: NormalisedKernel | None = None
        if options.compat_gaussian:
            self._spatial = NormalisedKernel(
                device,
                self._pixels,
                SpatialKernel(device, self._pixels, channels=objects, sxy=options.sxy_gaussian),
            )
        if options.compat_bilateral:
            self._bilateral = NormalisedKernel(
                device,
                self._pixels,
                BilateralKernel(
                    device,
                    self._pixels,
                    channels=objects,
                    sxy=options.sxy_bilateral,
                    srgb=options.srgb_bilateral,
                    exact_pixels=exact_pixels,
                ),
            )

    def refine(
        self,
        merged: DeviceArray,
        rgb: DeviceArray,
        boxes: DeviceArray,
        *,
        refined: DeviceArray,
        refined_boxes: DeviceArray,
    ) -> None:
        """Refine the probabilities of a frame, see :func:`mpn.runtime.host.crf.refine`.

        A probability that is not finite counts as 1e-5, so that the pixels around it determine the
        result.

        Args:
            merged: (K, H, W) float32, merged.
            rgb: (H, W, 3) uint8 RGB.
            boxes: (K, 4) int32, bounds of each object; empty if it is lost.
            refined: (K, H, W) float32, the result; not ``merged``.
            refined_boxes: (K, 4) int32, bounds of each object in the result.
        """
        pixels, (height, width) = self._pixels, self._pixels.size_hw
        of_regions: Arguments = {
            "regions": pixels.boxes,
            "starts": pixels.starts,
            "region_of_object": self._region_of_object,
            "objects": self._objects,
            "height": height,
            "width": width,
        }
        self._device.launch(
            "crf_regions",
            boxes=boxes,
            margin_px=self._options.margin_px,
            is_whole_frame=int(self._options.whole_frame),
            refined_boxes=refined_boxes,
            **of_regions,
        )
        capacity = pixels.capacity
        self._device.launch(
            "crf_unary", merged=merged, capacity=capacity, unary=self._unary, **of_regions
        )
        self._infer(self._unary, rgb)
        self._device.copy(merged, refined)
        self._device.launch(
            "crf_store", q=self._q, capacity=capacity, refined=refined, **of_regions
        )

    def dense_crf(self, unary: DeviceArray, rgb: DeviceArray) -> DeviceArray:
        """Compute the CRF of a whole frame, see :mod:`mpn.runtime.crf.dense`.

        Args:
            unary: (objects + 1, H, W) float32, finite.
            rgb: (H, W, 3) uint8 RGB.

        Returns:
            (objects + 1, H, W) float32; overwritten by the next call.
        """
        pixels, (height, width) = self._pixels, self._pixels.size_hw
        boxes = np.zeros(pixels.boxes.shape, np.int32)
        boxes[0] = 0, 0, width, height
        starts = np.full(pixels.starts.shape, pixels.capacity, np.int32)
        starts[0] = 0
        self._device.upload(boxes, pixels.boxes)
        self._device.upload(starts, pixels.starts)
        self._infer(unary, rgb)
        return self._q.reshape(self._objects + 1, height, width)

    def _infer(self, unary: DeviceArray, rgb: DeviceArray) -> None:
        pixels, options, launch = self._pixels, self._options, self._device.launch
        here: Arguments = {
            "starts": pixels.starts,
            "objects": pixels.count,
            "capacity": pixels.capacity,
        }
        labels = self._objects + 1
        launch("crf_start", unary=unary, labels=labels, q=self._q, **here)
        spatial, bilateral = self._spatial, self._bilateral
        is_first = True
        for kernel, compat in (
            (spatial, options.compat_gaussian),
            (bilateral, options.compat_bilateral),
        ):
            if kernel is not None:
                kernel.prepare(rgb)
                launch(
                    "crf_of_ones",
                    filtered=kernel.apply(None, 1),
                    norm=kernel.norm,
                    compat=compat,
                    is_first=int(is_first),
                    of_ones=self._of_ones,
                    **here,
                )
                is_first = False
        objects = self._q.part(1, labels)
        for _ in range(options.iterations):
            launch(
                "crf_update",
                unary=unary,
                of_ones=None if is_first else self._of_ones,
                spatial=None if spatial is None else spatial.apply(objects, self._objects),
                spatial_norm=None if spatial is None else spatial.norm,
                bilateral=None if bilateral is None else bilateral.apply(objects, self._objects),
                bilateral_norm=None if bilateral is None else bilateral.norm,
                labels=labels,
                spatial_compat=options.compat_gaussian,
                bilateral_compat=options.compat_bilateral,
                q=self._q,
                **here,
            )
