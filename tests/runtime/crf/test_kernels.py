from __future__ import annotations

import numpy as np
import pytest

from mpn.runtime.crf.kernels import (
    EXACT_PIXELS,
    ExactBilateralKernel,
    Kernel,
    LatticeBilateralKernel,
    SpatialKernel,
    bilateral_kernel,
)
from tests.reference.crf import bilateral_features, pair_weights, spatial_features
from tests.tolerances import KERNEL_VERSUS_FLOAT64, LATTICE_MEAN_MESSAGE


def picture(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw two colours with noise, and a plane of 0..1."""
    rng = np.random.default_rng(seed)
    rgb = np.full((height, width, 3), 60, np.int64)
    rgb[:, width // 2 :] = 150
    rgb += rng.integers(-12, 13, rgb.shape)
    return rgb.astype(np.uint8), rng.random((height, width), dtype=np.float32)


def applied_by_definition(features: np.ndarray, plane: np.ndarray) -> np.ndarray:
    weights = pair_weights(features)
    norm = 1 / np.sqrt(weights.sum(axis=1))
    return (norm * (weights @ (norm * plane.reshape(-1)))).reshape(plane.shape)


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 40), (40, 1), (17, 23)])
@pytest.mark.parametrize("sxy", [0.3, 1.0, 3.0, 80.0])
def test_spatial_kernel_is_exact(size_hw: tuple[int, int], sxy: float) -> None:
    rgb, plane = picture(*size_hw)
    kernel = SpatialKernel(size_hw, sxy=sxy)
    expected = applied_by_definition(spatial_features(rgb, sxy), plane)
    assert np.abs(kernel.apply(plane) - expected).max() <= KERNEL_VERSUS_FLOAT64
    if max(size_hw) > 1 and sxy < 80:
        wider = SpatialKernel(size_hw, sxy=1.2 * sxy)
        assert np.abs(wider.apply(plane) - expected).max() > KERNEL_VERSUS_FLOAT64


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 40), (40, 1), (17, 23)])
@pytest.mark.parametrize(("sxy", "srgb"), [(15.0, 7.0), (0.5, 0.5), (3.0, 300.0)])
def test_bilateral_kernel_of_all_pairs_is_exact(
    size_hw: tuple[int, int], sxy: float, srgb: float
) -> None:
    rgb, plane = picture(*size_hw)
    kernel = ExactBilateralKernel(rgb, sxy=sxy, srgb=srgb)
    expected = applied_by_definition(bilateral_features(rgb, sxy, srgb), plane)
    assert np.abs(kernel.apply(plane) - expected).max() <= KERNEL_VERSUS_FLOAT64


def test_distances_stay_exact_at_the_ends_of_a_long_picture() -> None:
    rgb = np.full((1, EXACT_PIXELS, 3), 255, np.uint8)
    plane = np.random.default_rng(0).random(rgb.shape[:2], dtype=np.float32)
    exact = ExactBilateralKernel(rgb, sxy=1.0, srgb=0.5).apply(plane)
    assert np.abs(exact - SpatialKernel((1, EXACT_PIXELS), sxy=1.0).apply(plane)).max() <= 1e-6


@pytest.mark.parametrize(("sxy", "srgb"), [(15.0, 7.0), (60.0, 10.0), (80.0, 13.0)])
def test_lattice_is_near_the_kernel_of_all_pairs(sxy: float, srgb: float) -> None:
    rgb, plane = picture(40, 52)
    plane[10:30, 15:35] += 1
    exact = ExactBilateralKernel(rgb, sxy=sxy, srgb=srgb).apply(plane)
    lattice = LatticeBilateralKernel(rgb, sxy=sxy, srgb=srgb).apply(plane)
    assert np.abs(lattice - exact).mean() <= LATTICE_MEAN_MESSAGE
    other = LatticeBilateralKernel(rgb, sxy=sxy, srgb=4 * srgb).apply(plane)
    assert np.abs(other - exact).mean() > LATTICE_MEAN_MESSAGE


@pytest.mark.parametrize(
    "kernel",
    [
        SpatialKernel((20, 30), sxy=2.0),
        ExactBilateralKernel(picture(20, 30)[0], sxy=15.0, srgb=7.0),
        LatticeBilateralKernel(picture(20, 30)[0], sxy=15.0, srgb=7.0),
    ],
    ids=lambda kernel: type(kernel).__name__,
)
def test_of_ones_is_the_filtered_plane_of_ones(kernel: Kernel) -> None:
    ones = np.ones((20, 30), np.float32)
    assert np.abs(kernel.of_ones - kernel.apply(ones)).max() <= KERNEL_VERSUS_FLOAT64


def test_pictures_are_exact_up_to_a_size() -> None:
    small, large = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 65, 3), np.uint8)
    assert isinstance(bilateral_kernel(small, sxy=15, srgb=7), ExactBilateralKernel)
    assert isinstance(bilateral_kernel(large, sxy=15, srgb=7), LatticeBilateralKernel)
