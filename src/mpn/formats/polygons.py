"""Draw polygons as other programs draw them, and trace masks as polygons.

There are two conventions. For labelme and OpenCV a coordinate is the centre of a pixel, and the
line of the polygon belongs to the region. For COCO and CVAT it is a corner of pixels, and the
region is the area inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from mpn.types import BoolArray

Ring = list[tuple[int, int]]
"""Corners of a polygon as (x, y), without the first one at the end."""

_COCO_SCALE = 5
"""COCO draws on a grid of this many lines per pixel (``rleFrPoly`` of its API)."""

_MOST_TURNS = 200
"""Length of the edges of one polygon by that around the image. Each fifth of a pixel takes 80
bytes and 0.2 us: 3 s for a 4K frame."""

_MOST_EDGE_ROWS = 200_000_000
"""Corners of a polygon by rows of its image: 90,000 corners in a 4K frame take 7 s."""

_MOST_NEAREST = 200
"""Rings up to which each is joined to the nearest corner of those before it."""


def draw_on_edges(points: Sequence[tuple[float, float]], size_hw: tuple[int, int]) -> BoolArray:
    """Draw a polygon in corners of pixels, with the pixels of COCO's API.

    An edge is sampled on a grid of a fifth of a pixel, and the pixels of a column between two
    samples of the edges at its centre are inside (even-odd rule).

    Args:
        points: (x, y) of each corner in pixels; (0, 0) is the upper left corner of the image.
        size_hw: Height and width of the image.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: If the edges are too long to be drawn.
    """
    height, width = size_hw
    xy = np.trunc(np.asarray(points, np.float64) * _COCO_SCALE + 0.5).astype(np.int64)
    start, end = xy, np.roll(xy, -1, axis=0)
    delta = np.abs(end - start)
    steps = delta.max(axis=1)
    if steps.sum() > _MOST_TURNS * 2 * (height + width) * _COCO_SCALE:
        raise ValueError("the edges of its polygon are too long")
    is_flat = delta[:, 0] >= delta[:, 1]
    along = np.where(is_flat, 0, 1)
    rows = np.arange(len(xy))
    # Each edge is sampled from its smaller coordinate, so that both directions give one line.
    is_reversed = start[rows, along] > end[rows, along]
    low = np.where(is_reversed[:, None], end, start)
    high = np.where(is_reversed[:, None], start, end)
    rise = high[rows, 1 - along] - low[rows, 1 - along]
    slope = rise / np.maximum(steps, 1)

    edge = np.repeat(rows, steps + 1)
    first = np.cumsum(steps + 1) - (steps + 1)
    t = np.arange(edge.size) - first[edge]
    t = np.where(is_reversed[edge], steps[edge] - t, t)
    main = low[edge, along[edge]] + t
    # C's conversion to int truncates.
    other = np.trunc(low[edge, 1 - along[edge]] + slope[edge] * t + 0.5).astype(np.int64)
    u = np.where(is_flat[edge], main, other)
    v = np.where(is_flat[edge], other, main)

    before, after = u[:-1], u[1:]
    column = np.where(after < before, after + 0.5, after - 0.5) / _COCO_SCALE - 0.5
    is_crossing = (
        (after != before) & (np.floor(column) == column) & (column >= 0) & (column <= width - 1)
    )
    column = column[is_crossing].astype(np.int64)
    row = (np.minimum(v[:-1], v[1:])[is_crossing] + 0.5) / _COCO_SCALE - 0.5
    row = np.ceil(np.clip(row, 0, height)).astype(np.int64)
    inside: BoolArray = np.zeros((width, height), np.bool_)
    if column.size:
        # Each column is crossed an even number of times, so columns can be left out.
        x0, x1 = int(column.min()), int(column.max()) + 1
        toggles = np.bincount((column - x0) * height + row, minlength=height * (x1 - x0) + 1)[:-1]
        inside[x0:x1] = (np.cumsum(toggles) & 1).reshape(x1 - x0, height)
    return inside.T


def draw_on_centres(points: Sequence[tuple[float, float]], size_hw: tuple[int, int]) -> BoolArray:
    """Draw a polygon in centres of pixels, with its line, as labelme does.

    Args:
        points: (x, y) of each corner in pixels.
        size_hw: Height and width of the image.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: If there are too many corners.
    """
    if len(points) * size_hw[0] > _MOST_EDGE_ROWS:
        raise ValueError(f"its polygon has too many corners ({len(points)})")
    image = Image.new("L", (size_hw[1], size_hw[0]))
    ImageDraw.Draw(image).polygon([(x, y) for x, y in points], fill=1, outline=1)
    return np.array(image, np.uint8).astype(np.bool_)


def rings_on_centres(mask: BoolArray) -> list[Ring]:
    """Trace a mask as polygons in centres of pixels, one for each 8-connected part.

    A hole is joined to the outline by a line along a row, drawn forth and back over pixels of the
    part. An even-odd fill with its line gives the part exactly.

    Args:
        mask: (H, W) bool.
    """
    x0, y0, window = _window(mask)
    if window is None:
        return []
    contours, hierarchy = cv2.findContours(
        window.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    parts: dict[int, list[Ring]] = {}
    for number, contour in enumerate(contours):
        parent = int(hierarchy[0][number][3])
        ring = [(x + x0 - 1, y + y0 - 1) for x, y in contour.reshape(-1, 2).tolist()]
        parts.setdefault(number if parent < 0 else parent, []).append(ring)
    return [
        _without_straight(_joined_along_rows(rings, mask)) for _, rings in sorted(parts.items())
    ]


def rings_on_edges(mask: BoolArray) -> list[Ring]:
    """Trace a mask as polygons in corners of pixels, one for each 4-connected part.

    A hole is joined to the outline by a line forth and back, which encloses no area.

    Args:
        mask: (H, W) bool.
    """
    x0, y0, window = _window(mask)
    if window is None:
        return []
    count, part_of = cv2.connectedComponents(window.view(np.uint8), connectivity=4)
    rings = []
    for part in range(1, count):
        traced = list(_traced(part_of == part))
        joined = _without_straight(_joined_by_nearest(traced))
        rings.append([(x + x0 - 1, y + y0 - 1) for x, y in joined])
    return rings


def one_ring(rings: Sequence[Ring]) -> Ring:
    """Join polygons into one, by lines forth and back between nearest corners."""
    return _joined_by_nearest(rings)


def _window(mask: BoolArray) -> tuple[int, int, BoolArray | None]:
    """Return x and y of the mask's box, and the box with a border of a pixel."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    if width == 0:
        return 0, 0, None
    return x, y, np.pad(mask[y : y + height, x : x + width], 1)


def _joined_along_rows(rings: list[Ring], mask: BoolArray) -> Ring:
    """Join holes to the outline, to the left over pixels of the mask.

    Args:
        rings: The outline first.
        mask: (H, W) bool.
    """
    if len(rings) == 1:
        return rings[0]
    outline, *holes = rings
    attached: dict[tuple[int, int], list[Ring]] = {}
    for ring in holes:
        start = min(range(len(ring)), key=lambda k: ring[k])
        turned = ring[start:] + ring[:start]
        x, y = turned[0]
        while x > 0 and mask[y, x - 1]:
            x -= 1
        attached.setdefault((x, y), []).append(turned)
    joined: Ring = []
    stack: list[Iterator[tuple[int, int]]] = [iter(outline)]
    while stack:
        point = next(stack[-1], None)
        if point is None:
            stack.pop()
            continue
        joined.append(point)
        for ring in attached.pop(point, ()):
            stack.append(iter([*ring, ring[0], point]))
    return joined


def _joined_by_nearest(rings: Sequence[Ring]) -> Ring:
    """Join each ring to the nearest corner of those before it."""
    if len(rings) == 1:
        return list(rings[0])
    from scipy.spatial import KDTree  # takes 0.2 s, and reading masks does not need it

    joined = list(rings[0])
    for ring in rings[1:]:
        # A tree per ring is slow for thousands of holes; these are joined anywhere.
        ends = ring if len(rings) <= _MOST_NEAREST else ring[:1]
        distance, nearest = KDTree(joined if len(ends) > 1 else joined[:1]).query(ends)
        start = int(distance.argmin())
        at = int(nearest[start])
        turned = ring[start:] + ring[:start]
        joined[at : at + 1] = [joined[at], *turned, turned[0], joined[at]]
    return joined


def _traced(part: BoolArray) -> Iterator[Ring]:
    """Yield the closed lines between a part and its background, in corners of pixels.

    Args:
        part: (H, W) bool with a border of background.
    """
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # The part is on the right of each directed edge; y points down.
    for inside, outside, begin, end in (
        (part[1:], part[:-1], (0, 1), (1, 1)),  # upper side of a pixel
        (part[:-1], part[1:], (1, 1), (0, 1)),  # lower side
        (part[:, 1:], part[:, :-1], (1, 1), (1, 0)),  # left side
        (part[:, :-1], part[:, 1:], (1, 0), (1, 1)),  # right side
    ):
        for y, x in np.argwhere(inside & ~outside).tolist():
            following.setdefault((x + begin[0], y + begin[1]), []).append((x + end[0], y + end[1]))
    while following:
        start = next(iter(following))
        ring, corner, step = [], start, (1, 0)
        while True:
            ring.append(corner)
            ends = following[corner]
            # Two edges leave a corner where pixels touch diagonally: turn right, which keeps
            # 4-connected pixels together.
            chosen = min(range(len(ends)), key=lambda k: _left_turn(step, corner, ends[k]))
            after = ends.pop(chosen)
            if not ends:
                del following[corner]
            step = (after[0] - corner[0], after[1] - corner[1])
            corner = after
            if corner == start:
                break
        yield ring


def _left_turn(step: tuple[int, int], corner: tuple[int, int], after: tuple[int, int]) -> int:
    """Return -1 for a turn to the right, 0 for straight on, 1 for a turn to the left."""
    along = (after[0] - corner[0], after[1] - corner[1])
    return step[1] * along[0] - step[0] * along[1]


def _without_straight(ring: Ring) -> Ring:
    """Remove corners between two steps of one direction."""
    if len(ring) < 3:
        return ring
    points: npt.NDArray[np.int64] = np.array(ring)
    step = np.sign(points - np.roll(points, 1, axis=0))
    # Traced steps have length 1, and the sign is their direction.
    keep = (step != np.roll(step, -1, axis=0)).any(axis=1)
    return [ring[k] for k in np.flatnonzero(keep)] or ring[:1]
