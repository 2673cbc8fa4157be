"""Write the review of a run from pictures taken while its frames pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpn._common.files import write_bytes_atomically
from mpn._common.records import json_from_text, record_from_json
from mpn.errors import MaskError, OutputError
from mpn.masks import load_labels
from mpn.runtime.review.builder import FrameInfo, ReviewBuilder, RunFacts
from mpn.runtime.review.page import html_of_review, is_review
from mpn.types import MAX_OBJECT_ID, Frame, StepResult, Track, UInt8Array


@dataclass(frozen=True)
class _Line:
    """Part of a line of tracks.jsonl."""

    frame: int
    objects: tuple[Track, ...]


class ReviewWriter:
    """Write ``review.html``: see :mod:`mpn.runtime.review.page`.

    Args:
        path: The file; one that is no review is not replaced.
        facts: Facts about the run.
        before: Folder of the masks that corrections replaced.
        earlier_lines: Lines of tracks.jsonl of an earlier run, for frames without tracks.

    Raises:
        OutputError: If ``path`` is a file of the user.
    """

    def __init__(
        self, path: Path, facts: RunFacts, *, before: Path, earlier_lines: Sequence[str] = ()
    ) -> None:
        check_replaceable_review(path)
        self._path, self._facts, self._before = path, facts, before
        self._builder = ReviewBuilder()
        self._earlier: dict[int, tuple[Track, ...]] = {}
        for text in earlier_lines:
            line = record_from_json(json_from_text(text, OutputError), _Line, OutputError)
            self._earlier[line.frame] = line.objects

    def write(self, frame: Frame, result: StepResult) -> None:
        """See :meth:`mpn.runtime.media.writers.Writer.write`."""
        if not isinstance(frame.rgb, np.ndarray):
            raise OutputError("the frames are on the GPU; write it afterwards with mpn review")
        tracks, before = result.tracks, result.labels_before
        if not tracks:
            tracks = self._earlier.get(frame.index, ())
            before = self._labels_before(frame, result.labels.shape)
        info = FrameInfo(frame.index, frame.name, float(frame.pts_s), tracks)
        try:
            self._builder.add(info, result.labels, frame.rgb, before)
        except Exception as error:  # whatever it is, the run can do without the page
            raise OutputError(
                f"a picture of frame {frame.index} cannot be made: {error}"
            ) from error

    def close(self) -> None:
        """See :meth:`mpn.runtime.media.writers.Writer.close`."""
        try:
            page = html_of_review(self._builder.finish(), self._facts)
        except Exception as error:
            raise OutputError(f"the page cannot be made: {error}") from error
        check_replaceable_review(self._path)
        write_bytes_atomically(self._path, page)

    def discard(self) -> None:
        """See :meth:`mpn.runtime.media.writers.Writer.discard`; nothing was written."""

    def _labels_before(self, frame: Frame, size_hw: tuple[int, ...]) -> UInt8Array | None:
        return load_labels_before(self._before / f"{frame.name}.png", (size_hw[0], size_hw[1]))


def check_replaceable_review(path: Path) -> None:
    """Raise OutputError if a file that is no review has this path."""
    if path.exists() and not is_review(path):
        raise OutputError(
            f"{path} is not a review that mpn-runtime wrote: move it away, or choose another file"
        )


def load_labels_before(path: Path, size_hw: tuple[int, int]) -> UInt8Array | None:
    """Read the mask that a correction replaced; None if it is not readable."""
    if not path.is_file():
        return None
    try:
        return load_labels(path, size_hw=size_hw, max_objects=MAX_OBJECT_ID, allow_empty=True)
    except MaskError:
        return None


def mask_files_of(report: Mapping[str, Any]) -> dict[int, str]:
    """Return the files of the user's masks by frame, as run.json lists them."""
    found: dict[int, str] = {}
    for entry in report.get("masks") or ():
        try:
            found[int(entry["frame"])] = str(entry["file"])
        except (KeyError, TypeError, ValueError):  # another version
            continue
    return found
