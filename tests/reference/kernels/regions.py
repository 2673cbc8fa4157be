"""Reference of kernels/regions.cuh: consecutive pixels of disjoint rectangles."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.reference.kernels.boxes import Int32Array

Window = tuple[slice, slice]


def regions_of(
    regions: Int32Array, starts: Int32Array, objects: int
) -> Iterator[tuple[int, slice, Window, tuple[int, int]]]:
    """Yield number, pixel range, frame window and (height, width) per rectangle."""
    for region in range(objects):
        first, stop = int(starts[region]), int(starts[region + 1])
        if stop > first:
            x0, y0, x1, y1 = (int(side) for side in regions[region])
            yield region, slice(first, stop), (slice(y0, y1), slice(x0, x1)), (y1 - y0, x1 - x0)


def total_pixels(starts: Int32Array, objects: int) -> int:
    """Return the number of pixels in all rectangles."""
    return int(np.asarray(starts)[objects])
