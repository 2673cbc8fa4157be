"""Convert the polygons of labelme to labels.

Format: https://github.com/wkentaro/labelme, versions 3 to 5. A shape has ``label``, ``group_id``,
``shape_type`` and ``points`` as [x, y] in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mpn._common.validation import is_int, is_number
from mpn.types import UInt8Array

_MOST_PIXELS = 1 << 28
_LARGEST_COORDINATE = 1e5
_LARGEST_ID = 254
_POINTS = {"polygon": (3, None), "rectangle": (2, 2), "circle": (2, 2)}
"""Shapes -> smallest and largest number of points. Of a circle: centre, and a point on it."""


def is_labelme(value: object) -> bool:
    """Return whether a JSON value is a file of labelme."""
    return isinstance(value, Mapping) and isinstance(value.get("shapes"), list)


def labels_from_labelme(
    value: Mapping[str, Any], size_hw: tuple[int, int] | None
) -> tuple[UInt8Array, dict[int, str]]:
    """Draw the shapes of a file of labelme, the later ones over the earlier.

    A shape is an object. Shapes with one label and one group id are parts of one object. The ids
    are the labels if all of these are numbers of 1..254, otherwise 1, 2, ... in the order of the
    file.

    Args:
        value: A file for which :func:`is_labelme` is true.
        size_hw: Size of the image if the file has none.

    Returns:
        (H, W) uint8 ids, and the label of each id.

    Raises:
        ValueError: If it cannot be drawn, or two shapes may be one object or two.
    """
    given = [value.get("imageHeight"), value.get("imageWidth")]
    sides = size_hw if given == [None, None] and size_hw else given
    height, width = (side if is_int(side) else 0 for side in sides)
    if height < 1 or width < 1:
        raise ValueError("it has no imageHeight and imageWidth")
    if height * width > _MOST_PIXELS:
        raise ValueError(f"its image has {width}x{height} pixels")
    shapes = [_checked_shape(number, shape) for number, shape in enumerate(value["shapes"], 1)]
    id_of = _ids([(label, group) for label, group, _, _ in shapes])
    image = Image.new("L", (width, height))
    draw = ImageDraw.Draw(image)
    for label, group, kind, points in shapes:
        object_id = id_of[label, group]
        if kind == "polygon":
            draw.polygon(points, fill=object_id, outline=object_id)
            continue
        (x0, y0), (x1, y1) = points
        if kind == "circle":
            radius = math.dist(*points)
            box = (x0 - radius, y0 - radius, x0 + radius, y0 + radius)
            draw.ellipse(box, fill=object_id, outline=object_id)
        else:
            box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
            draw.rectangle(box, fill=object_id, outline=object_id)
    return np.array(image, np.uint8), {k: label for (label, _), k in id_of.items()}


def _checked_shape(number: int, shape: Any) -> tuple[str, Any, str, list[tuple[float, float]]]:
    """Return label, group id, kind and points."""
    if not isinstance(shape, Mapping) or not isinstance(shape.get("label"), str):
        raise ValueError(f"shape {number} has no label")
    label, group, kind = shape["label"], shape.get("group_id"), shape.get("shape_type", "polygon")
    if not isinstance(kind, str) or kind not in _POINTS:
        raise ValueError(
            f"shape {number} ({label!r}) is of type {kind!r}: only {', '.join(_POINTS)} are read"
        )
    if group is not None and not isinstance(group, int | str):
        raise ValueError(f"shape {number} ({label!r}) has the group id {group!r}")
    points = shape.get("points")
    least, most = _POINTS[kind]
    if (
        not isinstance(points, list)
        or len(points) < least
        or (most is not None and len(points) > most)
        or not all(isinstance(point, list) and len(point) == 2 for point in points)
        or not all(is_number(v) and abs(v) <= _LARGEST_COORDINATE for p in points for v in p)
    ):
        raise ValueError(f"shape {number} ({label!r}) has no valid points of a {kind}")
    return label, group, kind, [(float(x), float(y)) for x, y in points]


def _ids(objects: list[tuple[str, Any]]) -> dict[tuple[str, Any], int]:
    """Assign ids to the objects, each a label and a group id."""
    labels = {label for label, _ in objects}
    if all(label.isascii() and label.isdigit() and len(label) <= 3 for label in labels):
        numbers = {label: int(label) for label in labels}
        if all(0 < number <= _LARGEST_ID for number in numbers.values()):
            return {each: numbers[each[0]] for each in objects}
    for label, group in objects:
        if group is None and objects.count((label, None)) > 1:
            raise ValueError(
                f"{objects.count((label, None))} shapes have the label {label!r}: give parts of "
                "one object one group_id, and different objects different labels"
            )
    distinct = list(dict.fromkeys(objects))
    if len(distinct) > _LARGEST_ID:
        raise ValueError(f"it has {len(distinct)} objects, more than {_LARGEST_ID}")
    return {each: object_id for object_id, each in enumerate(distinct, 1)}
