"""Read and write COCO: one JSON per image set, and its video form of YouTube-VIS.

Formats: https://cocodataset.org/#format-data, and ``segmentations`` per frame as in
https://youtube-vos.org/dataset/vis. A region is a list of polygons, or run lengths (RLE) as a list
or a string.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np

from mpn._common.files import json_text
from mpn._common.validation import is_int, is_number
from mpn.formats.annotated import AnnotatedFrame, VideoInfo, box_xywh, masks_of_objects
from mpn.formats.frames import VideoFacts
from mpn.formats.polygons import draw_on_edges, rings_on_edges
from mpn.formats.regions import Annotations, Place, Region
from mpn.formats.rle import (
    counts_from_mask,
    counts_from_string,
    mask_from_counts,
    string_from_counts,
)
from mpn.types import BoolArray

_LARGEST_COORDINATE = 1e5
_MIN_COORDINATES = 6
_NO_CATEGORY = "object"


def is_coco(value: object) -> bool:
    """Return whether a JSON value is a file of COCO, of images or of videos."""
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("annotations"), list)
        and any(isinstance(value.get(key), list) for key in ("images", "videos"))
    )


def annotations_from_coco(value: Mapping[str, Any], facts: VideoFacts) -> Annotations:
    """Read the annotations of a file of COCO.

    Over several images, ``track_id`` or ``instance_id`` stands for an object, otherwise its
    category if no image has two of that. Crowd regions are left out.

    Args:
        value: A file for which :func:`is_coco` is true.
        facts: The video. Of several videos in the file, the one of its name is used.

    Raises:
        ValueError: If the file is damaged, or none of its videos has the name of the video.
    """
    names = {
        entry["id"]: entry["name"]
        for entry in entries_of(value, "categories")
        if is_int(entry.get("id")) and isinstance(entry.get("name"), str)
    }
    if isinstance(value.get("videos"), list):
        return _of_video(value, facts, names)
    return _of_images(value, facts, names)


def write_coco(target: Path, frames: Iterable[AnnotatedFrame], info: VideoInfo) -> None:
    """Write a JSON file of COCO with one image per frame, regions as RLE.

    ``track_id`` of an annotation is the object id.

    Args:
        target: The file.
        frames: See :class:`AnnotatedFrame`.
        info: See :class:`VideoInfo`.

    Raises:
        OSError: If it cannot be written.
    """
    _write_images(target, frames, info, _rle)


def write_coco_polygons(target: Path, frames: Iterable[AnnotatedFrame], info: VideoInfo) -> None:
    """Write a JSON file of COCO with one image per frame, regions as polygons.

    The polygons follow the edges of the pixels, so that pycocotools draws the masks exactly. A hole
    is joined to the outline. See :func:`write_coco`.
    """

    def polygons(mask: BoolArray) -> Any:
        return [[float(v) for point in ring for v in point] for ring in rings_on_edges(mask)]

    _write_images(target, frames, info, polygons)


def write_ytvis(target: Path, frames: Iterable[AnnotatedFrame], info: VideoInfo) -> None:
    """Write a JSON file of YouTube-VIS with one video, regions as RLE.

    See :func:`write_coco`. The id of an annotation is the object id.
    """
    numbers = info.categories
    height, width = info.size_hw
    with ExitStack() as stack:
        out = _open_text(stack, target)
        parts = {
            object_id: {key: _spool(stack, target) for key in ("segmentations", "bboxes", "areas")}
            for object_id in info.object_ids
        }
        out.write(f'{{"info": {{"description": {json_text(info.name)}}}, "videos": [{{"id": 1, ')
        out.write(f'"height": {height}, "width": {width}, "file_names": [')
        length = 0
        for frame in frames:
            comma = ", " if length else ""
            masks = dict(masks_of_objects(frame.labels))
            out.write(comma + json_text(f"{info.name}/{frame.image_name}"))
            for object_id, files in parts.items():
                mask = masks.get(object_id)
                values = (
                    (None, None, None)
                    if mask is None
                    else (_rle(mask), box_xywh(mask), int(mask.sum()))
                )
                for file, item in zip(files.values(), values, strict=True):
                    file.write(comma + json_text(item))
            length += 1
        out.write(f'], "length": {length}}}], {_categories(numbers)}, "annotations": [')
        for position, (object_id, files) in enumerate(parts.items()):
            head = {
                "id": object_id,
                "video_id": 1,
                "category_id": numbers[info.name_of(object_id)],
                "iscrowd": 0,
                "height": height,
                "width": width,
                "length": length,
            }
            out.write((",\n" if position else "\n") + json_text(head)[:-1])
            for key, file in files.items():
                out.write(f', "{key}": [')
                _copy(file, out)
                out.write("]")
            out.write("}")
        out.write("\n]}\n")


def _of_images(
    value: Mapping[str, Any], facts: VideoFacts, names: Mapping[int, str]
) -> Annotations:
    places: dict[int, Place] = {}
    sizes: dict[Place, tuple[int, int]] = {}
    for number, image in enumerate(entries_of(value, "images"), 1):
        if not is_int(image.get("id")):
            raise ValueError(f"image {number} in it has no id")
        place = _place_of_image(image, facts)
        places[image["id"]] = place
        _add_size(sizes, place, image)
    regions: list[Region] = []
    crowds = 0
    for number, entry in enumerate(entries_of(value, "annotations"), 1):
        if entry.get("iscrowd") == 1 and "track_id" not in entry:
            crowds += 1
            continue
        segmentation = entry.get("segmentation")
        if not segmentation:  # boxes and key points alone
            continue
        if not is_int(entry.get("image_id")) or entry["image_id"] not in places:
            raise ValueError(f"annotation {number} in it is of no image")
        instance = _instance(entry)
        draw = _drawing(segmentation, facts.size_hw, number)
        label = _label(entry, names)
        number_of_object = instance if is_int(instance) else None
        regions.append(Region(places[entry["image_id"]], label, draw, instance, number_of_object))
    if crowds and not regions:
        raise ValueError(
            f"all its regions are marked iscrowd ({crowds}), which stands for a group of objects: "
            "set iscrowd to 0 if each is one object"
        )
    notes = (f"{crowds} crowd regions (iscrowd) are left out",) if crowds else ()
    return Annotations("a COCO file", regions, sizes, notes)


def _of_video(value: Mapping[str, Any], facts: VideoFacts, names: Mapping[int, str]) -> Annotations:
    videos = [video for video in entries_of(value, "videos") if is_int(video.get("id"))]
    chosen = videos if len(videos) == 1 else [v for v in videos if facts.name in _names_of(v)]
    if len(chosen) != 1:
        found = ", ".join(sorted(repr(name) for video in videos[:4] for name in _names_of(video)))
        raise ValueError(
            f"it has {len(videos)} videos ({found}), and {len(chosen)} of them have the name "
            f"{facts.name!r}: keep the annotations of one video, or name the video like it"
        )
    (video,) = chosen
    files = video.get("file_names")
    files = files if isinstance(files, list) and all(isinstance(f, str) for f in files) else []
    indices = [facts.index_of(name) for name in files]
    is_named = bool(files) and None not in indices
    sizes: dict[Place, tuple[int, int]] = {}
    regions: list[Region] = []
    for number, entry in enumerate(entries_of(value, "annotations"), 1):
        if entry.get("video_id") != video["id"]:
            continue
        segmentations = entry.get("segmentations")
        if not isinstance(segmentations, list):
            raise ValueError(f"annotation {number} in it has no segmentations")
        own_id = entry.get("id")
        own = own_id if is_int(own_id) else number
        for position, segmentation in enumerate(segmentations):
            if not segmentation:
                continue
            place: Place = position
            if is_named and position < len(indices):
                place = indices[position]
            _add_size(sizes, place, video)
            draw = _drawing(segmentation, facts.size_hw, number)
            regions.append(Region(place, _label(entry, names), draw, own, own))
    return Annotations("a COCO file of videos", regions, sizes)


def _names_of(video: Mapping[str, Any]) -> set[str]:
    names = {str(video.get("name"))} if video.get("name") is not None else set()
    files = video.get("file_names")
    for file in files[:1] if isinstance(files, list) else ():
        names.add(PurePosixPath(str(file)).parent.name)
    return names - {""}


def _place_of_image(image: Mapping[str, Any], facts: VideoFacts) -> Place:
    name = image.get("file_name")
    if isinstance(name, str) and facts.index_of(name) is not None:
        return name
    for key in ("frame_id", "frame_index"):
        if is_int(image.get(key)):
            return int(image[key])
    return name if isinstance(name, str) else f"image {image['id']}"


def _add_size(sizes: dict[Place, tuple[int, int]], place: Place, entry: Mapping[str, Any]) -> None:
    height, width = entry.get("height"), entry.get("width")
    if is_int(height) and is_int(width):
        sizes[place] = (height, width)


def _instance(entry: Mapping[str, Any]) -> int | str | None:
    attributes = entry.get("attributes")
    for holder in (entry, attributes if isinstance(attributes, Mapping) else {}):
        for key in ("track_id", "instance_id"):
            if is_int(holder.get(key)) or isinstance(holder.get(key), str):
                found: int | str = holder[key]
                return found
    return None


def _label(entry: Mapping[str, Any], names: Mapping[int, str]) -> str:
    category = entry.get("category_id")
    if not is_int(category):
        return _NO_CATEGORY
    return names.get(category, f"category {category}")


def entries_of(value: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """Return the list of JSON objects under a key, empty if there is none.

    Raises:
        ValueError: If it is no such list.
    """
    entries = value.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError(f"'{key}' in it is no list of objects")
    return entries


def _drawing(segmentation: Any, size_hw: tuple[int, int], number: int) -> Callable[[], BoolArray]:
    def draw() -> BoolArray:
        try:
            if isinstance(segmentation, list):
                mask = np.zeros(size_hw, np.bool_)
                for polygon in segmentation:
                    mask |= draw_on_edges(_points(polygon), size_hw)
                return mask
            return _from_rle(segmentation, size_hw)
        except ValueError as error:
            raise ValueError(f"annotation {number} in it cannot be drawn: {error}") from error

    return draw


def _points(polygon: Any) -> list[tuple[float, float]]:
    if (
        not isinstance(polygon, list)
        or len(polygon) < _MIN_COORDINATES
        or len(polygon) % 2
        or not all(is_number(v) and abs(v) <= _LARGEST_COORDINATE for v in polygon)
    ):
        raise ValueError("its polygon has no valid points")
    return list(zip(polygon[::2], polygon[1::2], strict=True))


def _from_rle(segmentation: Any, size_hw: tuple[int, int]) -> BoolArray:
    if not isinstance(segmentation, Mapping) or segmentation.get("size") != list(size_hw):
        raise ValueError(f"its size is not {list(size_hw)}, the height and width of the video")
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        counts = counts_from_string(counts)
    elif not isinstance(counts, list):
        raise ValueError("it has no run lengths")
    return mask_from_counts(counts, size_hw)


def _rle(mask: BoolArray) -> dict[str, Any]:
    return {
        "size": list(mask.shape),
        "counts": string_from_counts(counts_from_mask(mask)),
    }


def _write_images(
    target: Path,
    frames: Iterable[AnnotatedFrame],
    info: VideoInfo,
    segmentation_of: Callable[[BoolArray], Any],
) -> None:
    numbers = info.categories
    with ExitStack() as stack:
        out, annotations = _open_text(stack, target), _spool(stack, target)
        out.write(f'{{"info": {{"description": {json_text(info.name)}}}, "licenses": [], ')
        out.write(f'{_categories(numbers)}, "images": [')
        count = 0
        for position, frame in enumerate(frames):
            height, width = frame.labels.shape
            image = {
                "id": frame.index + 1,
                "file_name": frame.image_name,
                "height": height,
                "width": width,
                "frame_id": frame.index,
            }
            out.write((",\n" if position else "\n") + json_text(image))
            for object_id, mask in masks_of_objects(frame.labels):
                entry = {
                    "id": count + 1,
                    "image_id": frame.index + 1,
                    "category_id": numbers[info.name_of(object_id)],
                    "track_id": object_id,
                    "attributes": {"track_id": object_id},
                    "iscrowd": 0,
                    "area": int(mask.sum()),
                    "bbox": box_xywh(mask),
                    "segmentation": segmentation_of(mask),
                }
                annotations.write((",\n" if count else "\n") + json_text(entry))
                count += 1
        out.write('\n], "annotations": [')
        _copy(annotations, out)
        out.write("\n]}\n")


def _categories(numbers: Mapping[str, int]) -> str:
    entries = [{"id": number, "name": name} for name, number in numbers.items()]
    return f'"categories": {json_text(entries)}'


def _open_text(stack: ExitStack, target: Path) -> IO[str]:
    return stack.enter_context(target.open("w", encoding="utf-8", newline="\n"))


def _spool(stack: ExitStack, target: Path) -> IO[str]:
    """Open a temporary text file without a name, in the folder of the target."""
    return stack.enter_context(
        TemporaryFile("w+", encoding="utf-8", newline="\n", dir=target.parent)
    )


def _copy(spool: IO[str], out: IO[str]) -> None:
    spool.seek(0)
    for piece in _pieces(spool):
        out.write(piece)


def _pieces(file: IO[str]) -> Iterator[str]:
    while piece := file.read(1 << 20):
        yield piece
