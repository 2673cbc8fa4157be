"""Write the data set format of Datumaro.

Format: https://open-edge-platform.github.io/datumaro/, "Datumaro".
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mpn._common.files import json_text
from mpn.formats.annotated import AnnotatedFrame, VideoInfo, masks_of_objects
from mpn.formats.rle import counts_from_mask, string_from_counts

_IMAGE = 2
"""Number of Datumaro's media type."""


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
    path = target / "annotations" / "default.json"
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
