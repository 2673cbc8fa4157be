"""Run a video whose frames come one by one, with the results of a run on a file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mpn._common.closeable import Closeable
from mpn._common.locks import FolderLock
from mpn.engines.directory.locate import local_engine_dir
from mpn.engines.directory.manifest import load_manifest
from mpn.errors import InputError, OutputError, VideoError
from mpn.runtime.finetune.plan import plan_finetuning
from mpn.runtime.media.video import VideoSource
from mpn.runtime.options import MIN_SIDE_PX
from mpn.runtime.pipeline import EnginesOpener, Pipeline
from mpn.runtime.session.earlier import load_earlier_run
from mpn.runtime.session.fingerprint import fingerprint
from mpn.runtime.session.layout import check_out, check_writable, result_paths
from mpn.runtime.session.outputs import Outputs
from mpn.runtime.session.request import Masks, RunRequest, given_mask
from mpn.runtime.session.run_report import RunReport
from mpn.runtime.session.schedule import GivenMask, Schedule
from mpn.runtime.session.stepping import apply_corrections
from mpn.runtime.state import object_ids_from_labels
from mpn.types import Frame, StepResult, UInt8Array, check_labels


@dataclass(frozen=True)
class LiveMask:
    """A mask of the user.

    Attributes:
        labels: (H, W) uint8 ids, 0 elsewhere.
        file: Its file, for run.json.
        names: Object id -> name.
    """

    labels: UInt8Array
    file: Path
    names: Mapping[int, str] = field(default_factory=dict)


class PushedFrames(VideoSource):
    """Frames that the caller gives one by one; only the first one is kept.

    Args:
        name: Name of the video.
        first: The first frame.
        fps: Frame rate.
    """

    def __init__(self, name: str, first: Frame, fps: Fraction) -> None:
        super().__init__(
            name=name,
            address="frames given one by one",
            first_frame=first,
            fps=fps,
            time_base=1 / fps,
            frame_count_hint=None,
            end_index=None,
            is_live=True,
        )

    def _frames_after_first(self) -> Iterator[Frame]:
        return iter(())

    def _release(self) -> None:
        pass


class LiveRun(Closeable):
    """Run with a pipeline on frames that come one by one, and write its results.

    The masks are those of ``mpn run`` on a folder of these frames, with the direction ``forward``
    for all masks, if there is one mask per frame. The latest frame is written when the next one
    comes, or at the end: until then it can be corrected.

    One thread at a time. End it with :meth:`finish`.

    Args:
        request: ``out`` must be a folder without results; ``video`` is the name of the video.
            Range, direction, resuming, review and fine-tuning are not supported.
        rgb: (H, W, 3) uint8, the first frame.
        mask: Its mask.
        fps: Frame rate of ``tracks.jsonl`` and the overlay.
        opener: See :meth:`mpn.runtime.pipeline.Pipeline.from_engines`.

    Attributes:
        latest: Result of the latest frame.

    Raises:
        InputError: If the frame or the mask cannot be used.
        EngineError: If the engines cannot be opened or fail.
        OutputError: If the results cannot be written.
    """

    def __init__(
        self,
        request: RunRequest,
        rgb: UInt8Array,
        mask: LiveMask,
        *,
        fps: Fraction,
        opener: EnginesOpener | None = None,
    ) -> None:
        assert request.out is not None
        self._fps, self._saves_probs = fps, "probs" in request.save
        frame = self._frame_of(0, rgb)
        size_hw = (rgb.shape[0], rgb.shape[1])
        if min(size_hw) < MIN_SIDE_PX:
            raise VideoError(
                f"the frames are {size_hw[1]}x{size_hw[0]} (width x height): they must be at least "
                f"{MIN_SIDE_PX}x{MIN_SIDE_PX}"
            )
        check_labels(mask.labels, size_hw)
        self._video = PushedFrames(request.video, frame, fps)
        self._fingerprint: dict[str, Any] = {"masks": {}}
        self._given: dict[int, GivenMask] = {}
        self._files: dict[int, Path] = {}
        self._names: dict[int, str] = {}
        self._labels: dict[int, UInt8Array] = {}
        self._note(0, mask)
        masks = Masks(self._labels, self._given, self._files, names=self._names)
        paths = result_paths(request.out, self._video)
        check_out(request.out)
        manifest = load_manifest(local_engine_dir(request.engine_dir))
        plan = plan_finetuning(manifest, request.options, must_finetune=False, is_live=True)
        with ExitStack() as opened:
            opened.enter_context(FolderLock(paths.folder))
            check_writable(paths, request.save, self._video)
            if load_earlier_run(paths) is not None:
                raise OutputError(f"{request.out} has the results of an earlier run")
            pipeline = opened.enter_context(
                Pipeline.from_engines(
                    request.engine_dir,
                    backend=request.backend,
                    threads=request.threads,
                    options=replace(request.options, finetune=plan.options),
                    opener=opener,
                )
            )
            self._fingerprint = fingerprint(self._video, masks, pipeline, plan.options)
            self._report = RunReport(
                request, self._video, masks, pipeline, paths, plan, self._fingerprint
            )
            self._pipeline = pipeline
            self.latest = pipeline.start(rgb, mask.labels)
            self._frame = frame
            self._outputs = Outputs.open(
                paths, request.save, self._video, inputs_of=self._inputs_of
            )
            self._outputs.save_partial_report(self._report.as_json("running"))
            self._opened = opened.pop_all()
        self._is_finished = False

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of the objects."""
        return self._pipeline.object_ids

    def step(self, rgb: UInt8Array, mask: LiveMask | None = None) -> StepResult:
        """Segment the next frame, and write the one before.

        Args:
            rgb: (H, W, 3) uint8, of the size of the first frame.
            mask: Corrects the known objects of this frame, and adds the others.

        Raises:
            InputError: If the frame or the mask has another size; nothing has changed then.
            EngineError: If a network fails.
            OutputError: If an earlier frame could not be written.
        """
        if rgb.shape[:2] != self._video.size_hw:
            height, width = self._video.size_hw
            raise VideoError(
                f"the frame is {rgb.shape[1]}x{rgb.shape[0]} but the first is {width}x{height} "
                "(width x height): all frames must have one size"
            )
        if mask is not None:
            check_labels(mask.labels, self._video.size_hw)
            object_ids_from_labels(mask.labels)
        frame = self._frame_of(self._frame.index + 1, rgb)
        result = self._pipeline.step(rgb)
        if self._saves_probs:  # a device keeps them only until the next frame
            result.probs  # noqa: B018
        self._write_latest()
        self._frame, self.latest = frame, result
        if mask is not None:
            self.correct(mask)
        return self.latest

    def correct(self, mask: LiveMask) -> StepResult:
        """Correct objects of the latest frame, and add those that are new.

        Raises:
            InputError: If the mask has another size.
            MaskError: If it holds no object; nothing has changed then.
        """
        check_labels(mask.labels, self._video.size_hw)
        object_ids_from_labels(mask.labels)
        before = self.latest
        if self._frame.index == 0:
            merged = _merged(before.labels, mask.labels)
            self.latest = self._pipeline.start(self._frame.rgb, merged)
        else:
            after = apply_corrections(self._pipeline, mask.labels, before)
            if before.labels_before is not None:  # the second correction of this frame
                after = replace(after, labels_before=before.labels_before)
            self.latest = after
        self._note(self._frame.index, mask)
        return self.latest

    def finish(self, state: str = "complete", error: str | None = None) -> dict[str, Any]:
        """Write the latest frame, and finish all files.

        Args:
            state: ``"complete"``, ``"interrupted"`` or ``"failed"``.
            error: Message of the error that ended the run.

        Returns:
            Contents of run.json.

        Raises:
            OutputError: If they cannot be written. As many frames as possible are.
        """
        if self._is_finished:
            raise InputError("the run is finished")
        self._is_finished = True
        try:
            self._write_latest()
            self._outputs.finish()
            report = self._report.as_json(state, error=error, outputs=self._outputs)
            self._outputs.save_report(report)
            return report
        except BaseException as raised:
            self._outputs.salvage()
            report = self._report.as_json("failed", error=str(raised), outputs=self._outputs)
            with suppress(OutputError):
                self._outputs.save_report(report)
            raise
        finally:
            self._opened.close()

    def close(self) -> None:
        """Finish the run as interrupted, if it is not finished."""
        if not self._is_finished:
            self.finish("interrupted")

    def _write_latest(self) -> None:
        before_s = time.perf_counter()
        self._outputs.submit(self._frame, self.latest)
        waited_s = time.perf_counter() - before_s
        self._report.add(self.latest, is_earlier=False, waited_s=waited_s)

    def _frame_of(self, index: int, rgb: UInt8Array) -> Frame:
        return Frame(index=index, rgb=rgb, pts_s=index / self._fps, name=f"{index:05d}")

    def _inputs_of(self, index: int) -> str:
        return Schedule(0, dict(self._given)).inputs_of(index)

    def _note(self, index: int, mask: LiveMask) -> None:
        """Note a mask for run.json."""
        labels = _merged(self._labels.get(index), mask.labels)
        self._given[index] = given_mask(labels, "forward")
        self._labels.clear()  # of frames before, which are written
        self._labels[index] = labels
        self._files[index] = mask.file
        self._names |= mask.names
        self._fingerprint["masks"][str(index)] = self._given[index].sha256


def _merged(before: UInt8Array | None, given: UInt8Array) -> UInt8Array:
    """Return a mask after a correction: its objects have the given pixels only."""
    if before is None:
        return given
    kept = np.where(np.isin(before, np.unique(given)), 0, before)
    merged: UInt8Array = np.where(given != 0, given, kept).astype(np.uint8)
    return merged
