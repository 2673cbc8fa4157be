"""What ``mpn bench`` runs on: the built-in clip, as a file and in memory, with any K objects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpn.errors import InputError
from mpn.masks import load_labels
from mpn.runtime.state import object_ids_from_labels
from mpn.runtime.video import open_video
from mpn.synthetic import write_clip
from mpn.types import UInt8Array

_MIN_AREA_PX = 16
"""Of an object in the first frame: below it there is nothing to propagate."""


@dataclass(frozen=True)
class BenchmarkClip:
    """The clip.

    Attributes:
        video: H.264 in an MP4.
        frames: (H, W, 3) uint8 RGB each, decoded from the file: both hold the same pixels.
        labels: (H, W) uint8 of the first frame.
    """

    video: Path
    frames: tuple[UInt8Array, ...]
    labels: UInt8Array


def make_clip(folder: Path, *, frames: int, size_hw: tuple[int, int]) -> BenchmarkClip:
    """Render the built-in clip into ``folder`` and read it back.

    Args:
        folder: Where its files go.
        frames: How many.
        size_hw: (height, width), both even.

    Raises:
        InputError: If the size is none that the clip can have.
        OutputError: If a file cannot be written.
    """
    paths = write_clip(folder, frames=frames, size_hw=size_hw)
    with open_video(paths.video) as source:
        decoded = tuple(frame.rgb for frame in source)
    return BenchmarkClip(paths.video, decoded, load_labels(paths.first_mask, size_hw=size_hw))


def labels_of_objects(labels: UInt8Array, objects: int) -> UInt8Array:
    """Labels with exactly so many objects, the same for the same arguments.

    Fewer: the first ones stay. More: the largest one is cut in two halves of equal area, across its
    longer side, until there are enough.

    Args:
        labels: (H, W) uint8 ids.
        objects: How many are wanted.

    Returns:
        (H, W) uint8, ids 1 .. ``objects``.

    Raises:
        InputError: If the objects are too small to be cut so often.
        MaskError: If there is no object at all.
    """
    wanted = np.zeros_like(labels)
    kept_ids = object_ids_from_labels(labels)[:objects]
    for new_id, object_id in enumerate(kept_ids, start=1):
        wanted[labels == object_id] = new_id
    for new_id in range(len(kept_ids) + 1, objects + 1):
        areas_px = np.bincount(wanted.ravel())[1:]
        if areas_px.max() < 2 * _MIN_AREA_PX:
            raise InputError(
                f"the frame size {labels.shape[1]}x{labels.shape[0]} is too small for {objects} "
                "objects: ask for fewer objects or larger frames"
            )
        rows, columns = np.nonzero(wanted == int(areas_px.argmax()) + 1)
        along = columns if np.ptp(columns) >= np.ptp(rows) else rows
        half = np.argsort(along, kind="stable")[len(along) // 2 :]
        wanted[rows[half], columns[half]] = new_id
    return wanted
