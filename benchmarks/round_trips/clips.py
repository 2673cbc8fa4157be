"""Masks that annotation formats are tested with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mpn.masks import load_labels
from mpn.types import UInt8Array

_DRAWN_HW = (96, 128)
_EVERY = 10
_PHOTOGRAPHS = 40
_MOST_OBJECTS = 254


class Clip(NamedTuple):
    """Masks of a video.

    Attributes:
        name: Name of the video.
        labels: (H, W) uint8 ids of each frame.
    """

    name: str
    labels: list[UInt8Array]


def drawn_clips() -> Iterator[Clip]:
    """Yield masks with holes, islands, lines, single pixels, borders and noise."""
    rng = np.random.default_rng(0)
    frames = []
    for index in range(4):
        labels = np.zeros(_DRAWN_HW, np.uint8)
        cv2.circle(labels, (30 + 3 * index, 30), 24, 1, -1)
        cv2.circle(labels, (26 + 3 * index, 26), 6, 0, -1)
        cv2.circle(labels, (38 + 3 * index, 36), 4, 2, -1)  # an object in a hole
        labels[60:90, 5:40] = 3
        labels[60:90, 20 + index] = 0  # two parts
        labels[95, :] = 4  # a line along the border
        labels[70, 60] = labels[72, 64 + index] = 5  # single pixels
        labels[80:90, 90:100][np.eye(10, dtype=bool)] = 6  # touching at corners only
        if index:
            labels[5:20, 100:120] = 7  # it appears later
            labels[8:17, 104:116] = 0
        frames.append(labels)
    yield Clip("shapes", frames)
    noise = [rng.integers(0, 3, _DRAWN_HW).astype(np.uint8) for _ in range(2)]
    yield Clip("noise", noise)
    smooth = []
    for _ in range(4):
        field = rng.random((3, *_DRAWN_HW)).astype(np.float32)
        blurred = np.stack([cv2.GaussianBlur(plane, (0, 0), 3) for plane in field])
        smooth.append((blurred.argmax(axis=0)).astype(np.uint8))
    yield Clip("blobs", smooth)


def real_clips(shared: Path) -> Iterator[Clip]:
    """Yield masks of DAVIS, every tenth frame of ``val``, and of COCO."""
    root = shared / "data" / "davis"
    for sequence in (root / "ImageSets/2017/val.txt").read_text().split():
        files = sorted((root / "Annotations/480p" / sequence).glob("*.png"))[::_EVERY]
        yield Clip(sequence, [_labels(file) for file in files])
    for file in sorted((shared / "data/coco_instances/masks").glob("*.png"))[:_PHOTOGRAPHS]:
        yield Clip(file.stem, [_labels(file)])


def _labels(path: Path) -> UInt8Array:
    return load_labels(path, max_objects=_MOST_OBJECTS, allow_empty=True, on_note=lambda _: None)
