"""Filter scattered points by a Gaussian on the permutohedral lattice.

Source: Adams, Baek, Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice",
Eurographics 2010, with the constants that Kraehenbuehl's DenseCRF uses.

A point in d dimensions is in a simplex of d + 1 lattice vertices. Its value is distributed over
them (splat), the vertices are blurred with [1/2, 1, 1/2] along each of the d + 1 lattice
directions, and interpolated at the points (slice). All three are sparse matrices, built once and
applied to many planes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from mpn.errors import InputError
from mpn.types import Float32Array

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

AXIS_BITS = 3
"""Bits of an axis number: a lattice of d dimensions has d + 1 axes, so d is at most 7."""

_BLOCK = 8192
"""Points per block, so that its dozen temporaries stay in the processor's cache."""
_FIXED_ONE = 1 << 26
"""Fixed-point 1 of the remainders; shifted, they are below 12 in magnitude: 30 bits."""
_MAX_KEY_BITS = 62


@dataclass(frozen=True)
class Simplices:
    """The simplex of each point.

    The coordinates of a vertex of class r are r modulo d + 1; the vertex of class 0 is ``origin``.
    The vertex of the next class has 1 added to all coordinates and d + 1 subtracted from one. The
    order of the axes in these steps identifies the simplex.

    Attributes:
        origin: (N,) int64 key of the vertex of class 0: its coordinates over d + 1, packed.
        order: (N,) int32 axes in their order, :data:`AXIS_BITS` each, the first in the lowest bits;
            the last axis is omitted.
        weights: (N, d + 1) float32 barycentric weight of the vertex of each class; they sum to 1.
        steps: (d + 1,) int64: amount that the key decreases in the step of an axis.
    """

    origin: Int64Array
    order: Int32Array
    weights: Float32Array
    steps: Int64Array


def locate_simplices(features: Float32Array) -> Simplices:
    """Find the simplex of each point.

    Args:
        features: (d, N) float32, finite, in standard deviations; d of 1..7, N at least 1.

    Raises:
        InputError: If the points spread over more lattice cells than 62 bits can number.
    """
    dimensions, points = features.shape
    axes = dimensions + 1
    scale = _axis_scales(dimensions)
    lowest, steps = _packing(features, scale)
    origin = np.empty(points, np.int64)
    order = np.empty(points, np.int32)
    weights = np.empty((points, axes), np.float32)
    for start in range(0, points, _BLOCK):
        part = slice(start, min(start + _BLOCK, points))
        elevated = _elevate(features[:, part], scale)
        cell = np.rint(elevated * np.float32(1 / axes))
        elevated -= cell * np.float32(axes)
        # Rounding may leave the plane (sum 0): then some axes have made their step already, or one
        # step too many, and the order starts that much later, or earlier.
        turns = cell.sum(axis=0).astype(np.int32)
        ascending = _sorted_with_axis(elevated)
        remainder, keys_before = _rotated(ascending, turns, steps)
        origin[part] = keys_before
        for axis in range(dimensions):
            origin[part] += (cell[axis].astype(np.int64) - lowest[axis]) * steps[axis]
        code = remainder[dimensions - 1] & 7
        for r in range(dimensions - 2, -1, -1):
            code = (code << AXIS_BITS) | (remainder[r] & 7)
        order[part] = code
        distance = remainder * np.float32(1 / (axes * _FIXED_ONE))
        part_weights = weights[part]
        part_weights[:, 0] = distance[0] - distance[-1] + np.float32(1)
        np.subtract(distance[1:], distance[:-1], out=part_weights[:, 1:].T)
    return Simplices(origin, order, weights, steps)


def _axis_scales(dimensions: int) -> npt.NDArray[np.float32]:
    """Compute scales that give the lattice's blur a standard deviation of 1.

    Source: Adams et al., p. 5 and 6.
    """
    i = np.arange(dimensions)
    deviation = math.sqrt(2 / 3) * (dimensions + 1)
    scales: npt.NDArray[np.float32] = (deviation / np.sqrt((i + 1) * (i + 2))).astype(np.float32)
    return scales


def _elevate(features: Float32Array, scale: npt.NDArray[np.float32]) -> Float32Array:
    """Embed points in the plane of d + 1 coordinates of sum 0 (Adams et al., p. 5)."""
    dimensions, points = features.shape
    elevated = np.empty((dimensions + 1, points), np.float32)
    total = np.zeros(points, np.float32)
    for i in range(dimensions, 0, -1):
        scaled = features[i - 1] * scale[i - 1]
        np.multiply(scaled, np.float32(-i), out=elevated[i])
        elevated[i] += total
        total += scaled
    elevated[0] = total
    return elevated


def _packing(
    features: Float32Array, scale: npt.NDArray[np.float32]
) -> tuple[list[int], Int64Array]:
    """Compute the lowest cell of each axis but the last, and the steps of keys.

    The last coordinate follows from the others, since their sum is 0: its step is 0.
    """
    dimensions = len(features)
    axes = dimensions + 1
    bounds = np.stack([features.min(axis=1), features.max(axis=1)]).astype(np.float64) * scale
    lowest, sizes = [], []
    for axis in range(dimensions):
        factor = np.zeros(dimensions)
        factor[axis:] = 1
        if axis:
            factor[axis - 1] = -axis
        ends = bounds * factor
        # Two more cells: one for rounding, one for a vertex next to the last cell.
        low = math.floor(ends.min(axis=0).sum() / axes) - 2
        lowest.append(low)
        sizes.append(math.ceil(ends.max(axis=0).sum() / axes) + 2 - low + 1)
    if math.prod(sizes).bit_length() > _MAX_KEY_BITS:
        raise InputError(
            f"the points spread over {math.prod(sizes):.1e} lattice cells, more than the "
            f"2^{_MAX_KEY_BITS} that can be numbered: use larger standard deviations or a smaller "
            "picture"
        )
    steps = [math.prod(sizes[axis + 1 :]) for axis in range(dimensions)]
    return lowest, np.array([*steps, 0], np.int64)


def _sorted_with_axis(remainder: Float32Array) -> Int32Array:
    """Sort d + 1 values of each point in fixed point, the axis in the low bits.

    Args:
        remainder: (d + 1, B) float32, within -4..4.

    Returns:
        (d + 1, B) int32, ascending.
    """
    rows = (remainder * np.float32(_FIXED_ONE)).astype(np.int32)
    rows &= ~np.int32(7)
    rows |= np.arange(len(rows), dtype=np.int32)[:, None]
    lower = np.empty_like(rows[0])
    for turn in range(len(rows)):  # odd-even transposition sorts any small number of rows
        for i in range(turn % 2, len(rows) - 1, 2):
            np.minimum(rows[i], rows[i + 1], out=lower)
            np.maximum(rows[i], rows[i + 1], out=rows[i + 1])
            rows[i] = lower
    return rows


def _rotated(
    ascending: Int32Array, turns: Int32Array, steps: Int64Array
) -> tuple[Int32Array, Int64Array]:
    """Move each point to the plane by the steps of its first ``turns`` axes.

    Args:
        ascending: (d + 1, B) int32 from :func:`_sorted_with_axis`.
        turns: (B,) int32, at most (d + 1) / 2 in magnitude; if negative, the steps of the last
            axes are undone.
        steps: (d + 1,) int64.

    Returns:
        (d + 1, B) int32, ascending again, with d + 1 added to the remainder of each axis that made
        its step; (B,) int64 change of the key by these steps.
    """
    axes, points = ascending.shape
    most = axes // 2
    whole_turn = np.int32(axes * _FIXED_ONE)
    cycle = np.concatenate(
        [ascending[axes - most :] - whole_turn, ascending, ascending[:most] + whole_turn]
    )
    first = (turns + most) * np.int32(points) + np.arange(points, dtype=np.int32)
    rotated = np.empty_like(ascending)
    for r in range(axes):
        np.take(cycle, first + np.int32(r * points), out=rotated[r])
    gains = np.zeros((2 * most + 1, points), np.int64)
    for t in range(most):
        gains[most + t + 1] = gains[most + t] - steps[ascending[t] & 7]
        gains[most - t - 1] = gains[most - t] + steps[ascending[axes - 1 - t] & 7]
    return rotated, gains.take(first)


class PermutohedralLattice:
    """Vertices around a set of points, and the Gaussian filter over them.

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
        # Constant of the lattice; it cancels if the filter is normalised.
        self._gain = np.float32(1 / (1 + 2.0**-dimensions))

    @property
    def vertices(self) -> int:
        """Number of lattice vertices around the points; determines the cost."""
        return int(self._slice.shape[1])

    def filter(self, values: Float32Array) -> Float32Array:
        """Compute sum_j k(f_i, f_j) values_j over all points, j = i included.

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


def _numbered_vertices(
    simplices: Simplices,
) -> tuple[Int32Array, list[Int64Array]]:
    """Assign numbers to the vertices of all points: by class, then by key.

    Returns:
        (N, d + 1) int32 numbers of each point's vertices; for each class its sorted keys.
    """
    dimensions = len(simplices.steps) - 1
    # Many points share a simplex: the simplices are sorted first, then only their vertices.
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
    """Return the distinct (origin, order), and the index of each point's."""
    origin = simplices.origin
    fits = int(origin.max()).bit_length() + order_bits <= 63
    origins: Int64Array | None = None
    if not fits:  # their rank fits, for any number of points that fits in memory
        origins, rank = _unique_inverse(origin)
        origin = rank.astype(np.int64)
    keys, simplex_of_point = _unique_inverse((origin << order_bits) | simplices.order)
    high = keys >> order_bits
    order = keys & ((1 << order_bits) - 1)
    return high if origins is None else origins[high], order, simplex_of_point


def _unique_inverse(
    keys: Int64Array,
) -> tuple[Int64Array, Int32Array]:
    """Compute np.unique with its inverse as int32, faster than NumPy."""
    count = len(keys)
    place_bits = count.bit_length()
    if int(keys.max()).bit_length() + place_bits <= 63:
        # One sort of keys with their index in the low bits costs half of an argsort and a gather.
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
    """Yield per lattice direction the vertices with a successor, and the successors.

    One step in direction j adds 1 to all coordinates and subtracts d + 1 from coordinate j: from
    class r to class r + 1, and from the last class to class 0 of the next cell.
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
    """Build the matrix of [1/2, 1, 1/2] along the links ``here`` -> ``there``.

    A missing neighbour counts as 0.
    """
    entries = np.ones(vertices + 1, np.int32)
    entries[0] = 0
    entries[here + 1] += 1
    entries[there + 1] += 1
    row_starts = np.cumsum(entries, dtype=np.int32)
    columns = np.empty(row_starts[-1], np.int32)
    weights = np.full(row_starts[-1], 0.5, np.float32)
    # A row holds the vertex, then its successor if any, then its predecessor if any.
    columns[row_starts[:-1]] = np.arange(vertices, dtype=np.int32)
    weights[row_starts[:-1]] = 1
    columns[row_starts[here] + 1] = there
    columns[row_starts[there + 1] - 1] = here
    return sparse.csr_array((weights, columns, row_starts), shape=(vertices, vertices))
