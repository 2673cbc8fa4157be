"""Keep results of a backward pass on the disk until their frames are due."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpn._common.closeable import Closeable
from mpn._common.files import output_errors
from mpn._common.locks import TEMPORARY_PREFIX, TemporaryFolder, remove_abandoned_folders
from mpn.runtime.host.roi import box_from_prob
from mpn.types import Float32Array, Roi, StepResult, Track, UInt8Array

_LEVEL = 1
"""Of zlib: masks are mostly constant, so a higher level is slower and saves little."""


@dataclass(frozen=True)
class SpooledFrame:
    """Result of a frame of a backward pass.

    Attributes:
        labels: (H, W) uint8 ids.
        object_ids: Ids of the objects, ascending.
        tracks: One entry per object.
        probs: Object id -> its box and (h, w) float32 probability in it, 0 outside, rounded to
            float16; None if no probability was kept.
    """

    labels: UInt8Array
    object_ids: tuple[int, ...]
    tracks: tuple[Track, ...]
    probs: Mapping[int, tuple[Roi, Float32Array]] | None

    def planes(self, object_ids: Collection[int]) -> Float32Array:
        """Return (K, H, W) float32 of each object; K is 0 if none was kept."""
        if self.probs is None:
            return np.zeros((0, *self.labels.shape), np.float32)
        planes = np.zeros((len(object_ids), *self.labels.shape), np.float32)
        for plane, object_id in zip(planes, object_ids, strict=True):
            if object_id in self.probs:
                box, values = self.probs[object_id]
                plane[box.y0 : box.y1, box.x0 : box.x1] = values
        return planes


class Spool(Closeable):
    """Results by frame, one file each, in a private folder.

    The folder is created with the first result. If the process is killed, the next run removes it,
    see :func:`remove_abandoned_spools`.

    Args:
        parent: An existing folder for it; None for the system's temporary folder.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent
        self._folder: TemporaryFolder | None = None

    def put(self, index: int, result: StepResult, *, keep: Collection[int]) -> None:
        """Store a result.

        Args:
            index: Frame index.
            result: Its result.
            keep: Ids of the objects whose probabilities are kept.

        Raises:
            OutputError: If it cannot be written.
        """
        blobs = [_packed(result.labels)]
        boxes: dict[int, list[int]] = {}
        probs = result.probs if keep else None  # on a device, reading them copies them
        for position, object_id in enumerate(result.object_ids):
            if probs is None or object_id not in keep:
                continue
            box = box_from_prob(probs[position], 0.0)
            if box is not None:
                boxes[object_id] = list(box.box_xyxy)
                window = probs[position, box.y0 : box.y1, box.x0 : box.x1]
                blobs.append(_packed(window.astype(np.float16)))
        head = {
            "has_probs": probs is not None,
            "size_hw": result.labels.shape,
            "object_ids": result.object_ids,
            "tracks": [asdict(track) for track in result.tracks],
            "boxes": boxes,
            "sizes": [len(blob) for blob in blobs],
        }
        text = json.dumps(head).encode()
        path = self._path(index)
        with output_errors(path):
            path.write_bytes(b"".join((struct.pack("<I", len(text)), text, *blobs)))

    def take(self, index: int) -> SpooledFrame:
        """Return a result, and remove it.

        Raises:
            OutputError: If it cannot be read.
        """
        path = self._path(index)
        with output_errors(path):
            data = path.read_bytes()
            path.unlink()
        end = 4 + struct.unpack_from("<I", data)[0]
        head = json.loads(data[4:end])
        blobs = []
        for size in head["sizes"]:
            blobs.append(data[end : end + size])
            end += size
        labels = np.frombuffer(zlib.decompress(blobs[0]), np.uint8).reshape(head["size_hw"])
        probs = {}
        for (object_id, corners), blob in zip(head["boxes"].items(), blobs[1:], strict=True):
            box = Roi(*corners)
            values = np.frombuffer(zlib.decompress(blob), np.float16).reshape(box.size_hw)
            probs[int(object_id)] = (box, values.astype(np.float32))
        tracks = tuple(_track(entry) for entry in head["tracks"])
        return SpooledFrame(
            labels.copy(), tuple(head["object_ids"]), tracks, probs if head["has_probs"] else None
        )

    def close(self) -> None:
        """Remove the folder. A second call does nothing."""
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def _path(self, index: int) -> Path:
        if self._folder is None:
            with output_errors(self._parent or Path(TEMPORARY_PREFIX)):
                self._folder = TemporaryFolder(self._parent, prefix=_prefix(self._parent))
        return self._folder.path / str(index)


def remove_abandoned_spools(parent: Path) -> None:
    """Remove the folders of killed runs in the folder of their results."""
    remove_abandoned_folders(parent, prefix=_prefix(parent))


def _prefix(parent: Path | None) -> str:
    return TEMPORARY_PREFIX if parent is None else f".{TEMPORARY_PREFIX}"


def _packed(array: np.ndarray[Any, Any]) -> bytes:
    return zlib.compress(np.ascontiguousarray(array).data, _LEVEL)


def _track(entry: dict[str, Any]) -> Track:
    box = entry.pop("box_xyxy")
    events = tuple(entry.pop("events"))
    return Track(box_xyxy=None if box is None else tuple(box), events=events, **entry)
