"""Gaussian filtering of scattered points: the permutohedral lattice, in numpy and scipy.

Source: Adams, Baek, Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice",
Eurographics 2010, with the constants that Kraehenbuehl's DenseCRF uses.

A point in d dimensions lies in a simplex of d + 1 lattice vertices. Its value is spread over them
(splat), the vertices are blurred with [1/2, 1, 1/2] along each of the d + 1 lattice directions, and
read back (slice). All three are sparse matrices, built once and applied to many planes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy import sparse

from mpn.runtime.permutohedral_simplex import AXIS_BITS, Simplices, locate_simplices
from mpn.types import Float32Array

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]


class PermutohedralLattice:
    """The vertices around a set of points, and the Gaussian filter over them.

    Args:
        features: (d, N) float32, finite, d of 1..7: the points, each axis divided by its standard
            deviation, so that the filter is exp(-|f_i - f_j|^2 / 2), up to a constant factor.

    Raises:
        InputError: If the points spread over more lattice cells than 62 bits can number.
    """

    def __init__(self, features: Float32Array) -> None:
        dimensions, points = features.shape
        simplices = locate_simplices(features)
        corners, keys_of_class = _numbered_vertices(simplices)
        vertices = sum(map(len, keys_of_class))
        self._slice = sparse.csr_array(
            (
                simplices.weights.reshape(-1),
                corners.reshape(-1),
                np.arange(0, corners.size + 1, dimensions + 1, dtype=np.int32),
            ),
            shape=(points, vertices),
        )
        self._splat = self._slice.T
        self._blurs = [
            _blur_matrix(here, there, vertices)
            for here, there in _links(keys_of_class, simplices.steps)
        ]
        # The lattice's own constant; it cancels where the filter is normalised.
        self._gain = np.float32(1 / (1 + 2.0**-dimensions))

    @property
    def vertices(self) -> int:
        """How many lattice vertices the points touch: what building and filtering cost."""
        return int(self._slice.shape[1])

    def filter(self, values: Float32Array) -> Float32Array:
        """Weighted sums over all points: sum_j k(f_i, f_j) values_j, the point itself included.

        Args:
            values: (N,) float32.

        Returns:
            (N,) float32.
        """
        on_vertices = self._splat @ values
        for blur in self._blurs:
            on_vertices = blur @ on_vertices
        filtered: Float32Array = self._slice @ on_vertices
        filtered *= self._gain
        return filtered


def _numbered_vertices(simplices: Simplices) -> tuple[Int32Array, list[Int64Array]]:
    """Give every vertex that a point touches a number: class by class, by key within a class.

    Returns:
        (N, d + 1) int32 numbers of each point's vertices; for each class its sorted keys.
    """
    dimensions = len(simplices.steps) - 1
    # Many points share a simplex: the simplices are sorted first, and only theirs are the vertices.
    origin, order, simplex_of_point = _unique_simplices(simplices, AXIS_BITS * dimensions)
    corners = np.empty((len(origin), dimensions + 1), np.int32)
    keys_of_class: list[Int64Array] = []
    first_number = 0
    keys = origin
    for r in range(dimensions + 1):
        unique, inverse = _unique_inverse(keys)
        np.add(inverse, first_number, out=corners[:, r])
        keys_of_class.append(unique)
        first_number += len(unique)
        keys = keys - simplices.steps[(order >> (AXIS_BITS * r)) & 7]
    return np.take(corners, simplex_of_point, axis=0), keys_of_class


def _unique_simplices(
    simplices: Simplices, order_bits: int
) -> tuple[Int64Array, Int64Array, Int32Array]:
    """The distinct (origin, order) and which of them each point has."""
    origin = simplices.origin
    fits = int(origin.max()).bit_length() + order_bits <= 63
    origins: Int64Array | None = None
    if not fits:  # their rank does, for any number of points that fits in memory
        origins, rank = _unique_inverse(origin)
        origin = rank.astype(np.int64)
    keys, simplex_of_point = _unique_inverse((origin << order_bits) | simplices.order)
    high = keys >> order_bits
    order = keys & ((1 << order_bits) - 1)
    return high if origins is None else origins[high], order, simplex_of_point


def _unique_inverse(keys: Int64Array) -> tuple[Int64Array, Int32Array]:
    """np.unique with its inverse, as int32 and a good deal faster."""
    count = len(keys)
    place_bits = count.bit_length()
    if int(keys.max()).bit_length() + place_bits <= 63:
        # One sort of keys with their places in the low bits costs half of an argsort and a gather.
        ordered = keys << place_bits
        ordered |= np.arange(count)
        ordered.sort()
        by_key = ordered & ((1 << place_bits) - 1)
        ordered >>= place_bits
    else:
        by_key = np.argsort(keys)
        ordered = keys[by_key]
    is_new = np.empty(count, np.bool_)
    is_new[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=is_new[1:])
    rank = np.cumsum(is_new, dtype=np.int32)
    rank -= 1
    inverse = np.empty(count, np.int32)
    inverse[by_key] = rank
    return np.compress(is_new, ordered), inverse


def _links(
    keys_of_class: list[Int64Array], steps: Int64Array
) -> Iterator[tuple[Int32Array, Int32Array]]:
    """For each lattice direction, the vertices that have a next one in it, and that next one.

    One step in direction j adds 1 to all coordinates and takes d + 1 off coordinate j: from class r
    to class r + 1, and from the last class to class 0 of the next cell.
    """
    classes = len(keys_of_class)
    first = np.concatenate([[0], np.cumsum([len(keys) for keys in keys_of_class])])
    for j in range(classes):
        here, there = [], []
        for r, keys in enumerate(keys_of_class):
            to = (r + 1) % classes
            wanted = keys - steps[j] if to else keys + (steps.sum() - steps[j])
            candidates = keys_of_class[to]
            place = np.searchsorted(candidates, wanted)
            np.minimum(place, len(candidates) - 1, out=place)
            found = np.flatnonzero(candidates[place] == wanted)
            here.append((found + first[r]).astype(np.int32))
            there.append((place[found] + first[to]).astype(np.int32))
        yield np.concatenate(here), np.concatenate(there)


def _blur_matrix(here: Int32Array, there: Int32Array, vertices: int) -> sparse.csr_array:
    """The matrix of [1/2, 1, 1/2] along the links ``here`` -> ``there``; the rest counts as 0."""
    entries = np.ones(vertices + 1, np.int32)
    entries[0] = 0
    entries[here + 1] += 1
    entries[there + 1] += 1
    row_starts = np.cumsum(entries, dtype=np.int32)
    columns = np.empty(row_starts[-1], np.int32)
    weights = np.full(row_starts[-1], 0.5, np.float32)
    # A row is the vertex itself, then its next one if any, then the one before it if any.
    columns[row_starts[:-1]] = np.arange(vertices, dtype=np.int32)
    weights[row_starts[:-1]] = 1
    columns[row_starts[here] + 1] = there
    columns[row_starts[there + 1] - 1] = here
    return sparse.csr_array((weights, columns, row_starts), shape=(vertices, vertices))
