"""Define the input of a writer of annotations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from mpn.types import BoolArray, UInt8Array


@dataclass(frozen=True)
class AnnotatedFrame:
    """Frame of a result.

    Attributes:
        index: Index of the frame in its video.
        name: Name of the frame without suffix, such as ``"00012"``.
        labels: (H, W) uint8 object ids.
        image_path: Image of the frame; None if the video is a file.
    """

    index: int
    name: str
    labels: UInt8Array
    image_path: Path | None = None

    @property
    def image_name(self) -> str:
        """Name of the frame's image file. A frame of a video file gets a name for one."""
        return self.image_path.name if self.image_path is not None else f"{self.name}.png"


@dataclass(frozen=True)
class VideoInfo:
    """Facts about the video of a result.

    Attributes:
        name: Name of the video.
        size_hw: Height and width of its frames.
        object_ids: Ids of all objects.
        object_names: Object id -> name, of the objects that have one.
    """

    name: str
    size_hw: tuple[int, int]
    object_ids: tuple[int, ...]
    object_names: Mapping[int, str] = field(default_factory=dict)

    def name_of(self, object_id: int) -> str:
        """Return the name of an object, by default its id."""
        return self.object_names.get(object_id, str(object_id))

    @property
    def categories(self) -> dict[str, int]:
        """Number of each name from 1, in the order of the object ids."""
        names = dict.fromkeys(self.name_of(object_id) for object_id in self.object_ids)
        return {name: number for number, name in enumerate(names, 1)}


class AnnotationWriter(Protocol):
    """Function that writes a result in the format of another program."""

    def __call__(self, target: Path, frames: Iterable[AnnotatedFrame], info: VideoInfo) -> None:
        """Write all frames.

        Memory does not grow with the number of frames. The caller removes what is not finished.

        Args:
            target: The file or folder to write, which does not exist, in an existing folder that
                also gets temporary files.
            frames: In order; each is read once.
            info: Facts about the video.

        Raises:
            OSError: If it cannot be written.
        """


def masks_of_objects(labels: UInt8Array) -> Iterator[tuple[int, BoolArray]]:
    """Yield the id and the (H, W) bool mask of each object in a frame."""
    for object_id in np.flatnonzero(np.bincount(labels.ravel(), minlength=1)[1:]) + 1:
        yield int(object_id), labels == object_id


def box_xywh(mask: BoolArray) -> tuple[int, int, int, int]:
    """Return x, y, width and height of a mask that has a pixel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1
