"""Read masks from files and folders, whose content decides the format."""

from __future__ import annotations

import codecs
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mpn._common.files import first_bytes, read_plain_file
from mpn._common.records import json_from_text
from mpn._common.text import LONGEST_MESSAGE, one_line, read_text
from mpn.errors import MaskError
from mpn.formats.arrays import labels_from_npy
from mpn.formats.coco import annotations_from_coco, is_coco
from mpn.formats.cvat import ANNOTATIONS_NAME, annotations_from_cvat
from mpn.formats.datumaro import ANNOTATIONS_FOLDER, annotations_from_datumaro, is_datumaro
from mpn.formats.frames import VideoFacts
from mpn.formats.labelme import annotations_from_labelme, is_labelme
from mpn.formats.objects import ObjectIds
from mpn.formats.regions import (
    Annotations,
    GivenMasks,
    Place,
    frames_of_places,
    masks_from_annotations,
    shown_frames,
)
from mpn.formats.yolo import LABELS_FOLDER, annotations_from_yolo, class_names_of, is_yolo
from mpn.masks import DEFAULT_MAX_OBJECTS, load_labels
from mpn.types import UInt8Array

_MOST_BYTES = 256 << 20
"""Size of an annotation file: COCO's largest, of 118,000 images, has 450 MB."""

_MOST_ENTRIES = 200_000
"""Files in a zip file or a folder."""

_HEAD_BYTES = 4096
_TEXT = rb"(?:\xef\xbb\xbf)?\s*"
"""Start of a text: a byte order mark and white space."""

_KINDS = tuple(
    (re.compile(pattern, re.DOTALL), kind)
    for pattern, kind in (
        (rb"\x93NUMPY", "array"),
        (rb"PK(?:\x03\x04|\x05\x06)", "zip"),
        (rb"\x89PNG|II\*\0|MM\0\*|BM|GIF8|P[1-6]\s", "image"),
        (rb"\xff\xd8\xff|RIFF....WEBP", "photo"),
        (_TEXT + rb"[\[{]", "json"),
        (
            _TEXT + rb"(?:<\?xml[^<]*)?(?:<!--.*?-->\s*)?<(?:annotations|!DOCTYPE\s+(?!html\b))",
            "xml",
        ),
    )
)


def read_masks(
    path: str | Path,
    facts: VideoFacts,
    *,
    frame: int | None = None,
    objects: ObjectIds | None = None,
    max_objects: int = DEFAULT_MAX_OBJECTS,
) -> GivenMasks:
    """Read the masks that a user made, of one or several frames.

    The content of the file decides its format: an image with ids (see
    :func:`mpn.masks.load_labels`), JSON of labelme, COCO, YouTube-VIS or Datumaro, XML of CVAT, a
    zip file with one of these, a .npy array, or text of YOLO. A folder has files of one of these
    formats, with the names of the frames, or is a data set of YOLO, COCO or Datumaro with them in
    ``labels`` or ``annotations``.

    Args:
        path: The file or folder.
        facts: The video.
        frame: Index of the frame that the user gave with the file: of several frames in it, only
            this one is used.
        objects: Ids of the objects of the masks that were read before; it gets those of this file.
        max_objects: Largest number of objects in a frame.

    Returns:
        The masks. Frames without an object are left out.

    Raises:
        MaskError: If the file is missing, damaged, of no known format, has no mask of the video,
            or its frames, objects or sizes cannot be decided.
    """
    path = Path(path)
    reader = _Reader(facts, frame, ObjectIds() if objects is None else objects, max_objects)
    if os.path.isdir(path):  # unlike Path.is_dir, False for a name that is too long
        return reader.folder(path)
    return reader.file(path)


@dataclass(frozen=True)
class _Reader:
    facts: VideoFacts
    frame: int | None
    objects: ObjectIds
    max_objects: int

    def file(self, path: Path) -> GivenMasks:
        """Read one file."""
        kind = _kind_of(path)
        if kind in (None, "image", "photo"):
            notes: list[str] = []
            labels = load_labels(
                path,
                size_hw=self.facts.size_hw,
                max_objects=self.max_objects,
                on_note=notes.append,
            )
            self.objects.add_unnamed(_ids_in(labels))
            return GivenMasks({None: labels}, notes=tuple(notes))
        if kind == "array":
            labels = self._array(path)
            self._check(path, labels, allow_empty=False)
            self.objects.add_unnamed(_ids_in(labels))
            return GivenMasks({None: labels})
        return self._annotated(path, lambda: self._annotations(path, kind, None))

    def folder(self, path: Path) -> GivenMasks:
        """Read a folder of files with the names of the frames."""
        files = _mask_files(path)
        kind = _kind_of(files[0])
        if kind not in ("json", "xml", "yolo"):
            return self._folder_of_labels(path, files)
        return self._annotated(path, lambda: self._annotations_of(files, kind))

    def _folder_of_labels(self, path: Path, files: list[Path]) -> GivenMasks:
        by_name = {file.stem: file for file in files}
        with _reasons(path):
            frames, left_out = frames_of_places(
                dict.fromkeys(by_name), "a folder", self.facts, self.frame, is_folder=True
            )
        notes, labels = [f"{path}: {note}" for note in left_out], {}
        for index, stem in frames.items():
            file = by_name[str(stem)]
            if _kind_of(file) == "array":
                found = self._array(file)
            else:
                found = load_labels(
                    file,
                    size_hw=self.facts.size_hw,
                    max_objects=self.max_objects,
                    allow_empty=True,
                    on_note=notes.append,
                )
            self._check(file, found, allow_empty=True)
            if found.any():
                self.objects.add_unnamed(_ids_in(found))
                labels[index] = found
        if not labels:
            raise MaskError(f"the masks in {path} are empty: mark at least one object")
        notes.append(f"the folder {path} has masks of {shown_frames(labels)}")
        return GivenMasks(labels, notes=tuple(notes))

    def _annotated(self, path: Path, read: Callable[[], Annotations]) -> GivenMasks:
        with _reasons(path):
            given = masks_from_annotations(
                read(), self.facts, self.frame, self.objects, f"the mask {path}"
            )
        for labels in given.labels.values():
            self._check(path, labels, allow_empty=len(given.labels) > 1)
        labels_of = {index: labels for index, labels in given.labels.items() if labels.any()}
        if not labels_of:
            raise MaskError(f"the masks in {path} are empty: mark at least one object")
        return replace(given, labels=labels_of)

    def _annotations(self, path: Path, kind: str, place: Place) -> Annotations:
        if kind == "yolo":
            names = class_names_of(path.parent)
            return annotations_from_yolo(read_text(path), self.facts.size_hw, names, place)
        data = _from_zip(path) if kind == "zip" else read_plain_file(path, _MOST_BYTES)
        return self._parsed(data, place)

    def _parsed(self, data: bytes, place: Place) -> Annotations:
        if data.lstrip(codecs.BOM_UTF8 + b" \t\r\n")[:1] == b"<":
            return annotations_from_cvat(data, self.facts.size_hw)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError("it is JSON, but no UTF-8 text") from error
        value: Any = json_from_text(text, MaskError)
        if is_labelme(value):
            return annotations_from_labelme(value, self.facts.size_hw, place)
        if is_coco(value):
            return annotations_from_coco(value, self.facts)
        if is_datumaro(value):
            return annotations_from_datumaro(value, self.facts)
        raise ValueError("it is JSON, but not of labelme, COCO, YouTube-VIS or Datumaro")

    def _annotations_of(self, files: list[Path], kind: str) -> Annotations:
        """Read the files of a folder as one: objects keep their ids."""
        found: list[Annotations] = []
        for file in files:
            with _reasons(file):
                found.append(self._annotations(file, kind, file.stem))
        sizes: dict[Place, tuple[int, int]] = {}
        for each in found:
            sizes.update(each.sizes_hw)
        return Annotations(
            found[0].kind if len(found) == 1 else f"a folder of {len(files)} files",
            [region for each in found for region in each.regions],
            sizes,
            tuple(dict.fromkeys(note for each in found for note in each.notes)),
            must_group=any(each.must_group for each in found),
            is_folder=any(each.is_folder for each in found),
        )

    def _array(self, path: Path) -> UInt8Array:
        with _reasons(path):
            return labels_from_npy(path)

    def _check(self, path: Path, labels: UInt8Array, *, allow_empty: bool) -> None:
        height, width = self.facts.size_hw
        if labels.shape != (height, width):
            raise MaskError(
                f"the mask {path} is {labels.shape[1]}x{labels.shape[0]} but the video is "
                f"{width}x{height} (width x height): give a mask of the video's size"
            )
        count = len(_ids_in(labels))
        if not count and not allow_empty:
            raise MaskError(f"the mask {path} is empty: mark at least one object")
        if count > self.max_objects:
            raise MaskError(
                f"the mask {path} holds {count} objects in a frame, more than the "
                f"{self.max_objects} allowed: keep the objects to track"
            )


@contextmanager
def _reasons(path: Path) -> Iterator[None]:
    """Convert the errors of the block to a MaskError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise MaskError(f"no such mask: {path}") from error
    except OSError as error:
        raise MaskError(f"the mask {path} cannot be read ({error.strerror or error})") from error
    except (MaskError, ValueError) as error:
        if str(error).startswith("the mask "):  # of a file in the folder
            raise
        text = one_line(error, LONGEST_MESSAGE)
        raise MaskError(f"the mask {path} cannot be used: {text}") from error


def _kind_of(path: Path) -> str | None:
    """Return the kind of a file by its first bytes; None if it is not known."""
    head = first_bytes(path, _HEAD_BYTES)
    for pattern, kind in _KINDS:
        if pattern.match(head):
            return kind
    return "yolo" if is_yolo(head) else None


def _mask_files(folder: Path) -> list[Path]:
    """List the files of a folder that hold masks, by name.

    Programs keep the frames in the folder of their annotations. PNG files next to JSON or text
    files of the same names are frames.

    Raises:
        MaskError: If there is none, or they are of several formats.
    """
    with _reasons(folder):
        entries = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".")]
    if len(entries) > _MOST_ENTRIES:
        raise MaskError(f"the mask folder {folder} has {len(entries)} files: give a smaller one")
    by_kind: dict[str, list[Path]] = {}
    for path in entries:
        kind = _kind_of(path) if path.is_file() else None
        if kind is not None:
            by_kind.setdefault(kind, []).append(path)
    if not by_kind and (inner := _folder_in_data_set(folder)) is not None:
        return _mask_files(inner)
    images = {path.stem for kind in ("image", "photo") for path in by_kind.get(kind, ())}
    for kind in ("json", "yolo", "xml"):
        files = by_kind.get(kind, [])
        named = [path for path in files if path.stem in images]
        if kind == "xml" and "json" not in by_kind:
            named = named or files
        if named or (files and not by_kind.get("image") and "array" not in by_kind):
            return files
    found = by_kind.get("image", []) or by_kind.get("photo", [])
    arrays = by_kind.get("array", [])
    if found and arrays:
        raise MaskError(
            f"the mask folder {folder} has images and arrays ({found[0].name}, {arrays[0].name}): "
            "keep those of one format"
        )
    if not found and not arrays:
        raise MaskError(
            f"the mask folder {folder} has no mask: give a folder of PNG files with the names of "
            "the frames, or of a format of docs/formats.md"
        )
    return found or arrays


def _folder_in_data_set(folder: Path) -> Path | None:
    for name in (LABELS_FOLDER, ANNOTATIONS_FOLDER):
        if (folder / name).is_dir():
            return folder / name
    if folder.name != LABELS_FOLDER:
        return None
    subsets = [path for path in folder.iterdir() if path.is_dir()]
    return subsets[0] if len(subsets) == 1 else None


def _from_zip(path: Path) -> bytes:
    """Return the annotations of a zip file of CVAT."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > _MOST_ENTRIES:
                raise ValueError(f"it is a zip file of {len(entries)} files")
            names = [entry for entry in entries if entry.filename == ANNOTATIONS_NAME] or [
                entry
                for entry in entries
                if PurePosixPath(entry.filename).suffix.lower() in (".xml", ".json")
            ]
            if len(names) != 1:
                raise ValueError(
                    f"it is a zip file with {len(names)} annotation files: unpack it and give one"
                )
            # The sizes in a zip file may be wrong, so the bytes that come out are counted.
            with archive.open(names[0]) as file:
                data = file.read(_MOST_BYTES + 1)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise ValueError(f"it is a zip file that cannot be read ({error})") from error
    if len(data) > _MOST_BYTES:
        raise ValueError(f"its {names[0].filename} has more than {_MOST_BYTES >> 20} MB")
    return data


def _ids_in(labels: UInt8Array) -> list[int]:
    ids: list[int] = (np.flatnonzero(np.bincount(labels.ravel(), minlength=1)[1:]) + 1).tolist()
    return ids
