"""Write the results of a run: masks, probabilities, tracks and RLE.

Each writer gets all frames in order. A file that grows during the run has ``.partial`` in its name
until :meth:`Writer.close`. Files of one frame are written atomically.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mpn._common.files import (
    flush_files,
    journal_path,
    json_text,
    open_journal,
    output_errors,
    publish,
    write_atomically,
    write_bytes_atomically,
)
from mpn.formats.rle import counts_from_mask, string_from_counts
from mpn.masks import png_from_labels
from mpn.types import Frame, StepResult

_FLUSH_EVERY_FILES = 256
"""Files of frames that are flushed to the disk together: one flush per frame is slow."""


class Writer(Protocol):
    """A writer of the results of a run, frame by frame."""

    def write(self, frame: Frame, result: StepResult) -> None:
        """Write one frame.

        Raises:
            OutputError: If it cannot be written.
        """

    def close(self) -> None:
        """Finish the file and rename it to its final name, once after the last frame.

        Raises:
            OutputError: If this fails.
        """

    def discard(self) -> None:
        """Remove unfinished files; called instead of close or after it failed."""


class _FrameFiles:
    """Flush the files of the frames to the disk, many at once.

    A report that claims completion must not be on the disk before them.

    Args:
        folder: An existing folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unflushed: list[Path] = []

    def _written(self, path: Path) -> None:
        self._unflushed.append(path)
        if len(self._unflushed) >= _FLUSH_EVERY_FILES:
            self.close()

    def close(self) -> None:
        """Flush the files; they are complete."""
        with output_errors(self._folder):
            flush_files(self._unflushed)
        self._unflushed.clear()

    def discard(self) -> None:
        """Do nothing: all files are complete."""


class MaskWriter(_FrameFiles):
    """Write ``<frame name>.png``: one palette PNG per frame.

    Args:
        folder: An existing folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._encoded: tuple[int, bytes] | None = None

    def sha256_of(self, frame: Frame, result: StepResult) -> str:
        """Return the digest of the file that :meth:`write` will write for this frame."""
        return hashlib.sha256(self._png(frame, result)).hexdigest()

    def write(self, frame: Frame, result: StepResult) -> None:
        """See :meth:`Writer.write`."""
        path = self._folder / f"{frame.name}.png"
        write_bytes_atomically(path, self._png(frame, result))
        self._encoded = None
        self._written(path)

    def _png(self, frame: Frame, result: StepResult) -> bytes:
        if self._encoded is None or self._encoded[0] != frame.index:
            self._encoded = frame.index, png_from_labels(result.labels)
        return self._encoded[1]


class BeforeWriter(_FrameFiles):
    """Write ``<frame name>.png``: the mask that a correction replaced.

    Args:
        folder: A folder, created with its first file.
    """

    def write(self, frame: Frame, result: StepResult) -> None:
        """See :meth:`Writer.write`."""
        if result.labels_before is None:
            return
        with output_errors(self._folder):
            self._folder.mkdir(exist_ok=True)
        path = self._folder / f"{frame.name}.png"
        write_bytes_atomically(path, png_from_labels(result.labels_before))
        self._written(path)


class ProbsWriter(_FrameFiles):
    """Write ``<frame name>.npz``: the probabilities of a frame.

    Keys: ``probs`` (K, H, W) float16 and ``object_ids`` (K,).

    Half precision keeps 3 digits of a probability, at half the size.

    Args:
        folder: An existing folder.
    """

    def write(self, frame: Frame, result: StepResult) -> None:
        """See :meth:`Writer.write`."""
        probs = result.probs.astype(np.float16)
        object_ids = np.array(result.object_ids, np.uint8)
        path = self._folder / f"{frame.name}.npz"
        write_atomically(
            path, lambda file: np.savez_compressed(file, probs=probs, object_ids=object_ids)
        )
        self._written(path)


class _JsonLinesWriter:
    """Write one JSON object per frame, each on one line.

    Args:
        path: The file.
        earlier_lines: First lines of the file if a run is resumed.
    """

    def __init__(self, path: Path, earlier_lines: Iterable[str] = ()) -> None:
        self._path = path
        earlier = "".join(line.rstrip("\n") + "\n" for line in earlier_lines)
        with output_errors(path):
            # Unbuffered: a killed run resumes from these lines.
            self._file = open_journal(path, earlier.encode())

    def _write_line(self, value: dict[str, Any]) -> None:
        self._append(json_text(value) + "\n")

    def _append(self, text: str) -> None:
        data = text.encode()
        with output_errors(self._path):
            end = self._file.tell()
            try:
                while data:
                    data = data[self._file.write(data) :]
            except OSError:
                self._file.truncate(end)  # complete lines only, so that close can still succeed
                raise

    def close(self) -> None:
        """See :meth:`Writer.close`; lines before a failed write are kept."""
        with output_errors(self._path):
            self._file.close()
            publish(journal_path(self._path), self._path, durable=True)

    def discard(self) -> None:
        """See :meth:`Writer.discard`."""
        with output_errors(self._path):
            self._file.close()
            journal_path(self._path).unlink(missing_ok=True)


class TracksWriter(_JsonLinesWriter):
    """Write ``tracks.jsonl``: the tracks of each frame.

    Keys: ``frame`` (index in the source), ``name``, ``pts_s``, ``objects`` (see ``Track.as_json``),
    ``mask_sha256`` (of the file) if masks are saved, ``frame_crc32`` if the CPU decodes, and
    ``inputs``.

    A resumed run writes all lines of the earlier run first, so that a kill loses none, and those of
    the frames that it computes after them: the last line of a frame is valid. :meth:`close` puts
    them in order, and removes those of frames that are computed again but were not reached.

    Args:
        path: The file.
        earlier_lines: Lines of the earlier run if one is resumed.
        stale: Frames of these lines that are computed again.
        masks: Writer of the masks; None if they are not saved.
        has_checksums: Whether to write the checksums of the frames. Frames of another decoder
            differ by a few levels.
        inputs_of: Returns the value of ``inputs`` by frame index: a digest of the masks of the user
            that the frame depends on. None: no such key.
    """

    def __init__(
        self,
        path: Path,
        earlier_lines: Iterable[str] = (),
        *,
        stale: Iterable[int] = (),
        masks: MaskWriter | None = None,
        has_checksums: bool = False,
        inputs_of: Callable[[int], str] | None = None,
    ) -> None:
        earlier = tuple(earlier_lines)
        super().__init__(path, earlier)
        self._has_earlier_lines = bool(earlier)
        self._masks, self._has_checksums = masks, has_checksums
        self._inputs_of = inputs_of
        self._stale = set(stale)

    def write(self, frame: Frame, result: StepResult) -> None:
        """See :meth:`Writer.write`."""
        line: dict[str, Any] = {
            "frame": frame.index,
            "name": frame.name,
            "pts_s": round(float(frame.pts_s), 6),
            "objects": [track.as_json() for track in result.tracks],
        }
        if self._masks is not None:
            line["mask_sha256"] = self._masks.sha256_of(frame, result)
        if self._has_checksums:
            line["frame_crc32"] = crc32_of_frame(frame)
        if self._inputs_of is not None:
            line["inputs"] = self._inputs_of(frame.index)
        self._write_line(line)
        self._stale.discard(frame.index)

    def close(self) -> None:
        """See :meth:`Writer.close`."""
        if self._has_earlier_lines:
            # On a full disk the lines stay in this order: each reader sorts them.
            with suppress(OSError):
                self._put_in_order()
        super().close()

    def _put_in_order(self) -> None:
        self._file.seek(0)
        lines = {json.loads(line)["frame"]: line for line in self._file.read().splitlines()}
        ordered = b"".join(lines[k] + b"\n" for k in sorted(lines) if k not in self._stale)
        in_order = open_journal(self._path, ordered)
        self._file.close()
        self._file = in_order


def crc32_of_frame(frame: Frame) -> str:
    """Return the CRC-32 of a frame's pixels as 8 hexadecimal digits.

    It finds a frame that was replaced, in 0.5 ms at 480p; SHA-256 takes 2 to 4 times longer.
    """
    return f"{zlib.crc32(np.ascontiguousarray(frame.rgb).data):08x}"


class RleWriter(_JsonLinesWriter):
    """Write ``rle.jsonl``: the masks of each frame as compressed RLE of COCO.

    Keys: ``frame``, ``name``, ``objects``: a list of ``object_id`` and ``segmentation`` (``size``
    [H, W] and ``counts``, in the format of pycocotools).
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
