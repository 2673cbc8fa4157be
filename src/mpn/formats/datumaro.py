"""Read and write the data set format of Datumaro.

Format: https://open-edge-platform.github.io/datumaro/, "Datumaro".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpn._common.files import json_text
from mpn._common.validation import is_int
from mpn.formats.annotated import AnnotatedFrame, VideoInfo, masks_of_objects
from mpn.formats.coco import annotations_from_coco, entries_of
from mpn.formats.frames import VideoFacts
from mpn.formats.regions import Annotations
from mpn.formats.rle import counts_from_mask, string_from_counts

ANNOTATIONS_FOLDER = "annotations"
"""Folder of the file in a data set, also in one of COCO."""

_IMAGE = 2
"""Number of Datumaro's media type."""


def is_datumaro(value: object) -> bool:
    """Return whether a JSON value is a file of Datumaro."""
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("items"), list)
        and isinstance(value.get("categories"), Mapping)
    )


def annotations_from_datumaro(value: Mapping[str, Any], facts: VideoFacts) -> Annotations:
    """Read the masks and polygons of a file of Datumaro, encoded as in COCO.

    The attribute ``track_id`` stands for an object, otherwise the group.

    Args:
        value: A file for which :func:`is_datumaro` is true.
        facts: The video.

    Raises:
        ValueError: If the file is damaged.
    """
    labels = value["categories"].get("label", {})
    names = entries_of(labels if isinstance(labels, Mapping) else {}, "labels")
    items = entries_of(value, "items")
    coco = {
        "categories": [{"id": k, "name": label.get("name")} for k, label in enumerate(names)],
        "images": [{"id": k, **_image_of(item)} for k, item in enumerate(items)],
        "annotations": [
            {"image_id": k, **entry} for k, item in enumerate(items) for entry in _regions_of(item)
        ],
    }
    return replace(annotations_from_coco(coco, facts), kind="a file of Datumaro")


def write_datumaro(target: Path, frames: Iterable[AnnotatedFrame], info: VideoInfo) -> None:
    """Write ``annotations/default.json`` of a data set of Datumaro, without images.

    ``track_id`` of an annotation and its group are the object id.

    Args:
        target: The folder, which is created.
        frames: See :class:`AnnotatedFrame`.
        info: See :class:`VideoInfo`.

    Raises:
        OSError: If it cannot be written.
    """
    numbers = info.categories
    labels = [{"name": name, "parent": "", "attributes": []} for name in numbers]
    categories = {"label": {"labels": labels, "label_groups": [], "attributes": []}}
    path = target / ANNOTATIONS_FOLDER / "default.json"
    path.parent.mkdir(parents=True)
    with path.open("w", encoding="utf-8", newline="\n") as out:
        out.write(f'{{"dm_format_version": "1.0", "media_type": {_IMAGE}, "infos": {{}}, ')
        out.write(f'"categories": {json_text(categories)}, "items": [')
        for position, frame in enumerate(frames):
            size_hw = list(frame.labels.shape)
            annotations = [
                {
                    "id": object_id,
                    "type": "mask",
                    "attributes": {"track_id": object_id},
                    "group": object_id,
                    "label_id": numbers[info.name_of(object_id)] - 1,
                    "rle": {
                        "counts": string_from_counts(counts_from_mask(mask)),
                        "size": size_hw,
                    },
                    "z_order": 0,
                }
                for object_id, mask in masks_of_objects(frame.labels)
            ]
            item = {
                "id": frame.name,
                "annotations": annotations,
                "attr": {"frame": frame.index},
                "image": {"path": frame.image_name, "size": size_hw},
            }
            out.write((",\n" if position else "\n") + json_text(item))
        out.write("\n]}\n")


def _image_of(item: Mapping[str, Any]) -> dict[str, Any]:
    image, attributes = (
        each if isinstance(each := item.get(key), Mapping) else {} for key in ("image", "attr")
    )
    found = {"file_name": image.get("path") or item.get("id"), "frame_id": attributes.get("frame")}
    size = image.get("size")
    if isinstance(size, list) and len(size) == 2:
        found["height"], found["width"] = size
    return found


def _regions_of(item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the masks and polygons of an image in the order in which they are drawn."""
    entries = entries_of(item, "annotations")
    for entry in sorted(entries, key=lambda e: e["z_order"] if is_int(e.get("z_order")) else 0):
        region = {"category_id": entry.get("label_id"), "attributes": entry.get("attributes")}
        if entry.get("type") == "mask":
            region["segmentation"] = entry.get("rle")
        elif entry.get("type") == "polygon":
            region["segmentation"] = [entry.get("points")]
        else:  # boxes, key points, labels of the image
            continue
        if entry.get("group"):  # 0: none
            region["instance_id"] = entry["group"]
        yield region
