"""Apply the pairwise kernels of a dense CRF: D^-1/2 K D^-1/2 with D = K 1.

Source: Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", NeurIPS 2011, equation 3; the symmetric normalisation is that of pydensecrf. A pixel is
its own neighbour.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from mpn.runtime.crf.permutohedral import PermutohedralLattice
from mpn.types import Float32Array, UInt8Array

_NARROWEST_SIGMA = 0.2
"""The weight of a neighbour one pixel or one grey level away is then 4e-6, that is, nothing."""
_REACH_SIGMAS = 5.5
"""Beyond it a Gaussian is under 3e-7, which does not change 1 in float32."""


EXACT_PIXELS = 64 * 64
"""Largest image in pixels for which all pairs are computed: tens of milliseconds and 64 MiB. The
lattice has an error of 1e-3 in the mean, and up to 0.5 at single pixels of small images."""
_ROWS_AT_ONCE = 64
"""A block of the matrix stays in the processor's cache."""
_LEAST_EXPONENT = np.float32(-80)


class Kernel(Protocol):
    """A symmetric, normalised kernel over the pixels of one image."""

    @property
    def of_ones(self) -> Float32Array:
        """The kernel applied to a plane of ones, (H, W) float32."""

    def apply(self, plane: Float32Array) -> Float32Array:
        """Compute the weighted sum over all pixels for each pixel.

        Args:
            plane: (H, W) float32.

        Returns:
            (H, W) float32.
        """


class NormalisedKernel(ABC):
    """Divide the sums of a filter by the root of the degree, before and after."""

    of_ones: Float32Array

    def _normalise(self, size_hw: tuple[int, int]) -> None:
        """Compute the degree and :attr:`of_ones`, once the filter is ready."""
        ones = np.ones(size_hw, np.float32)
        # The degree is never 0: a pixel is its own neighbour.
        self._norm: Float32Array = np.reciprocal(np.sqrt(self._filter(ones)))
        self.of_ones = self.apply(ones)

    def apply(self, plane: Float32Array) -> Float32Array:
        """See :class:`Kernel`."""
        message = self._filter(self._norm * plane)
        message *= self._norm
        return message

    @abstractmethod
    def _filter(self, plane: Float32Array) -> Float32Array:
        """Return the sums without normalisation as a new (H, W) float32 array."""


class SpatialKernel(NormalisedKernel):
    """exp(-|p_i - p_j|^2 / (2 sxy^2)) as an exact separable convolution.

    Pixels outside the image count as 0.

    Args:
        size_hw: (height, width) of the image.
        sxy: Standard deviation in pixels.
    """

    def __init__(self, size_hw: tuple[int, int], *, sxy: float) -> None:
        height, width = size_hw
        self._row_taps = _gaussian_taps(sxy, width)
        self._column_taps = _gaussian_taps(sxy, height)
        self._normalise(size_hw)

    def _filter(self, plane: Float32Array) -> Float32Array:
        convolved: Float32Array = cv2.sepFilter2D(
            plane, cv2.CV_32F, self._row_taps, self._column_taps, borderType=cv2.BORDER_CONSTANT
        )
        return convolved


def bilateral_kernel(rgb: UInt8Array, *, sxy: float, srgb: float) -> Kernel:
    """Make the kernel exp(-|p_i - p_j|^2 / (2 sxy^2) - |c_i - c_j|^2 / (2 srgb^2)).

    It is exact for images of up to :data:`EXACT_PIXELS`, and on a lattice for larger ones.

    Args:
        rgb: (H, W, 3) uint8.
        sxy: Standard deviation in pixels.
        srgb: Standard deviation in levels of 0..255.

    Raises:
        InputError: If the image is too large for such small standard deviations.
    """
    if rgb.shape[0] * rgb.shape[1] <= EXACT_PIXELS:
        return ExactBilateralKernel(rgb, sxy=sxy, srgb=srgb)
    return LatticeBilateralKernel(rgb, sxy=sxy, srgb=srgb)


class ExactBilateralKernel(NormalisedKernel):
    """Bilateral kernel as one matrix of all pairs of pixels.

    Args:
        rgb: (H, W, 3) uint8; memory grows with the square of its pixels.
        sxy: Standard deviation in pixels.
        srgb: Standard deviation in levels of 0..255.
    """

    def __init__(self, rgb: UInt8Array, *, sxy: float, srgb: float) -> None:
        height, width = rgb.shape[:2]
        # With coordinates from the middle, products of integers stay exact in float32.
        rows, columns = np.indices((height, width), np.float32)
        places = np.stack([rows - height // 2, columns - width // 2], axis=-1).reshape(-1, 2)
        colours = rgb.reshape(-1, 3).astype(np.float32)
        pixels = len(colours)
        colour_factors = _squared_distance_factors(colours, max(srgb, _NARROWEST_SIGMA))
        place_factors = _squared_distance_factors(places, max(sxy, _NARROWEST_SIGMA))
        matrix = np.empty((pixels, pixels), np.float32)
        spare = np.empty((_ROWS_AT_ONCE, pixels), np.float32)
        for start in range(0, pixels, _ROWS_AT_ONCE):
            block = slice(start, start + _ROWS_AT_ONCE)
            exponent = matrix[block]
            colour_part = spare[: len(exponent)]
            for factors, part in ((place_factors, exponent), (colour_factors, colour_part)):
                np.matmul(factors.left[block], factors.right, out=part)
                part *= factors.scale
            exponent += colour_part
            # Denormal weights do not change a sum and slow down every product.
            np.maximum(exponent, _LEAST_EXPONENT, out=exponent)
            np.exp(exponent, out=exponent)
        self._matrix = matrix
        self._normalise((height, width))

    def _filter(self, plane: Float32Array) -> Float32Array:
        sums: Float32Array = self._matrix @ plane.reshape(-1)
        return sums.reshape(plane.shape)


class LatticeBilateralKernel(NormalisedKernel):
    """Bilateral kernel on a permutohedral lattice, in linear time.

    Args:
        rgb: (H, W, 3) uint8.
        sxy: Standard deviation in pixels.
        srgb: Standard deviation in levels of 0..255.

    Raises:
        InputError: If the image is too large for such small standard deviations.
    """

    def __init__(self, rgb: UInt8Array, *, sxy: float, srgb: float) -> None:
        height, width = rgb.shape[:2]
        features = np.empty((5, height, width), np.float32)
        step = np.float32(max(sxy, _NARROWEST_SIGMA))
        features[0] = np.arange(width, dtype=np.float32) / step
        features[1] = (np.arange(height, dtype=np.float32) / step)[:, None]
        np.divide(rgb.transpose(2, 0, 1), np.float32(max(srgb, _NARROWEST_SIGMA)), out=features[2:])
        self._lattice = PermutohedralLattice(features.reshape(5, -1))
        self._normalise((height, width))

    def _filter(self, plane: Float32Array) -> Float32Array:
        return self._lattice.filter(plane.reshape(-1)).reshape(plane.shape)


class _DistanceFactors(NamedTuple):
    """Factors of -|a - b|^2 / (2 sigma^2) of all pairs: ``scale * left @ right``.

    For N points with d coordinates.
    """

    left: Float32Array  # (N, d + 2)
    right: Float32Array  # (d + 2, N)
    scale: np.float32


def _squared_distance_factors(points: Float32Array, sigma: float) -> _DistanceFactors:
    # Scaled after the product: distances of integers are exact, small differences of large
    # quotients are not.
    squares = (points * points).sum(axis=1, keepdims=True)
    ones = np.ones_like(squares)
    left = np.concatenate([points, squares, ones], axis=1)
    right = np.concatenate([-2 * points, ones, squares], axis=1)
    return _DistanceFactors(left, np.ascontiguousarray(right.T), np.float32(-0.5 / sigma**2))


def _gaussian_taps(sigma: float, side_px: int) -> Float32Array:
    """Compute an odd number of taps, cut off at 5.5 sigmas or at the whole side."""
    sigma = max(sigma, _NARROWEST_SIGMA)
    reach = min(math.ceil(_REACH_SIGMAS * sigma), side_px - 1)
    offset = np.arange(-reach, reach + 1, dtype=np.float64)
    taps: Float32Array = np.exp(-0.5 * (offset / sigma) ** 2).astype(np.float32)
    return taps
