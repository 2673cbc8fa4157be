"""Which simplex of the permutohedral lattice each point lies in, and how near to its vertices.

Source: Adams, Baek, Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice",
Eurographics 2010, section 3. Worked out on whole blocks of points at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpn.errors import InputError
from mpn.types import Float32Array

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

AXIS_BITS = 3
"""Bits of an axis number: a lattice of d dimensions has d + 1 axes, so d is at most 7."""

_BLOCK = 8192
"""Points worked on at a time: a block's dozen temporaries stay in the processor's cache."""
_FIXED_ONE = 1 << 26
"""Fixed point of the remainders, which are below 12 in magnitude once shifted: 30 bits."""
_MAX_KEY_BITS = 62


@dataclass(frozen=True)
class Simplices:
    """The simplex of every point.

    The coordinates of a vertex of class r are r modulo d + 1; the vertex of class 0 is ``origin``,
    and the next class is reached by adding 1 to all coordinates and taking d + 1 off one. The order
    in which the axes have their turn tells the simplex.

    Attributes:
        origin: (N,) int64 key of the vertex of class 0: its coordinates over d + 1, packed.
        order: (N,) int32 axes in their order, :data:`AXIS_BITS` each, the first lowest; the last is
            left out.
        weights: (N, d + 1) float32 barycentric weight of the vertex of each class; they sum to 1.
        steps: (d + 1,) int64: what the key loses when an axis has its turn.
    """

    origin: Int64Array
    order: Int32Array
    weights: Float32Array
    steps: Int64Array


def locate_simplices(features: Float32Array) -> Simplices:
    """Find the simplex of every point.

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
        # Rounding may leave the plane (sum 0): then some axes have had their turn already, or have
        # one turn too many, and the order starts that much later, or earlier.
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
    """What makes the lattice's own blur one standard deviation wide (Adams et al., p. 5 and 6)."""
    i = np.arange(dimensions)
    deviation = math.sqrt(2 / 3) * (dimensions + 1)
    scales: npt.NDArray[np.float32] = (deviation / np.sqrt((i + 1) * (i + 2))).astype(np.float32)
    return scales


def _elevate(features: Float32Array, scale: npt.NDArray[np.float32]) -> Float32Array:
    """Embed points in the plane of d + 1 coordinates whose sum is 0 (Adams et al., p. 5)."""
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
    """The lowest cell of each axis but the last, and the step of each axis in a packed key.

    The last coordinate follows from the others, as their sum is 0: its step is 0.
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
        # Two cells aside: one for rounding, one for a vertex next to the last cell.
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
    """Sort d + 1 values of each point; each comes as fixed point with its axis in the low bits.

    Args:
        remainder: (d + 1, B) float32, within -4..4.

    Returns:
        (d + 1, B) int32, ascending.
    """
    rows = (remainder * np.float32(_FIXED_ONE)).astype(np.int32)
    rows &= ~np.int32(7)
    rows |= np.arange(len(rows), dtype=np.int32)[:, None]
    lower = np.empty_like(rows[0])
    for turn in range(len(rows)):  # odd-even transposition: the network for any small number
        for i in range(turn % 2, len(rows) - 1, 2):
            np.minimum(rows[i], rows[i + 1], out=lower)
            np.maximum(rows[i], rows[i + 1], out=rows[i + 1])
            rows[i] = lower
    return rows


def _rotated(
    ascending: Int32Array, turns: Int32Array, steps: Int64Array
) -> tuple[Int32Array, Int64Array]:
    """Bring each point to the plane: its first ``turns`` axes have had their turn.

    Args:
        ascending: (d + 1, B) int32 from :func:`_sorted_with_axis`.
        turns: (B,) int32, at most (d + 1) / 2 in magnitude; negative: the last axes still have it.
        steps: (d + 1,) int64.

    Returns:
        (d + 1, B) int32, ascending again, a turn having added d + 1 to its axis's remainder; (B,)
        int64 what the key gains by these turns.
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
