"""Read and write the text files of YOLO for segmentation.

Format: https://docs.ultralytics.com/datasets/segment/. A file has the objects of one image, one a
line: the number of its class, and the corners of a polygon as x and y divided by width and height.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np

from mpn._common.files import json_text
from mpn._common.records import json_from_text
from mpn._common.text import read_text
from mpn.errors import MaskError
from mpn.formats.annotated import AnnotatedFrame, VideoInfo, masks_of_objects
from mpn.formats.polygons import one_ring, rings_on_centres
from mpn.formats.regions import Annotations, Place, Region
from mpn.types import BoolArray

LABELS_FOLDER = "labels"
"""Folder of the text files in a data set."""

_LINE = re.compile(rb"\s*\d+(?:[ \t]+[-+]?[\d.]+(?:[eE][-+]?\d+)?){4,}[ \t]*(?:\r?\n|\r|$)")
_MIN_CUT_BYTES = 1024
_MIN_COORDINATES = 6
_TOLERANCE = 0.01
"""Corners may lie this far outside of the image, by rounding."""

_INTO_PIXEL = 0.25
"""A corner is written this far into its pixel, so that readers that round and readers that cut off
the fraction get the same pixel."""

_DIGITS = 7
_YAML_NAMES = re.compile(
    r"^names[ \t]*:(?P<first>.*)(?P<lines>(?:\n(?:[ \t]+|- |[\]}]).*|\n[ \t]*(?=\n))*)",
    re.MULTILINE,
)
_YAML_ENTRY = re.compile(r"""(?:\d+\s*:\s*)?(?:"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^\s,"'][^,]*)""")
_YAML_PAIR = re.compile(r"(?:- +|(\d{1,9})\s*:\s*)?(.*)", re.DOTALL)
_MIN_CORNERS = 3


def is_yolo(head: bytes) -> bool:
    """Return whether the first line of a file is one of YOLO.

    Args:
        head: First bytes of the file; a longer line is cut in a number.
    """
    if b"\n" not in head and len(head) > _MIN_CUT_BYTES:
        head = head[: head.rfind(b" ")]
    return _LINE.match(head) is not None


def annotations_from_yolo(
    text: str, size_hw: tuple[int, int], names: Mapping[int, str], place: Place = None
) -> Annotations:
    """Read the objects of one image. Each line is an object, its class the label.

    Args:
        text: The file.
        size_hw: Height and width of the video.
        names: Number of a class -> name.
        place: Name of the file in a folder with a file per frame; None for a single file.

    Raises:
        ValueError: If a line is no polygon.
    """
    regions = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            class_number = int(words[0])
            values = [float(word) for word in words[1:]]
        except ValueError:
            raise ValueError(f"line {number} of it is no class and polygon") from None
        if len(values) == 4:
            raise ValueError(f"line {number} of it is a box: it needs a polygon of each object")
        if len(values) < _MIN_COORDINATES or len(values) % 2:
            raise ValueError(
                f"line {number} of it has {len(values)} coordinates, not x and y of at least 3 "
                "corners: save it without a confidence"
            )
        if not all(-_TOLERANCE <= value <= 1 + _TOLERANCE for value in values):
            raise ValueError(
                f"line {number} of it has coordinates outside of 0..1: divide them by the size of "
                "the video"
            )
        label = names.get(class_number, f"class {class_number}")
        points = list(zip(values[::2], values[1::2], strict=True))
        regions.append(Region(place, label, _Drawing(points, size_hw)))
    return Annotations("a file of YOLO", regions, is_folder=place is not None)


def class_names_of(folder: Path) -> dict[int, str]:
    """Return the number and name of each class of the files in a folder.

    Names are in ``classes.txt`` next to the files, or in the ``data.yaml`` of the data set;
    the result is empty if there is neither.

    Raises:
        ValueError: If classes.txt is no text.
        MaskError: If a name in data.yaml is damaged.
    """
    path = folder / "classes.txt"
    if path.is_file():
        lines = [line.strip() for line in read_text(path).splitlines()]
        return dict(enumerate(line for line in lines if line))
    data_set = next((f.parent for f in (folder, folder.parent) if f.name == LABELS_FOLDER), folder)
    path = data_set / "data.yaml"
    return _names_in_yaml(read_text(path)) if path.is_file() else {}


def _names_in_yaml(text: str) -> dict[int, str]:
    """Return ``names`` of a data.yaml: a list or a mapping, in lines or in brackets."""
    match = _YAML_NAMES.search(text)
    if match is None:
        return {}
    if match["first"].partition("#")[0].strip():
        entries = _YAML_ENTRY.findall(match[0].partition(":")[2].strip()[1:-1])
    else:
        entries = match["lines"].splitlines()
    names: dict[int, str] = {}
    for entry in filter(None, map(str.strip, entries)):
        if (found := _YAML_PAIR.fullmatch(entry)) and found[2]:
            names[int(found[1] or len(names))] = _unquoted(found[2])
    return names


def _unquoted(text: str) -> str:
    if text.startswith('"'):
        return str(json_from_text(text[: text.rfind('"') + 1], MaskError))
    if text.startswith("'"):
        return text[1 : text.rfind("'")].replace("''", "'")
    return text.partition(" #")[0].strip()


def write_yolo(target: Path, frames: Iterable[AnnotatedFrame], info: VideoInfo) -> None:
    """Write ``labels/<frame>.txt`` and ``data.yaml`` of a data set of YOLO.

    A class is an object name. Parts of an object are joined into one polygon.

    Args:
        target: The folder, which is created.
        frames: See :class:`AnnotatedFrame`.
        info: See :class:`VideoInfo`.

    Raises:
        OSError: If a file cannot be written.
    """
    numbers = info.categories
    (target / LABELS_FOLDER).mkdir(parents=True)
    for frame in frames:
        lines = [
            f"{numbers[info.name_of(object_id)] - 1} {_coordinates(mask)}\n"
            for object_id, mask in masks_of_objects(frame.labels)
        ]
        path = target / LABELS_FOLDER / f"{frame.name}.txt"
        path.write_text("".join(lines), encoding="utf-8", newline="\n")
    # JSON is YAML.
    names = "".join(f"  {number - 1}: {json_text(name)}\n" for name, number in numbers.items())
    text = f"path: .\ntrain: images\nval: images\nnames:\n{names}"
    (target / "data.yaml").write_text(text, encoding="utf-8", newline="\n")


class _Drawing:
    """Draw a polygon: corners are cut to pixels, and its line is in the region."""

    def __init__(self, points: list[tuple[float, float]], size_hw: tuple[int, int]) -> None:
        self._points, self._size_hw = points, size_hw

    def __call__(self) -> BoolArray:
        height, width = self._size_hw
        corners = [
            (
                min(max(math.floor(x * width), 0), width - 1),
                min(max(math.floor(y * height), 0), height - 1),
            )
            for x, y in self._points
        ]
        image = np.zeros(self._size_hw, np.uint8)
        cv2.fillPoly(image, [np.array(corners, np.int32)], 1)
        return image.astype(np.bool_)


def _coordinates(mask: BoolArray) -> str:
    height, width = mask.shape
    ring = one_ring(rings_on_centres(mask))
    ring = (ring * _MIN_CORNERS)[: max(len(ring), _MIN_CORNERS)]
    return " ".join(
        f"{(x + _INTO_PIXEL) / width:.{_DIGITS}f} {(y + _INTO_PIXEL) / height:.{_DIGITS}f}"
        for x, y in ring
    )
