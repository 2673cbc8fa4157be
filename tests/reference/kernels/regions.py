"""Pixels of disjoint rectangles, numbered through: the reference of kernels/regions.cuh."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.reference.kernels.boxes import Int32Array

Window = tuple[slice, slice]


def regions_of(
    regions: Int32Array, starts: Int32Array, objects: int
) -> Iterator[tuple[int, slice, Window, tuple[int, int]]]:
    """The number, the pixels, the place in the frame and the (height, width) of each rectangle."""
    for region in range(objects):
        first, stop = int(starts[region]), int(starts[region + 1])
        if stop > first:
            x0, y0, x1, y1 = (int(side) for side in regions[region])
            yield region, slice(first, stop), (slice(y0, y1), slice(x0, x1)), (y1 - y0, x1 - x0)


def total_pixels(starts: Int32Array, objects: int) -> int:
    """How many pixels take part."""
    return int(np.asarray(starts)[objects])
