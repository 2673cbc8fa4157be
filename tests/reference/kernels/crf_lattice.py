"""Reference of kernels/crf_lattice.cu: see :mod:`tests.reference.kernels`.

In the kernels, slots and numbers of vertices depend on the order of threads. Their keys do not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpn.types import Float32Array, UInt8Array
from tests.reference.kernels.boxes import Int32Array
from tests.reference.kernels.regions import regions_of, total_pixels

UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]

_AXES = 6
_CELL_BITS, _CLASS_BITS = 52, 3
_EMPTY = np.uint64(2**64 - 1)
_REMAINDER_ONE = 2**26
_NARROWEST_SIGMA = np.float32(0.2)


def crf_clear(
    starts: Int32Array,
    objects: int,
    slots: int,
    blocks: int,
    keys: UInt64Array,
    vertices: Int32Array,
) -> None:
    """Clear the slots that the pixels of this frame can fill."""
    keys[: _used_slots(total_pixels(starts, objects), slots)] = _EMPTY
    vertices[0] = 0


def crf_insert(
    rgb: UInt8Array,
    regions: Int32Array,
    starts: Int32Array,
    objects: int,
    width: int,
    capacity: int,
    sxy: float,
    srgb: float,
    scale: Float32Array,
    lowest: Int32Array,
    steps: UInt64Array,
    exact_pixels: int,
    slots: int,
    keys: UInt64Array,
    corners: Int32Array,
    weights: Float32Array,
) -> None:
    """Compute slots and weights of the six vertices around each pixel."""
    used = _used_slots(total_pixels(starts, objects), slots)
    step = steps.astype(np.int64)
    per_px, per_level = (max(np.float32(sigma), _NARROWEST_SIGMA) for sigma in (sxy, srgb))
    for region, pixels, window, (rows, columns) in regions_of(regions, starts, objects):
        if rows * columns <= exact_pixels:
            corners[pixels] = -1
            continue
        y, x = np.indices((rows, columns), np.float32)
        colours = rgb[window].astype(np.float32).reshape(-1, 3).T
        features = np.stack([x.ravel() / per_px, y.ravel() / per_px, *(colours / per_level)])
        cell, order, weight = _simplices(features, scale)
        weights[pixels] = weight.T
        moved = cell[:5].T @ step[:5] - int(lowest.astype(np.int64) @ step[:5])
        for r in range(_AXES):
            if r:
                moved = moved - step[order[r - 1]]
            key = moved.astype(np.uint64) | np.uint64((region << _CLASS_BITS | r) << _CELL_BITS)
            unique, inverse = np.unique(key, return_inverse=True)
            found = [_entered(int(one), keys, used) for one in unique]
            corners[pixels, r] = np.array(found, np.int32)[inverse]


def crf_number(
    keys: UInt64Array,
    starts: Int32Array,
    objects: int,
    slots: int,
    channels: int,
    blocks: int,
    numbers: Int32Array,
    vertex_keys: UInt64Array,
    vertices: Int32Array,
    sums: UInt64Array,
) -> None:
    """Assign numbers from 0 to vertices and clear their sums."""
    taken = np.flatnonzero(keys[: _used_slots(total_pixels(starts, objects), slots)] != _EMPTY)
    first, count = int(vertices[0]), len(taken)
    numbers[taken] = np.arange(first, first + count)
    vertex_keys[first : first + count] = keys[taken]
    sums.reshape(-1)[first * channels : (first + count) * channels] = 0
    vertices[0] += count


def crf_renumber(
    starts: Int32Array, objects: int, numbers: Int32Array, capacity: int, corners: Int32Array
) -> None:
    """Replace slots by vertex numbers."""
    here = corners[: total_pixels(starts, objects)]
    here[here >= 0] = numbers[here[here >= 0]]


def crf_neighbours(
    vertex_keys: UInt64Array,
    vertices: Int32Array,
    keys: UInt64Array,
    numbers: Int32Array,
    starts: Int32Array,
    objects: int,
    slots: int,
    steps: UInt64Array,
    blocks: int,
    neighbours: Int32Array,
) -> None:
    """Compute both neighbours of each vertex per direction; -1 if there is none."""
    count = int(vertices[0])
    number_of = {int(key): i for i, key in enumerate(vertex_keys[:count])}
    step = [int(value) for value in steps]
    for vertex in range(count):
        key = int(vertex_keys[vertex])
        cell, tag = key & (2**_CELL_BITS - 1), key >> _CELL_BITS
        region, r = tag >> _CLASS_BITS, tag & (2**_CLASS_BITS - 1)
        for axis in range(_AXES):
            gain = sum(step) - step[axis]
            after = (0, cell + gain) if r == _AXES - 1 else (r + 1, cell - step[axis])
            before = (_AXES - 1, cell - gain) if r == 0 else (r - 1, cell + step[axis])
            neighbours[vertex, axis] = [
                number_of.get((region << _CLASS_BITS | s) << _CELL_BITS | at, -1)
                for s, at in (before, after)
            ]


def _used_slots(pixels: int, slots: int) -> int:
    used = 256
    while used < slots and used < 2 * _AXES * pixels:
        used *= 2
    return used


def _simplices(
    features: Float32Array, scale: Float32Array
) -> tuple[Int64Array, Int64Array, Float32Array]:
    """Compute cells of class 0, axes in ascending order, and weights per class."""
    scaled = features * scale[:, None]
    total = np.zeros(features.shape[1], np.float32)
    elevated = np.empty((_AXES, features.shape[1]), np.float32)
    for i in range(_AXES - 1, 0, -1):
        elevated[i] = total - np.float32(i) * scaled[i - 1]
        total = total + scaled[i - 1]
    elevated[0] = total
    cell = np.rint(elevated * np.float32(1 / _AXES)).astype(np.int64)
    turns = cell.sum(axis=0)
    remainder = elevated - (cell * _AXES).astype(np.float32)
    axis = np.arange(_AXES)[:, None]
    fixed = ((remainder * np.float32(_REMAINDER_ONE)).astype(np.int64) & ~7) | axis
    # Ascending, then rotated by the number of axes that were already moved.
    place = (np.arange(_AXES)[:, None] + turns) % _AXES
    lap = (np.arange(_AXES)[:, None] + turns) // _AXES
    order = np.take_along_axis(np.argsort(fixed, axis=0), place, axis=0)
    ascending = np.take_along_axis(fixed, order, axis=0) + lap * _AXES * _REMAINDER_ONE
    np.put_along_axis(cell, order, np.take_along_axis(cell, order, axis=0) - lap, axis=0)
    before = np.concatenate([ascending[-1:] - _AXES * _REMAINDER_ONE, ascending[:-1]])
    weight = (ascending - before).astype(np.float32) * np.float32(1 / (_AXES * _REMAINDER_ONE))
    return cell, order, weight


def _entered(key: int, keys: UInt64Array, used: int) -> int:
    """Return the slot of a key; insert the key if it is new."""
    mixed = key
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ mixed >> shift) * factor % 2**64
    slot = (mixed ^ mixed >> 31) & (used - 1)
    while keys[slot] != _EMPTY and int(keys[slot]) != key:
        slot = (slot + 1) & (used - 1)
    keys[slot] = key
    return slot
