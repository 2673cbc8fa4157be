"""Run one video: reader, pipeline and writers in a thread each, and run.json.

The input is checked before the output folder is changed. When a run ends (by the last frame, an
error, Ctrl-C or another stop signal), the files of the finished frames are complete, and a resumed
run continues there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from mpn._common.concurrency import Prefetch
from mpn._common.locks import FolderLock, remove_abandoned_folders
from mpn._common.memory import memory_errors
from mpn._common.signals import deferred_stops, stop_signals
from mpn.engines.directory.manifest import load_manifest
from mpn.engines.open import PlanPolicy, local_engine_dir
from mpn.engines.tensorrt.plans.progress import OnPlanProgress
from mpn.errors import InputError, MpnError, OutputError, VideoError
from mpn.runtime.finetune.plan import FinetunePlan, plan_finetuning
from mpn.runtime.media.backwards import BLOCK_BYTES
from mpn.runtime.media.video import VideoSource, open_video
from mpn.runtime.media.video_nvdec import choose_decoder, device_of
from mpn.runtime.options import MIN_SIDE_PX
from mpn.runtime.pipeline import EnginesOpener, OnFinetune, Pipeline
from mpn.runtime.review.builder import RunFacts
from mpn.runtime.review.writer import mask_files_of
from mpn.runtime.session.earlier import (
    EarlierFrames,
    are_files_whole,
    check_listed_files,
    load_earlier_frames,
    load_earlier_run,
    match_video,
)
from mpn.runtime.session.fingerprint import fingerprint, without_masks
from mpn.runtime.session.layout import (
    ResultPaths,
    check_not_input,
    check_out,
    check_writable,
    result_paths,
)
from mpn.runtime.session.outputs import Outputs
from mpn.runtime.session.passes import BackwardProgress, FrameUpdate, Passes
from mpn.runtime.session.replace import (
    check_replaceable,
    remove_frames,
    remove_previous_results,
)
from mpn.runtime.session.request import Masks, Progress, RunRequest
from mpn.runtime.session.resume import (
    Resumed,
    check_end,
    check_resumable,
    check_same_run,
    check_unchanged,
    resume,
)
from mpn.runtime.session.run_report import RunReport
from mpn.runtime.session.schedule import Schedule
from mpn.runtime.session.spool import Spool, remove_abandoned_spools
from mpn.types import Frame, StepResult

_NEED_MB, _NEED_MB_PER_OBJECT, _NEED_MB_PER_MPX, _NEED_MB_OF_FINETUNING = 960, 45, 90, 550
_NEED_MB_PER_MPX_BACKWARD = 60

OnProgress = Callable[[Progress], None]
OnFrame = Callable[[FrameUpdate], None]


def run_video(
    request: RunRequest,
    *,
    on_progress: OnProgress | None = None,
    on_frame: OnFrame | None = None,
    on_finetune: OnFinetune | None = None,
    on_build: OnPlanProgress | None = None,
    opener: EnginesOpener | None = None,
) -> dict[str, Any]:
    """Segment a video and write the results.

    Args:
        request: Inputs, options and outputs.
        on_progress: Called after each frame.
        on_frame: Called with each frame that is computed, in the thread of the run.
        on_finetune: Called after each step of fine-tuning.
        on_build: Called while a plan is built.
        opener: See :meth:`mpn.runtime.pipeline.Pipeline.from_engines`.

    Returns:
        Contents of run.json.

    Raises:
        InputError: If the video, a mask or an option cannot be used. A truncated video is
            segmented up to its last readable frame first.
        EngineError: If the engines cannot be opened or fail.
        OutOfMemoryError: If memory ran out.
        OutputError: If the results cannot be written.
        KeyboardInterrupt: On SIGINT (Ctrl-C), SIGTERM or SIGHUP, after the files of the finished
            frames are complete. Handlers of the caller are not changed.
    """
    with stop_signals(), ExitStack() as stack:
        engine_dir = local_engine_dir(request.engine_dir)
        manifest = load_manifest(engine_dir)
        video = stack.enter_context(
            open_video(request.video, start=request.start, end=request.end, fps=request.fps)
        )
        if min(video.size_hw) < MIN_SIDE_PX:
            raise VideoError(
                f"{video.address} is {video.size_hw[1]}x{video.size_hw[0]} (width x height): "
                f"a video must be at least {MIN_SIDE_PX}x{MIN_SIDE_PX} to be segmented"
            )
        out = request.out or Path(f"{video.name}-mpn")
        paths = result_paths(out, video)
        check_out(out)
        check_not_input(paths, video)
        masks = Masks.load(request, video)
        stack.enter_context(FolderLock(paths.folder))
        remove_abandoned_folders()
        remove_abandoned_spools(paths.folder)
        check_writable(paths, request.save, video)
        earlier, frames = load_earlier_run(paths), load_earlier_frames(paths)
        if request.resume and earlier is not None:
            check_resumable(earlier)
            if request.direction is None and not video.is_live:
                masks = masks.with_directions_of(earlier, keep=request.directions)
        check_replaceable(
            paths,
            earlier,
            frames,
            video,
            request.save,
            keep=request.mask_paths,
            resume=request.resume,
        )
        plan = plan_finetuning(
            manifest,
            request.options,
            must_finetune=request.must_finetune,
            is_live=video.is_live,
        )
        stack.enter_context(memory_errors(*_memory_need(video, masks, plan)))
        pipeline = stack.enter_context(
            Pipeline.from_engines(
                engine_dir,
                backend=request.backend,
                threads=request.threads,
                options=replace(request.options, finetune=plan.options),
                on_finetune=on_finetune,
                plans=PlanPolicy(build=request.build, on_progress=on_build),
                opener=opener,
            )
        )
        video = stack.enter_context(
            choose_decoder(
                video, request.decode, device_of(pipeline), copy_to_host="overlay" in request.save
            )
        )
        spool = stack.enter_context(Spool(paths.folder))
        run = _Run(request, video, masks, pipeline, paths, plan, earlier, frames)
        return run.run(spool, on_progress or (lambda _: None), on_frame or (lambda _: None))


def _memory_need(video: VideoSource, masks: Masks, plan: FinetunePlan) -> tuple[str, int]:
    """Return the name of a run, and its address space in MB.

    An estimate from runs of the engines of the package at 64x64 to 3840x2160 pixels with 1 to 8
    objects; a run that saves only masks needs less.
    """
    height, width = video.size_hw
    objects = len({id_ for mask in masks.given.values() for id_ in mask.object_ids})
    need_mb = _NEED_MB + _NEED_MB_PER_OBJECT * objects + _NEED_MB_PER_MPX * height * width / 1e6
    passes = Schedule(video.first_frame.index, masks.given).backward_passes
    if passes:  # a block of frames, and the buffers of two decoders
        block_bytes = max(len(one.frames) for one in passes) * height * width * 3 / 2
        need_mb += min(block_bytes, BLOCK_BYTES) / 1e6
        need_mb += _NEED_MB_PER_MPX_BACKWARD * height * width / 1e6
    if plan.options is not None:
        need_mb += _NEED_MB_OF_FINETUNING
    return f"this run ({objects} objects, {width}x{height})", round(need_mb)


class _Run:
    """State of one call of :func:`run_video`."""

    def __init__(
        self,
        request: RunRequest,
        video: VideoSource,
        masks: Masks,
        pipeline: Pipeline,
        paths: ResultPaths,
        plan: FinetunePlan,
        earlier: dict[str, Any] | None,
        frames: EarlierFrames,
    ) -> None:
        self._request, self._video, self._masks = request, video, masks
        self._pipeline, self._paths, self._plan = pipeline, paths, plan
        self._earlier, self._frames = earlier, frames
        self._first_frame = video.first_frame
        self._is_finished = False
        self._schedule = Schedule(self._first_frame.index, masks.given)
        self._fingerprint = fingerprint(video, masks, pipeline, plan.options)
        self._report = RunReport(request, video, masks, pipeline, paths, plan, self._fingerprint)

    def run(self, spool: Spool, on_progress: OnProgress, on_frame: OnFrame) -> dict[str, Any]:
        earlier, resumed = self._earlier, None
        if self._request.resume and earlier is not None:
            resumed = self._resumed(earlier)
            if resumed.is_done:
                return {**earlier, "out": self._report.folders}  # it may have been moved
            self._report.resumed_at = resumed.resumed_at

        def on_backward(update: FrameUpdate, progress: BackwardProgress) -> None:
            self._report.add_backward(update.result)
            on_frame(update)
            on_progress(self._progress(progress))

        passes = Passes(
            self._schedule,
            self._masks.labels,
            self._pipeline,
            read_backwards=self._video.backwards,
            spool=spool,
            kept=None if resumed is None else resumed.kept,
            needs_probs="probs" in self._request.save,
            on_backward=on_backward,
            is_live=self._video.is_live,
        )
        with Prefetch(self._video) as reader:
            results = passes.run(self._timed(reader))
            # The pipeline starts on the first frame here: if that raises, no file was written.
            first = next(results)
            if resumed is None:
                remove_previous_results(
                    self._paths, earlier, self._frames, keep=self._request.mask_paths
                )
            outputs = Outputs.open(
                self._paths,
                self._request.save,
                self._video,
                earlier_lines=() if resumed is None else resumed.lines,
                stale=() if resumed is None else resumed.stale,
                inputs_of=self._schedule.inputs_of,
                review=self._review_facts() if self._request.review else None,
            )
            outputs.save_partial_report(self._report.as_json("running"))
            try:
                for one in chain([first], results):
                    if one.direction is not None:
                        self._prepare(resumed)
                    self._write(outputs, one.frame, one.result, one.direction is None)
                    if one.direction is not None:
                        on_frame(FrameUpdate(one.frame.index, one.result, True, one.direction))
                    on_progress(self._progress())
                with deferred_stops():
                    return self._finished(outputs)
            except BaseException as error:
                if self._is_finished:  # a stop that came while the files were finished
                    raise
                with deferred_stops():
                    if earlier is not None and resumed is not None and not self._report.computed:
                        outputs.abandon(earlier)
                        raise
                    raised = self._salvaged(outputs, error)
                if raised is error:
                    raise
                raise raised from error

    def _finished(self, outputs: Outputs) -> dict[str, Any]:
        outputs.finish()
        report = self._report.as_json("complete", outputs=outputs)
        outputs.save_report(report)
        self._is_finished = True
        return report

    def _resumed(self, earlier: Mapping[str, Any]) -> Resumed:
        """Return what is kept of the earlier run.

        Raises:
            InputError: If the inputs are not those of the earlier run.
            OutputError: If its files cannot be continued.
        """
        paths, frames, first, request = self._paths, self._frames, self._first_frame, self._request
        check_same_run(without_masks(earlier["fingerprint"]), without_masks(self._fingerprint))
        check = check_listed_files(
            paths,
            frames,
            self._video.size_hw,
            earlier["saved"],
            given=request.mask_paths,
        )
        check_unchanged(check)
        check_end(frames, request.end)
        match = None
        if not self._video.is_live:
            # A second reader: the frames of a source can be read once.
            with (
                open_video(
                    request.video, start=request.start, end=request.end, fps=request.fps
                ) as again,
                Prefetch(again) as reader,
            ):
                match = match_video(reader, frames, first.index)
        resumed = resume(
            self._schedule, earlier, frames, check, match, paths=paths, size_hw=self._video.size_hw
        )
        if resumed.kept.object_ids and "probs" in request.save - set(earlier["saved"]):
            raise InputError(
                "cannot resume with probs saved: the earlier run did not save them, and they "
                "cannot be made from its masks; run again without --resume"
            )
        is_done = (
            resumed.is_done
            and set(request.save) <= set(earlier["saved"])
            and are_files_whole(paths, earlier)
        )
        return replace(resumed, is_done=is_done)

    def _prepare(self, resumed: Resumed | None) -> None:
        """Remove the files of frames that are computed again, before the first one."""
        if resumed is not None and not self._report.computed:
            remove_frames(self._paths, self._frames, resumed.stale, keep=self._request.mask_paths)

    def _timed(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Count the time spent waiting for the reader as a stage."""
        while True:
            before_s = time.perf_counter()
            frame = next(frames, None)
            if frame is None:
                return
            self._report.statistics.add({"wait for frame": time.perf_counter() - before_s})
            yield frame
            del frame

    def _write(self, outputs: Outputs, frame: Frame, result: StepResult, is_earlier: bool) -> None:
        before_s = time.perf_counter()
        outputs.submit(self._video.host_frame(frame), result, is_earlier=is_earlier)
        waited_s = time.perf_counter() - before_s
        self._report.add(result, is_earlier=is_earlier, waited_s=waited_s)

    def _progress(self, backward: BackwardProgress | None = None) -> Progress:
        report = self._report
        return Progress(report.done, report.computed, self._video.frame_count_hint, backward)

    def _review_facts(self) -> RunFacts:
        video, masks = self._video, self._masks.as_json()
        return RunFacts(
            title=video.name,
            video=video.address,
            out=self._paths.out,
            size_hw=video.size_hw,
            masks=mask_files_of({"masks": masks}),
            object_names=self._masks.names,
        )

    def _salvaged(self, outputs: Outputs, error: BaseException) -> BaseException:
        """Finish the files, and return the error to raise with the frames done."""
        frames = outputs.salvage()
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        message = f"{error}" or type(error).__name__
        with suppress(OutputError):  # then run.partial.json stays, which --resume reads as well
            outputs.save_report(self._report.as_json(state, error=message, outputs=outputs))
        if isinstance(error, MpnError) and frames:
            folder = self._paths.masks if "masks" in self._request.save else self._paths.folder
            return type(error)(f"{message}; the {frames} frames done are in {folder}")
        return error
