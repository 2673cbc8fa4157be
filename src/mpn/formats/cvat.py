"""Read CVAT's XML "for images 1.1" and "for video 1.1", and write the second.

Format: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/. Run lengths of a mask
count along the rows of its box. CVAT reads the first mask of a track only, and writes a mask as a
track of one frame.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from html import escape
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from xml.parsers import expat

import numpy as np

from mpn._common.text import printable
from mpn._common.validation import is_number
from mpn.formats.annotated import AnnotatedFrame, VideoInfo, box_xywh, masks_of_objects
from mpn.formats.polygons import draw_on_edges
from mpn.formats.regions import Annotations, Place, Region
from mpn.formats.rle import counts_by_row, mask_from_counts_by_row
from mpn.types import BoolArray

ANNOTATIONS_NAME = "annotations.xml"
"""Name of the annotations in a zip file of CVAT."""

_LARGEST_COORDINATE = 1e5
_MIN_POINTS = 3
_DRAWN = ("polygon", "mask", "box")
_NOT_DRAWN = ("polyline", "points", "cuboid", "ellipse", "skeleton")
_COPY_BYTES = 1 << 20


def annotations_from_cvat(data: bytes, size_hw: tuple[int, int]) -> Annotations:
    """Read a file of CVAT.

    In a video a track is an object. Shapes between key frames, which CVAT interpolates, and those
    outside of the frame are left out. Shapes of images, and tracks of one frame, are one object if
    they have one label and one group, or one label that no frame has twice.

    Args:
        data: The XML file.
        size_hw: Height and width of the video.

    Raises:
        ValueError: If it is no such file, or is damaged.
    """
    document = _Document()
    document.parse(data)
    return document.annotations(size_hw)


def write_cvat_video(target: Path, frames: Iterable[AnnotatedFrame], info: VideoInfo) -> None:
    """Write a zip file "CVAT for video 1.1" without images.

    Each mask is a track of one frame. The group of the tracks is the object id.

    Args:
        target: The file.
        frames: See :class:`AnnotatedFrame`.
        info: See :class:`VideoInfo`.

    Raises:
        OSError: If it cannot be written.
    """
    with ExitStack() as stack:
        tracks = stack.enter_context(TemporaryFile(dir=target.parent))
        first = last = None
        number = count = 0
        for frame in frames:
            first = frame.index if first is None else first
            last = frame.index
            count += 1
            for object_id, mask in masks_of_objects(frame.labels):
                label = info.name_of(object_id)
                tracks.write(_track(number, frame.index, object_id, label, mask).encode())
                number += 1
        archive = stack.enter_context(zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED))
        entry = zipfile.ZipInfo(ANNOTATIONS_NAME)
        entry.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(entry, "w", force_zip64=True) as file:
            file.write(_head(info, count, first or 0, last or 0).encode())
            tracks.seek(0)
            while piece := tracks.read(_COPY_BYTES):
                file.write(piece)
            file.write(b"</annotations>\n")


class _Document:
    """Images, tracks and shapes of a file, filled by the parser of expat."""

    def __init__(self) -> None:
        self._root: str | None = None
        self._size: dict[str, int] = {}
        self._text: list[str] | None = None
        self._holder: dict[str, str] | None = None
        self._is_track = False
        self._shapes: list[tuple[dict[str, str], bool, str, dict[str, str]]] = []
        self._left_out: dict[str, int] = {}

    def parse(self, data: bytes) -> None:
        """Parse the file.

        Entities could expand to any size, and name files: a document type is refused.
        """
        parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.StartDoctypeDeclHandler = _refuse_doctype
        try:
            parser.Parse(data, True)
        except (expat.ExpatError, LookupError, ValueError) as error:
            if isinstance(error, expat.ExpatError) or not str(error).startswith("it "):
                raise ValueError(f"it is no valid XML ({error})") from error
            raise
        if self._root != "annotations":
            raise ValueError(f"it is XML of {self._root!r}, not of CVAT")

    def annotations(self, size_hw: tuple[int, int]) -> Annotations:
        """Return the shapes as regions."""
        sizes: dict[Place, tuple[int, int]] = {}
        ordered: list[tuple[int, Region]] = []
        visible: dict[str, int] = {}
        for holder, is_track, _, attributes in self._shapes:
            if is_track and not _is_outside(attributes):
                visible[holder.get("id", "")] = visible.get(holder.get("id", ""), 0) + 1
        # CVAT writes each mask as a separate track.
        are_tracks = any(count > 1 for count in visible.values())
        interpolated = 0
        for number, (holder, is_track, kind, attributes) in enumerate(self._shapes, 1):
            if is_track:
                if _is_outside(attributes):
                    continue
                if attributes.get("keyframe", "1") == "0":
                    interpolated += 1
                    continue
                place: Place = _int(attributes, "frame", number)
                label = holder.get("label", "")
                if {"height", "width"} <= set(self._size):
                    sizes[place] = (self._size["height"], self._size["width"])
            else:
                place = holder.get("name", f"image {holder.get('id')}")
                label = attributes.get("label", "")
                if holder.get("height", "").isdigit() and holder.get("width", "").isdigit():
                    sizes[place] = (int(holder["height"]), int(holder["width"]))
            group = (holder if is_track else attributes).get("group_id", "0")
            instance: str | None = f"group {group}" if group not in ("", "0") else None
            own = group if instance else None
            if is_track and are_tracks:
                own = holder.get("id", "")
                instance = f"track {own}"
            draw = _drawing(kind, attributes, size_hw, number)
            object_number = int(own) if own is not None and own.isdigit() else None
            order = attributes.get("z_order", "0")
            z_order = int(order) if order.lstrip("-").isdigit() else 0
            ordered.append((z_order, Region(place, label, draw, instance, object_number)))
        ordered.sort(key=lambda entry: entry[0])
        notes = [
            f"{count} shapes of type {kind} are left out" for kind, count in self._left_out.items()
        ]
        if interpolated:
            notes.append(f"{interpolated} shapes between key frames are left out")
        return Annotations("a file of CVAT", [r for _, r in ordered], sizes, tuple(notes))

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if self._root is None:
            self._root = tag
        elif tag in ("image", "track"):
            self._holder, self._is_track = attributes, tag == "track"
        elif self._holder is not None and tag in _DRAWN:
            self._shapes.append((self._holder, self._is_track, tag, attributes))
        elif self._holder is not None and tag in _NOT_DRAWN:
            self._left_out[tag] = self._left_out.get(tag, 0) + 1
        elif tag in ("width", "height") and self._holder is None:
            self._text = []

    def _end(self, tag: str) -> None:
        if tag in ("image", "track"):
            self._holder = None
        elif tag in ("width", "height") and self._text is not None:
            text = "".join(self._text).strip()
            if text.isdigit():
                self._size[tag] = int(text)
            self._text = None

    def _characters(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)


def _refuse_doctype(*_: Any) -> None:
    raise ValueError(
        "it has a document type (DOCTYPE), whose entities are not read, and no file of CVAT has "
        "one: remove it"
    )


def _is_outside(attributes: Mapping[str, str]) -> bool:
    return attributes.get("outside", "0") == "1"


def _drawing(
    kind: str, attributes: Mapping[str, str], size_hw: tuple[int, int], number: int
) -> Callable[[], BoolArray]:
    def draw() -> BoolArray:
        try:
            if kind == "mask":
                return _mask(attributes, size_hw, number)
            if kind == "box":
                return draw_on_edges(_box(attributes), size_hw)
            pairs = [pair.split(",") for pair in attributes.get("points", "").split(";")]
            points = [(_float(x), _float(y)) for x, y in pairs]
            if len(points) < _MIN_POINTS:
                raise ValueError
            return draw_on_edges(points, size_hw)
        except ValueError as error:
            reason = f" ({error})" if str(error).startswith("its ") else ""
            raise ValueError(f"shape {number} in it is no valid {kind}{reason}") from error

    return draw


def _mask(attributes: Mapping[str, str], size_hw: tuple[int, int], number: int) -> BoolArray:
    left, top, width, height = (
        _int(attributes, key, number) for key in ("left", "top", "width", "height")
    )
    if not (left + width <= size_hw[1] and top + height <= size_hw[0]):
        raise ValueError("its box is outside of the image")
    counts = [int(count) for count in attributes.get("rle", "").split(",")]
    if sum(counts) < width * height:  # CVAT may leave out the last run of background
        counts += [width * height - sum(counts)] if len(counts) % 2 == 0 else []
    full = np.zeros(size_hw, np.bool_)
    full[top : top + height, left : left + width] = mask_from_counts_by_row(counts, (height, width))
    return full


def _box(attributes: Mapping[str, str]) -> list[tuple[float, float]]:
    x0, y0, x1, y1 = (_float(attributes.get(key, "")) for key in ("xtl", "ytl", "xbr", "ybr"))
    angle = math.radians(_float(attributes.get("rotation", "0")))
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    if angle == 0:
        return corners
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    cos, sin = math.cos(angle), math.sin(angle)
    return [
        (x + (u - x) * cos - (v - y) * sin, y + (u - x) * sin + (v - y) * cos) for u, v in corners
    ]


def _float(text: str) -> float:
    value = float(text)
    if not is_number(value) or abs(value) > _LARGEST_COORDINATE:
        raise ValueError("its coordinates are out of range")
    return value


def _int(attributes: Mapping[str, str], key: str, number: int) -> int:
    text = attributes.get(key, "")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"shape {number} in it has no valid {key}")
    return int(text)


def _track(number: int, frame: int, object_id: int, label: str, mask: BoolArray) -> str:
    x, y, width, height = box_xywh(mask)
    rle = ", ".join(map(str, counts_by_row(mask[y : y + height, x : x + width])))
    shape = (
        '<mask frame="{}" keyframe="1" outside="{}" occluded="0" rle="{}" left="{}" top="{}" '
        'width="{}" height="{}" z_order="0"></mask>\n'
    )
    return (
        f'<track id="{number}" label="{_text(label)}" group_id="{object_id}" source="file">\n'
        + shape.format(frame, 0, rle, x, y, width, height)
        + shape.format(frame + 1, 1, "1", x, y, 1, 1)
        + "</track>\n"
    )


def _head(info: VideoInfo, frame_count: int, first: int, last: int) -> str:
    labels = "".join(
        f"<label><name>{_text(name)}</name><type>mask</type><attributes></attributes></label>\n"
        for name in info.categories
    )
    height, width = info.size_hw
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
        f"<meta>\n<task>\n<name>{_text(info.name)}</name>\n<size>{frame_count}</size>\n"
        f"<mode>interpolation</mode>\n<start_frame>{first}</start_frame>\n"
        f"<stop_frame>{last}</stop_frame>\n<frame_filter></frame_filter>\n"
        f"<labels>\n{labels}</labels>\n<original_size>\n<width>{width}</width>\n"
        f"<height>{height}</height>\n</original_size>\n</task>\n</meta>\n"
    )


def _text(text: str) -> str:
    """Escape a text for XML, which has no control characters."""
    return escape(printable(text))
