from __future__ import annotations

import numpy as np
import pytest

from mpn.errors import InputError
from mpn.runtime.crf.permutohedral import PermutohedralLattice, locate_simplices
from tests.reference.crf import pair_weights, plain_lattice_filter, plain_simplex
from tests.tolerances import LATTICE_MEAN_RELATIVE, LATTICE_VERSUS_PLAIN


def cloud(points: int, dimensions: int, spread: float, seed: int = 0) -> np.ndarray:
    """Draw (N, d) float32 points over ``spread`` standard deviations of the filter."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((points, dimensions)) * spread).astype(np.float32)


def lattice_of(points: np.ndarray) -> PermutohedralLattice:
    return PermutohedralLattice(np.ascontiguousarray(points.T))


def values_for(points: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).random(len(points), dtype=np.float32)


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_filters_as_the_paper_does(dimensions: int, spread: float) -> None:
    points = cloud(80, dimensions, spread)
    values = values_for(points)
    lattice = lattice_of(points)
    filtered, vertices = plain_lattice_filter(points.astype(np.float64), values)
    assert lattice.vertices == vertices
    assert np.abs(lattice.filter(values) - filtered).max() <= LATTICE_VERSUS_PLAIN
    shifted, _ = plain_lattice_filter(points.astype(np.float64) + 0.3, values)
    assert np.abs(lattice.filter(values) - shifted).max() > LATTICE_VERSUS_PLAIN


@pytest.mark.parametrize(("dimensions", "spread"), [(2, 1.0), (3, 1.0), (5, 0.7)])
def test_is_nearly_a_gaussian_of_one_standard_deviation(dimensions: int, spread: float) -> None:
    points = cloud(800, dimensions, spread)
    values = (0.5 + 0.5 * np.sin(2 * points[:, 0] + points[:, -1])).astype(np.float32)
    lattice = lattice_of(points)
    mean = lattice.filter(values) / lattice.filter(np.ones_like(values))

    def error(standard_deviation: float) -> float:
        weights = pair_weights(points.astype(np.float64) / standard_deviation)
        exact = weights @ values / weights.sum(axis=1)
        return float(np.abs(mean - exact).mean() / exact.std())

    assert error(1.0) <= LATTICE_MEAN_RELATIVE
    assert error(1.5) > LATTICE_MEAN_RELATIVE
    assert error(0.7) > LATTICE_MEAN_RELATIVE


def test_weights_put_each_point_back_where_it_was() -> None:
    points = cloud(60, 5, 4.0)
    weights = locate_simplices(np.ascontiguousarray(points.T)).weights
    for point, ours in zip(points.astype(np.float64), weights, strict=True):
        vertices, plain, elevated = plain_simplex(point)
        assert np.abs(ours - plain).max() <= LATTICE_VERSUS_PLAIN
        assert np.abs(ours @ np.array(vertices) - elevated).max() <= 10 * LATTICE_VERSUS_PLAIN
        assert ours.min() >= -LATTICE_VERSUS_PLAIN


def test_a_wide_cloud_needs_keys_in_two_steps_and_gets_them() -> None:
    # 5 axes of 2^11 cells are 55 bits: with the 15 of the order they no longer fit in one key.
    points = cloud(60, 5, 1.0)
    points[30:] += np.array([3000, -2500, 2000, -3000, 2500], np.float32)
    simplices = locate_simplices(np.ascontiguousarray(points.T))
    assert int(simplices.origin.max()).bit_length() + 15 > 63
    filtered, vertices = plain_lattice_filter(points.astype(np.float64), values_for(points))
    lattice = lattice_of(points)
    assert lattice.vertices == vertices
    # At 3000 deviations the position of a point in float32 is exact to 2e-3 of a cell.
    assert np.abs(lattice.filter(values_for(points)) - filtered).max() <= 2e-2


def test_a_cloud_beyond_all_keys_is_refused() -> None:
    points = cloud(10, 5, 1e6)
    with pytest.raises(InputError, match="lattice cells"):
        lattice_of(points)


@pytest.mark.parametrize("count", [1, 50])
def test_points_in_one_place_all_get_the_same(count: int) -> None:
    filtered = lattice_of(np.full((count, 5), 0.37, np.float32)).filter(np.ones(count, np.float32))
    assert np.ptp(filtered) <= LATTICE_VERSUS_PLAIN * count
    assert filtered[0] > 0
