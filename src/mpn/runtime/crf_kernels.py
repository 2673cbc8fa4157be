"""The two pairwise kernels of a dense CRF, each normalised: D^-1/2 K D^-1/2 with D = K 1.

Source: Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", NeurIPS 2011, equation 3; the symmetric normalisation is that of pydensecrf. A pixel is
its own neighbour.
"""

from __future__ import annotations

import math
from typing import Protocol

import cv2
import numpy as np

from mpn.runtime.permutohedral import PermutohedralLattice
from mpn.types import Float32Array, UInt8Array

_NARROWEST_SIGMA = 0.2
"""A neighbour one pixel or one grey level away then weighs 4e-6, and nothing is gained below."""
_REACH_SIGMAS = 5.5
"""Beyond it a Gaussian is under 3e-7: float32 adds nothing to 1 there."""


class Kernel(Protocol):
    """A symmetric, normalised kernel over the pixels of one picture."""

    @property
    def of_ones(self) -> Float32Array:
        """(H, W) float32: the kernel applied to a plane of ones."""

    def apply(self, plane: Float32Array) -> Float32Array:
        """(H, W) float32 -> (H, W) float32: for each pixel the weighted sum over all pixels."""


class SpatialKernel:
    """exp(-|p_i - p_j|^2 / (2 sxy^2)), exact: a separable convolution, with nothing outside.

    Args:
        size_hw: (height, width) of the picture.
        sxy: Standard deviation in pixels.
    """

    def __init__(self, size_hw: tuple[int, int], *, sxy: float) -> None:
        height, width = size_hw
        self._row_taps = _gaussian_taps(sxy, width)
        self._column_taps = _gaussian_taps(sxy, height)
        ones = np.ones(size_hw, np.float32)
        self._norm = _norm_from_degree(self._convolve(ones))
        self.of_ones = self.apply(ones)

    def apply(self, plane: Float32Array) -> Float32Array:
        """See :class:`Kernel`."""
        message = self._convolve(self._norm * plane)
        message *= self._norm
        return message

    def _convolve(self, plane: Float32Array) -> Float32Array:
        convolved: Float32Array = cv2.sepFilter2D(
            plane, cv2.CV_32F, self._row_taps, self._column_taps, borderType=cv2.BORDER_CONSTANT
        )
        return convolved


class BilateralKernel:
    """exp(-|p_i - p_j|^2 / (2 sxy^2) - |c_i - c_j|^2 / (2 srgb^2)), on a permutohedral lattice.

    Args:
        rgb: (H, W, 3) uint8.
        sxy: Standard deviation in pixels.
        srgb: Standard deviation in grey levels of 0..255.

    Raises:
        InputError: If the picture is too large for such small standard deviations.
    """

    def __init__(self, rgb: UInt8Array, *, sxy: float, srgb: float) -> None:
        height, width = rgb.shape[:2]
        features = np.empty((5, height, width), np.float32)
        step = np.float32(max(sxy, _NARROWEST_SIGMA))
        features[0] = np.arange(width, dtype=np.float32) / step
        features[1] = (np.arange(height, dtype=np.float32) / step)[:, None]
        np.divide(rgb.transpose(2, 0, 1), np.float32(max(srgb, _NARROWEST_SIGMA)), out=features[2:])
        self._lattice = PermutohedralLattice(features.reshape(5, -1))
        ones = np.ones((height, width), np.float32)
        self._norm = _norm_from_degree(self._filter(ones))
        self.of_ones = self.apply(ones)

    def apply(self, plane: Float32Array) -> Float32Array:
        """See :class:`Kernel`."""
        message = self._filter(self._norm * plane)
        message *= self._norm
        return message

    def _filter(self, plane: Float32Array) -> Float32Array:
        return self._lattice.filter(plane.reshape(-1)).reshape(plane.shape)


def _gaussian_taps(sigma: float, side_px: int) -> Float32Array:
    """An odd number of taps, cut off where they no longer count, or reach over the whole side."""
    sigma = max(sigma, _NARROWEST_SIGMA)
    reach = min(math.ceil(_REACH_SIGMAS * sigma), side_px - 1)
    offset = np.arange(-reach, reach + 1, dtype=np.float64)
    taps: Float32Array = np.exp(-0.5 * (offset / sigma) ** 2).astype(np.float32)
    return taps


def _norm_from_degree(degree: Float32Array) -> Float32Array:
    # The degree is never 0: a pixel is its own neighbour.
    norm: Float32Array = np.reciprocal(np.sqrt(degree))
    return norm
