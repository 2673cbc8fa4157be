"""Write all results of a run in a thread, so that encoding overlaps computing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self

import numpy as np

from mpn._common.concurrency import BackgroundWorker
from mpn._common.files import journal_path, output_errors, save_json, sha256_of_file
from mpn.errors import OutputError
from mpn.runtime.media.overlay import OverlayWriter
from mpn.runtime.media.video import VideoSource
from mpn.runtime.media.writers import (
    BeforeWriter,
    MaskWriter,
    ProbsWriter,
    RleWriter,
    TracksWriter,
    Writer,
)
from mpn.runtime.review.builder import RunFacts
from mpn.runtime.review.writer import ReviewWriter
from mpn.runtime.session.layout import ResultPaths, remove_partials
from mpn.types import Frame, StepResult

SaveKind = Literal["masks", "overlay", "probs", "rle"]
DEFAULT_SAVE: frozenset[SaveKind] = frozenset({"masks", "overlay"})

_QUEUE_DEPTH = 4
"""Frames in the queue: enough to level out key frames, at 25 MB per 4K frame."""


@dataclass(frozen=True)
class _Item:
    frame: Frame
    result: StepResult
    is_earlier: bool


class _OptionalWriter:
    """A writer of a result that a run can do without: an error ends it, not the run.

    Args:
        kind: Kind of the result.
        open_writer: Opens the writer.
    """

    def __init__(self, kind: str, open_writer: Callable[[], Writer]) -> None:
        self.kind = kind
        self.problem = ""
        self._writer: Writer | None = None
        try:
            self._writer = open_writer()
        except OutputError as error:
            self._give_up(error)

    def write(self, frame: Frame, result: StepResult) -> None:
        """See :meth:`Writer.write`; never raises OutputError."""
        if self._writer is not None:
            try:
                self._writer.write(frame, result)
            except OutputError as error:
                self._give_up(error)

    def close(self) -> None:
        """See :meth:`Writer.close`; never raises OutputError."""
        if self._writer is not None:
            try:
                self._writer.close()
            except OutputError as error:
                self._give_up(error)

    def discard(self) -> None:
        """See :meth:`Writer.discard`."""
        if self._writer is not None:
            self._writer.discard()

    def _give_up(self, error: OutputError) -> None:
        self.problem = f"the {self.kind} is left out, the other results are written: {error}"
        with suppress(OSError, OutputError):
            self.discard()
        self._writer = None


class Outputs:
    """Writers of a run and the thread that runs them; create with :meth:`open`.

    An error in the thread is raised by the next :meth:`submit` or by :meth:`finish`. End with
    :meth:`finish`, or with :meth:`salvage` after an error.
    """

    def __init__(
        self,
        paths: ResultPaths,
        writers: list[tuple[Writer, bool]],
        *,
        needs_probs: bool,
        had_journal: bool,
    ) -> None:
        self._paths, self._had_journal = paths, had_journal
        self._optional = [w for w, _ in writers if isinstance(w, _OptionalWriter)]
        self._writers = writers
        self._open = [writer for writer, _ in writers]
        self._needs_probs = needs_probs
        self._written = 0
        self._worker = BackgroundWorker(self._write, depth=_QUEUE_DEPTH)

    @classmethod
    def open(
        cls,
        paths: ResultPaths,
        save: frozenset[SaveKind],
        video: VideoSource,
        *,
        earlier_lines: Sequence[str] = (),
        stale: Collection[int] = (),
        inputs_of: Callable[[int], str] | None = None,
        review: RunFacts | None = None,
    ) -> Self:
        """Create the folders and open the files of a run.

        Args:
            paths: Paths of the run.
            save: Results to write in addition to tracks.jsonl.
            video: Sizes and times of the frames.
            earlier_lines: Lines of tracks.jsonl of the earlier run that is resumed.
            stale: Frames of these lines that are computed again.
            inputs_of: See :class:`mpn.runtime.media.writers.TracksWriter`.
            review: Facts for the page with the frames to check; None: it is not written.

        Raises:
            OutputError: If a file cannot be created; unfinished files are removed.
        """
        had_journal = journal_path(paths.tracks).exists()
        with ExitStack() as opened:
            writers: list[tuple[Writer, bool]] = []

            def add(writer: Writer, *, renders_earlier: bool = False) -> None:
                opened.callback(writer.discard)
                writers.append((writer, renders_earlier))

            with output_errors(paths.out):
                paths.folder.mkdir(parents=True, exist_ok=True)
                for kind, folder in (("masks", paths.masks), ("probs", paths.probs)):
                    if kind in save:
                        folder.mkdir(parents=True, exist_ok=True)
                remove_partials(paths)
            masks = MaskWriter(paths.masks) if "masks" in save else None
            # A line comes before the files it lists, so no file of a killed run is unlisted.
            tracks = TracksWriter(
                paths.tracks,
                earlier_lines,
                stale=stale,
                masks=masks,
                inputs_of=inputs_of,
                has_checksums=video.decoder == "cpu",
            )
            add(tracks)
            add(BeforeWriter(paths.before))
            if review is not None:
                writer = partial(
                    ReviewWriter,
                    paths.review,
                    review,
                    before=paths.before,
                    earlier_lines=earlier_lines,
                )
                add(_OptionalWriter("review", writer), renders_earlier=True)
            if "rle" in save:
                add(RleWriter(paths.rle), renders_earlier=True)
            if "overlay" in save:
                add(_overlay_writer(paths, save, video), renders_earlier=True)
            if "probs" in save:
                add(ProbsWriter(paths.probs))
            if masks is not None:  # last: a mask on disk means that the frame's other files exist
                add(masks)
            opened.pop_all()
        return cls(paths, writers, needs_probs="probs" in save, had_journal=had_journal)

    @property
    def warnings(self) -> list[str]:
        """One line per optional result that could not be written."""
        return [writer.problem for writer in self._optional if writer.problem]

    @property
    def left_out(self) -> frozenset[str]:
        """Kinds of :attr:`warnings`."""
        return frozenset(writer.kind for writer in self._optional if writer.problem)

    def file_digests(self) -> dict[str, str]:
        """Return the SHA-256 of each file that is rendered from all masks, by name.

        Raises:
            OutputError: If one cannot be read.
        """
        files = (self._paths.overlay, self._paths.rle)
        with output_errors(self._paths.folder):
            return {path.name: sha256_of_file(path) for path in files if path.is_file()}

    def submit(self, frame: Frame, result: StepResult, *, is_earlier: bool = False) -> None:
        """Queue one frame; waits while the queue is full.

        Args:
            frame: The next frame.
            result: Its result.
            is_earlier: Whether an earlier run wrote this frame. It then goes only to the files
                that are rebuilt from the masks.

        Raises:
            OutputError: If an earlier frame could not be written.
        """
        if not self._needs_probs:  # the largest arrays of a result do not stay in the queue
            result = replace(result, probs=np.empty((0, *result.labels.shape), np.float32))
        else:  # copy now: a device keeps them only until the next frame
            result.probs  # noqa: B018
        self._worker.submit(_Item(frame, result, is_earlier))

    def finish(self) -> None:
        """Write all queued frames and rename the files to their final names.

        Raises:
            OutputError: If a file cannot be written.
        """
        self._worker.close()
        while self._open:  # the files of the frames first, tracks.jsonl, which lists them, last
            self._open[-1].close()
            del self._open[-1]

    def salvage(self) -> int:
        """Finish as many files as possible after an error, and remove the others.

        Returns:
            Number of complete frames.
        """
        with suppress(Exception):  # the error being handled, or one that follows from it
            self._worker.close()
        for writer in reversed(self._open):
            try:
                writer.close()
            except OutputError:
                with suppress(OSError, OutputError):
                    writer.discard()
        self._open.clear()
        return self._written

    def abandon(self, earlier: Mapping[str, Any]) -> None:
        """Restore the files of the earlier run after an error; the masks did not change.

        Only for a resumed run that has computed no frame.

        Args:
            earlier: Report of the earlier run.
        """
        with suppress(Exception):  # the error being handled, or one that follows from it
            self._worker.close()
        for writer in self._open:
            with suppress(OutputError):
                if isinstance(writer, TracksWriter) and self._had_journal:
                    writer.close()  # the only file that has the lines
                else:
                    writer.discard()
        self._open.clear()
        with suppress(OutputError):
            if earlier["state"] == "running":  # it was killed, and run.partial.json is its report
                self.save_partial_report(earlier)
            else:
                self._remove_partial_report()

    def save_partial_report(self, report: Mapping[str, Any]) -> None:
        """Write run.partial.json, which marks a killed run and allows resuming it."""
        save_json(self._paths.run_partial_json, report)

    def save_report(self, report: dict[str, Any]) -> None:
        """Write run.json at the end of the run."""
        save_json(self._paths.run_json, report, durable=True)
        self._remove_partial_report()

    def _remove_partial_report(self) -> None:
        with output_errors(self._paths.run_partial_json):
            self._paths.run_partial_json.unlink(missing_ok=True)

    def _write(self, item: _Item) -> None:
        for writer, renders_earlier in self._writers:
            if renders_earlier or not item.is_earlier:
                writer.write(item.frame, item.result)
        self._written += 1


def _overlay_writer(paths: ResultPaths, save: frozenset[SaveKind], video: VideoSource) -> Writer:
    def open_overlay() -> Writer:
        return OverlayWriter(
            paths.overlay,
            size_hw=video.size_hw,
            fps=video.fps,
            time_base=video.time_base,
            sample_aspect_ratio=video.sample_aspect_ratio,
        )

    if save == {"overlay"}:  # all that was requested
        return open_overlay()
    return _OptionalWriter("overlay", open_overlay)
