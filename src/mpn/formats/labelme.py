"""Read and write the JSON files of labelme, one per frame.

Format: https://github.com/wkentaro/labelme, versions 3 to 6. A shape has ``label``, ``group_id``,
``shape_type`` and ``points`` as [x, y] in pixels. A shape of type ``mask`` also has the PNG of its
box in base64.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mpn._common.files import json_text
from mpn._common.images import open_image_bytes
from mpn._common.validation import is_int, is_number
from mpn.formats.annotated import AnnotatedFrame, VideoInfo, box_xywh, masks_of_objects
from mpn.formats.polygons import Ring, draw_on_centres, rings_on_centres
from mpn.formats.regions import Annotations, Place, Region
from mpn.types import BoolArray

_LARGEST_COORDINATE = 1e5
_POINTS = {"polygon": (3, None), "rectangle": (2, 2), "circle": (2, 2), "mask": (2, 2)}
"""Shapes -> smallest and largest number of points. Of a circle: centre, and a point on it."""

_WRITTEN_VERSION = "5.4.1"
_MIN_CORNERS = 3


def is_labelme(value: object) -> bool:
    """Return whether a JSON value is a file of labelme."""
    return isinstance(value, Mapping) and isinstance(value.get("shapes"), list)


def annotations_from_labelme(
    value: Mapping[str, Any], size_hw: tuple[int, int], place: Place = None
) -> Annotations:
    """Read the shapes of a file of labelme.

    A shape is an object. Shapes with one label and one group id are parts of one object.

    Args:
        value: A file for which :func:`is_labelme` is true.
        size_hw: Height and width of the video.
        place: Name of the file in a folder with a file per frame; None for a single file.

    Raises:
        ValueError: If a shape is damaged or of a type that is no region.
    """
    given = (value.get("imageHeight"), value.get("imageWidth"))
    sizes: dict[Place, tuple[int, int]] = {}
    if given != (None, None):
        height, width = (side if is_int(side) else 0 for side in given)
        if height < 1 or width < 1:
            raise ValueError("it has no imageHeight and imageWidth")
        sizes[place] = (height, width)
    regions = [
        _region(number, shape, size_hw, place) for number, shape in enumerate(value["shapes"], 1)
    ]
    return Annotations(
        "a file of labelme", regions, sizes, must_group=True, is_folder=place is not None
    )


def write_labelme(target: Path, frames: Iterable[AnnotatedFrame], info: VideoInfo) -> None:
    """Write a folder with one JSON file of labelme per frame.

    The parts of an object are polygons with its id as group id. labelme draws them with exactly
    the pixels of the mask; a part that it would draw otherwise becomes a shape of type ``mask``.

    Args:
        target: The folder, which is created.
        frames: See :class:`AnnotatedFrame`.
        info: See :class:`VideoInfo`.

    Raises:
        OSError: If a file cannot be written.
    """
    target.mkdir()
    for frame in frames:
        shapes = []
        for object_id, mask in masks_of_objects(frame.labels):
            label = info.name_of(object_id)
            shapes += [
                {"label": label, "group_id": object_id, "description": "", **shape, "flags": {}}
                for shape in _shapes(mask)
            ]
        height, width = frame.labels.shape
        document = {
            "version": _WRITTEN_VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": str(frame.image_path or frame.image_name),
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        path = target / f"{frame.name}.json"
        path.write_text(json_text(document), encoding="utf-8", newline="\n")


def _region(number: int, shape: Any, size_hw: tuple[int, int], place: Place) -> Region:
    if not isinstance(shape, Mapping) or not isinstance(shape.get("label"), str):
        raise ValueError(f"shape {number} has no label")
    label, group, kind = shape["label"], shape.get("group_id"), shape.get("shape_type", "polygon")
    name = f"shape {number} ({label!r})"
    if not isinstance(kind, str) or kind not in _POINTS:
        raise ValueError(f"{name} is of type {kind!r}: only {', '.join(_POINTS)} are read")
    if group is not None and not isinstance(group, int | str):
        raise ValueError(f"{name} has the group id {group!r}")
    points = shape.get("points")
    least, most = _POINTS[kind]
    if (
        not isinstance(points, list)
        or len(points) < least
        or (most is not None and len(points) > most)
        or not all(isinstance(point, list) and len(point) == 2 for point in points)
        or not all(is_number(v) and abs(v) <= _LARGEST_COORDINATE for p in points for v in p)
    ):
        raise ValueError(f"{name} has no valid points of a {kind}")
    draw = _drawing(kind, [(float(x), float(y)) for x, y in points], shape.get("mask"), size_hw)
    return Region(place, label, draw, group, group if isinstance(group, int) else None)


def _drawing(
    kind: str, points: list[tuple[float, float]], mask: Any, size_hw: tuple[int, int]
) -> Callable[[], BoolArray]:
    def draw() -> BoolArray:
        if kind == "polygon":
            return draw_on_centres(points, size_hw)
        (x0, y0), (x1, y1) = points
        if kind == "mask":
            return _pasted(mask, points, size_hw)
        image = Image.new("L", (size_hw[1], size_hw[0]))
        if kind == "circle":
            radius = math.dist(*points)
            box = (x0 - radius, y0 - radius, x0 + radius, y0 + radius)
            ImageDraw.Draw(image).ellipse(box, fill=1, outline=1)
        else:
            box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
            ImageDraw.Draw(image).rectangle(box, fill=1, outline=1)
        return np.array(image, np.uint8).astype(np.bool_)

    return draw


def _pasted(mask: Any, points: list[tuple[float, float]], size_hw: tuple[int, int]) -> BoolArray:
    """Return a shape of type ``mask``; its box includes the last row and column."""
    (x0, y0), (x1, y1) = ((int(x), int(y)) for x, y in points)
    height, width = y1 - y0 + 1, x1 - x0 + 1
    if not (0 <= x0 <= x1 < size_hw[1] and 0 <= y0 <= y1 < size_hw[0]):
        raise ValueError("the box of a mask in it is outside of the image")
    try:
        data = base64.b64decode(mask, validate=True)
        with open_image_bytes(data, ("PNG",)) as image:
            # Before it is decoded: a small file can have many pixels.
            pixels = np.array(image.convert("L")) if image.size == (width, height) else None
    except (TypeError, binascii.Error, OSError) as error:
        raise ValueError("a mask in it is no PNG in base64") from error
    if pixels is None:
        raise ValueError("a mask in it has not the size of its box")
    full = np.zeros(size_hw, np.bool_)
    full[y0 : y1 + 1, x0 : x1 + 1] = pixels > 0
    return full


def _shapes(mask: BoolArray) -> list[dict[str, Any]]:
    x0, y0, width, height = box_xywh(mask)
    inside = mask[y0 : y0 + height, x0 : x0 + width]
    rings = rings_on_centres(inside)
    polygons = [(ring * _MIN_CORNERS)[: max(len(ring), _MIN_CORNERS)] for ring in rings]
    if _is_drawn_exactly(polygons, inside):
        return [
            {"shape_type": "polygon", "points": [[float(x + x0), float(y + y0)] for x, y in ring]}
            for ring in polygons
        ]
    file = io.BytesIO()
    Image.fromarray(inside).save(file, format="PNG")
    end = [float(x0 + width - 1), float(y0 + height - 1)]
    return [
        {
            "shape_type": "mask",
            "points": [[float(x0), float(y0)], end],
            "mask": base64.b64encode(file.getvalue()).decode(),
        }
    ]


def _is_drawn_exactly(polygons: list[Ring], mask: BoolArray) -> bool:
    drawn = np.zeros_like(mask)
    try:
        for polygon in polygons:
            drawn |= draw_on_centres(polygon, mask.shape)
    except ValueError:  # too many corners
        return False
    return bool((drawn == mask).all())
