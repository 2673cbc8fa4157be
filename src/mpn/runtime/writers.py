"""What a run leaves behind, one writer a kind of file.

Each writer is fed every frame in order. A file that grows over the run carries ``.partial`` in its
name until :meth:`Writer.close`; files of one frame are written whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mpn._common.files import journal_path, output_errors, publish, write_atomically
from mpn.masks import save_labels
from mpn.runtime.rle import counts_from_mask, string_from_counts
from mpn.types import Frame, StepResult


class Writer(Protocol):
    """Takes the results of a run, frame by frame."""

    def write(self, frame: Frame, result: StepResult) -> None:
        """Write one frame.

        Raises:
            OutputError: If it cannot be written.
        """

    def close(self) -> None:
        """Give what was written its final name; called once, after the last frame.

        Raises:
            OutputError: If it cannot be finished.
        """

    def discard(self) -> None:
        """Remove what has no final name yet; called instead of, or after a failed, close."""


class MaskWriter:
    """``<frame name>.png``: a palette PNG a frame.

    Args:
        folder: Where to; it must exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, frame: Frame, result: StepResult) -> None:
        """See :meth:`Writer.write`."""
        save_labels(self._folder / f"{frame.name}.png", result.labels)

    def close(self) -> None:
        """Nothing to do: every mask is complete."""

    def discard(self) -> None:
        """Nothing to do: every mask is complete."""


class ProbsWriter:
    """``<frame name>.npz``: ``probs`` (K, H, W) float16 and ``object_ids`` (K,) a frame.

    Half precision keeps 3 digits of a probability, at half the size.

    Args:
        folder: Where to; it must exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, frame: Frame, result: StepResult) -> None:
        """See :meth:`Writer.write`."""
        probs = result.probs.astype(np.float16)
        object_ids = np.array(result.object_ids, np.uint8)
        write_atomically(
            self._folder / f"{frame.name}.npz",
            lambda file: np.savez_compressed(file, probs=probs, object_ids=object_ids),
        )

    def close(self) -> None:
        """Nothing to do: every file is complete."""

    def discard(self) -> None:
        """Nothing to do: every file is complete."""


class _JsonLinesWriter:
    """One JSON object a line and frame.

    Args:
        path: The file.
        earlier_lines: Lines to begin with, when a run is resumed.
    """

    def __init__(self, path: Path, earlier_lines: Iterable[str] = ()) -> None:
        self._path = path
        earlier = "".join(line.rstrip("\n") + "\n" for line in earlier_lines)
        with output_errors(path):
            # Unbuffered: a killed run is resumed from these lines.
            self._file = journal_path(path).open("wb", buffering=0)
        self._append(earlier)

    def _write_line(self, value: dict[str, Any]) -> None:
        self._append(json.dumps(value, ensure_ascii=False) + "\n")

    def _append(self, text: str) -> None:
        data = text.encode()
        with output_errors(self._path):
            end = self._file.tell()
            try:
                while data:
                    data = data[self._file.write(data) :]
            except OSError:
                self._file.truncate(end)  # whole lines only, so that close can still succeed
                raise

    def close(self) -> None:
        """See :meth:`Writer.close`; after a failed write, the lines before it are kept."""
        with output_errors(self._path):
            self._file.close()
            publish(journal_path(self._path), self._path, durable=True)

    def discard(self) -> None:
        """See :meth:`Writer.discard`."""
        with output_errors(self._path):
            self._file.close()
            journal_path(self._path).unlink(missing_ok=True)


class TracksWriter(_JsonLinesWriter):
    """``tracks.jsonl``: per frame what became of each object.

    Keys: ``frame`` (index in the source), ``name``, ``pts_s``, ``objects`` (see ``Track.as_json``).
    """

    def write(self, frame: Frame, result: StepResult) -> None:
        """See :meth:`Writer.write`."""
        self._write_line(
            {
                "frame": frame.index,
                "name": frame.name,
                "pts_s": round(float(frame.pts_s), 6),
                "objects": [track.as_json() for track in result.tracks],
            }
        )


class RleWriter(_JsonLinesWriter):
    """``rle.jsonl``: per frame each object's mask as COCO's compressed RLE.

    Keys: ``frame``, ``name``, ``objects``: a list of ``object_id`` and ``segmentation`` (``size``
    [H, W] and ``counts``, as pycocotools decodes it).
    """

    def write(self, frame: Frame, result: StepResult) -> None:
        """See :meth:`Writer.write`."""
        size_hw = list(result.labels.shape)
        objects = [
            {
                "object_id": object_id,
                "segmentation": {
                    "size": size_hw,
                    "counts": string_from_counts(counts_from_mask(result.labels == object_id)),
                },
            }
            for object_id in result.object_ids
        ]
        self._write_line({"frame": frame.index, "name": frame.name, "objects": objects})
