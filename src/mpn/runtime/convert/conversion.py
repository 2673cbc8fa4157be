"""Convert results of a run: select frames and objects, write, publish."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from mpn._common.files import output_error, publish, publish_folder, restore_folder
from mpn._common.locks import TemporaryFolder
from mpn._common.signals import deferred_stops, stop_signals
from mpn.errors import InputError, OutputError
from mpn.runtime.convert.formats import WriteFormat, format_named
from mpn.runtime.media.video import VideoSource
from mpn.runtime.results import ResultFrame, Results, note_of_incomplete, open_results
from mpn.types import Float32Array, Frame, UInt8Array

CONVERTED_FOLDER = "converted"
"""Folder in the output folder of a run for the files of all formats."""

_TEMPORARY_PREFIX = ".mpn-convert-"


@dataclass(frozen=True)
class Conversion:
    """Input of a writer: results, frames and objects.

    Attributes:
        results: Results of the run.
        frames: The selected frames, in order.
        object_ids: Ids of the selected objects, ascending.
        video: Path of the video if it is not at its place.
        on_frame: Called after each frame.
    """

    results: Results
    frames: tuple[ResultFrame, ...]
    object_ids: tuple[int, ...]
    video: Path | None = None
    on_frame: Callable[[], None] = lambda: None

    @property
    def size_hw(self) -> tuple[int, int]:
        """Size (height, width) of the frames in pixels."""
        return self.results.size_hw

    @property
    def names(self) -> dict[int, str]:
        """Names of the selected objects by id; ``object <id>`` for those without one."""
        return {object_id: self.results.name_of(object_id) for object_id in self.object_ids}

    def labels(self, frame: ResultFrame) -> UInt8Array:
        """Read the mask of a frame, with the selected objects only.

        Returns:
            (H, W) uint8 ids; the other objects are 0.
        """
        labels = self.results.labels(frame.index)
        kept = np.zeros(256, np.uint8)
        kept[list(self.object_ids)] = self.object_ids
        selected: UInt8Array = kept[labels]
        return selected

    def read_labels(self) -> Iterator[tuple[ResultFrame, UInt8Array]]:
        """Yield the selected frames with their masks."""
        for frame in self.frames:
            yield frame, self.labels(frame)
            self.on_frame()

    def mattes(self, frame: ResultFrame) -> dict[int, Float32Array]:
        """Read the alpha of each selected object.

        Returns:
            (H, W) float32 in 0..1 by id: the probabilities if the run saved them, else the mask.
        """
        probs = self.results.probs(frame.index)
        if probs is None:
            labels = self.results.labels(frame.index)
            return {k: (labels == k).astype(np.float32) for k in self.object_ids}
        nothing = np.zeros(self.size_hw, np.float32)
        return {k: probs.get(k, nothing) for k in self.object_ids}

    def alpha(self, frame: ResultFrame) -> Float32Array:
        """Return the alpha of all selected objects together: (H, W) float32 in 0..1."""
        total = np.zeros(self.size_hw, np.float32)
        for matte in self.mattes(frame).values():
            total += matte
        return np.minimum(total, 1.0, out=total)

    @contextmanager
    def open_video(self) -> Iterator[VideoSource]:
        """Open the video of the run at the first selected frame."""
        first, last = self.frames[0].index, self.frames[-1].index
        with self.results.open_video(self.video, start=first, end=last + 1) as video:
            yield video

    def read_frames(self, video: VideoSource) -> Iterator[tuple[ResultFrame, Frame]]:
        """Yield the selected frames with their pixels.

        Args:
            video: Of :meth:`open_video`.
        """
        indices = [frame.index for frame in self.frames]
        for entry, frame in self.results.read_frames(video, indices):
            yield entry, frame
            self.on_frame()


def convert_results(
    out: Path,
    names: Sequence[str],
    *,
    target: Path | None = None,
    object_ids: Sequence[int] | None = None,
    start: int | None = None,
    end: int | None = None,
    video: Path | None = None,
    on_frame: Callable[[], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> list[Path]:
    """Convert the results of a run.

    Args:
        out: See :func:`mpn.runtime.results.open_results`.
        names: Names of formats.
        target: The file or folder to write, which must not exist; with several formats, a folder
            for all of them. None for the folder ``converted`` in the output folder, whose files are
            replaced.
        object_ids: Objects to convert; None for all.
        start: Index of the first frame.
        end: Index of the frame to stop before.
        video: Path of the video of the run if it is not at its place.
        on_frame: Called after each frame of each format.
        on_note: Called with one line if the run is not complete.

    Returns:
        The written files and folders, in the order of ``names``.

    Raises:
        InputError: If a name, the results, an object or the range of frames cannot be used, or the
            video is missing or another one.
        OutputError: If a file exists or cannot be written. Nothing unfinished is left.
    """
    names = list(dict.fromkeys(names))
    writers = [format_named(name).load_writer() for name in names]
    results = open_results(out)
    conversion = Conversion(
        results,
        _selected_frames(results, start, end),
        _selected_objects(results, object_ids),
        video,
        on_frame or (lambda: None),
    )
    if on_note is not None and results.state != "complete":
        on_note(note_of_incomplete(results))
    targets = _targets(results, names, target)
    if target is not None:
        _check_new(targets.values())
    with stop_signals():
        for path, write in zip(targets.values(), writers, strict=True):
            _write(conversion, write, path)
    return list(targets.values())


def _selected_frames(
    results: Results, start: int | None, end: int | None
) -> tuple[ResultFrame, ...]:
    first = results.frames[0].index if start is None else start
    after = results.frames[-1].index + 1 if end is None else end
    frames = tuple(frame for frame in results.frames if first <= frame.index < after)
    if not frames:
        raise InputError(
            f"no frame is in {first}..{after - 1}: the results have frames "
            f"{results.frames[0].index} to {results.frames[-1].index}"
        )
    return frames


def _selected_objects(results: Results, object_ids: Sequence[int] | None) -> tuple[int, ...]:
    if object_ids is None:
        return results.object_ids
    for object_id in object_ids:
        if object_id not in results.object_ids:
            raise InputError(
                f"no object has the id {object_id}: the results have "
                f"{', '.join(map(str, results.object_ids))}"
            )
    return tuple(sorted(set(object_ids)))


def _targets(results: Results, names: Sequence[str], target: Path | None) -> dict[str, Path]:
    if target is not None and len(names) == 1:
        return {names[0]: target}
    folder = results.paths.folder / CONVERTED_FOLDER if target is None else target
    return {name: folder / f"{name}{format_named(name).suffix}" for name in names}


def _check_new(targets: Iterable[Path]) -> None:
    for path in targets:
        is_empty = path.is_dir() and not any(path.iterdir())
        if os.path.lexists(path) and not is_empty:
            raise OutputError(f"{path} exists: remove it, or choose another path with -o")


def _write(conversion: Conversion, write: WriteFormat, path: Path) -> None:
    """Write one format to a private folder next to its target, then rename it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(TemporaryFolder(path.parent, prefix=_TEMPORARY_PREFIX)) as temporary:
            unfinished = temporary.path / path.name
            write(conversion, unfinished)
            with deferred_stops():
                _publish(unfinished, path)
    except av.error.FFmpegError as error:
        raise OutputError(f"cannot encode {path}: {error.strerror or error}") from error
    except OSError as error:
        raise output_error(path, error) from error


def _publish(unfinished: Path, path: Path) -> None:
    if not unfinished.is_dir():
        publish(unfinished, path, durable=True)
        return
    replaced = restore_folder(path)
    old = publish_folder(unfinished, path)
    for folder in (*replaced, *([] if old is None else [old])):
        shutil.rmtree(folder, ignore_errors=True)
