"""Run the passes of a schedule, and yield the frames of a video in order.

Backward passes run before the frames that need them and keep their results in a spool. The forward
pass runs frame by frame, so that each frame is complete when it is yielded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from mpn._common.concurrency import Prefetch
from mpn.errors import InputError
from mpn.runtime.media.video import EndsEarlyError
from mpn.runtime.session.blend import blended, from_backward, given, with_given, without_objects
from mpn.runtime.session.schedule import BackwardPass, Direction, Schedule
from mpn.runtime.session.spool import Spool
from mpn.runtime.session.stepping import (
    PipelineLike,
    apply_corrections,
    mask_after_end,
    pairs_for,
    step,
)
from mpn.types import Frame, StepResult, UInt8Array

ReadBackwards = Callable[[int, int], Iterable[Frame]]
"""Yields frames ``end - 1`` to ``first``; see ``VideoSource.backwards``."""


@dataclass(frozen=True)
class FrameUpdate:
    """A computed frame of a run.

    Attributes:
        index: Index of the frame in the video.
        result: Its result. ``probs`` must be read before the next frame; of frames that only a
            backward pass computed it is empty, unless the run saves probabilities.
        is_final: Whether this is the result that the run writes. False in a backward pass: the
            final result comes later, blended with the forward pass if that has the frame as well.
        direction: Direction of the pass; ``"both"`` if the directions are blended.
    """

    index: int
    result: StepResult
    is_final: bool
    direction: Direction


@dataclass(frozen=True)
class BackwardProgress:
    """Progress of a backward pass.

    Attributes:
        source: Frame of its mask.
        done: Frames computed so far.
        count: Number of its frames.
    """

    source: int
    done: int
    count: int


OnBackward = Callable[[FrameUpdate, BackwardProgress], None]


class KeptFrames:
    """Frames of an earlier run that are not computed again; here: none.

    Attributes:
        object_ids: Frame index -> ids of its tracked objects.
        end: Index after the last frame of the video, if that is known and no frame after the kept
            ones exists; otherwise None.
    """

    object_ids: Mapping[int, tuple[int, ...]] = {}
    end: int | None = None

    def labels(self, index: int) -> UInt8Array:
        """Return the labels of a kept frame, (H, W) uint8.

        Raises:
            MaskError: If they cannot be read.
        """
        raise KeyError(index)


@dataclass(frozen=True)
class PassResult:
    """A frame of the video with its final result.

    Attributes:
        frame: The frame.
        result: Its result. ``index`` counts from the first frame of the run.
        direction: Direction that computed it; None: it was kept from an earlier run.
    """

    frame: Frame
    result: StepResult
    direction: Direction | None


@dataclass(frozen=True)
class _ForwardPlan:
    """Work of the forward pass in kept frames.

    Attributes:
        is_needed: Whether the pass computes any frame.
        resume_at: Kept frames whose labels become the state of the pipeline.
        steps: Kept frames that the pipeline steps through.
    """

    is_needed: bool
    resume_at: frozenset[int]
    steps: frozenset[int]


def plan_forward(schedule: Schedule, kept: KeptFrames) -> _ForwardPlan:
    """Plan the forward pass: it continues after kept frames from their labels.

    An empty mask is no state to start from: the pipeline then steps through kept frames from an
    earlier one.
    """
    if not schedule.forward_frames:
        return _ForwardPlan(is_needed=False, resume_at=frozenset(), steps=frozenset())
    first = schedule.forward_frames[0]
    known = sorted(index for index in kept.object_ids if index >= first)
    resume_at: set[int] = set()
    steps: set[int] = set()
    for index in reversed(known):
        following = index + 1
        if following == kept.end:
            continue
        is_state_due = following not in kept.object_ids or following in steps
        if not is_state_due:
            continue
        if index == first or kept.labels(index).any():
            resume_at.add(index)
        else:
            steps.add(index)
    is_needed = bool(resume_at) or first not in kept.object_ids
    last_state = max(resume_at, default=first)
    resume_at |= {k for k in schedule.forward_frames if k in kept.object_ids and k < last_state}
    return _ForwardPlan(is_needed, frozenset(resume_at), frozenset(steps))


class Passes:
    """The passes of one run.

    Args:
        schedule: Which pass computes each frame.
        labels: Frame index -> (H, W) uint8 ids, of each mask of the schedule.
        pipeline: Open; closed by the caller.
        read_backwards: Reads the video backwards; None if it cannot be.
        spool: Keeps results of backward passes; closed by the caller.
        kept: Frames of an earlier run.
        needs_probs: Whether the probabilities of all results are used.
        on_backward: Called after each frame of a backward pass.
        is_live: Whether the source is live.
        wanted: Frames to yield; None for all.
    """

    def __init__(
        self,
        schedule: Schedule,
        labels: Mapping[int, UInt8Array],
        pipeline: PipelineLike,
        *,
        read_backwards: ReadBackwards | None = None,
        spool: Spool | None = None,
        kept: KeptFrames | None = None,
        needs_probs: bool = True,
        on_backward: OnBackward | None = None,
        is_live: bool = False,
        wanted: range | None = None,
    ) -> None:
        self._schedule, self._labels, self._pipeline = schedule, labels, pipeline
        self._read_backwards, self._spool = read_backwards, spool
        self._kept = KeptFrames() if kept is None else kept
        self._needs_probs, self._on_backward = needs_probs, on_backward
        self._is_live, self._wanted = is_live, wanted
        self._plan = plan_forward(schedule, self._kept)
        computed = {
            index
            for one in schedule.backward_passes
            for index in one.frames
            if index not in self._kept.object_ids and (wanted is None or index in wanted)
        }
        self._pending = list(schedule.passes_for(computed))
        if self._pending and (read_backwards is None or spool is None):
            raise no_backward_pass(self._pending[0])
        self._lost: set[int] = set()

    def run(self, frames: Iterable[Frame]) -> Iterator[PassResult]:
        """Yield each frame with its result.

        Args:
            frames: All frames of the run in order, the first one of the schedule first.

        Raises:
            InputError: If the video ends before the frame of a mask.
        """
        end = self._schedule.first
        for frame, following in pairs_for(self._pipeline, frames, is_live=self._is_live):
            end = frame.index + 1
            if self._wanted is not None and frame.index not in self._wanted:
                if self._schedule.is_forward(frame.index):
                    self._forward(frame, following)
                continue
            if frame.index in self._kept.object_ids:
                result, direction = self._kept_result(frame, following), None
            else:
                result, direction = self._result(frame, following)
                self._lost = {t.object_id for t in result.tracks if t.state == "lost"}
            position = frame.index - self._schedule.first
            if result.index != position:
                result = replace(result, index=position)
            yield PassResult(frame, result, direction)
            del result
        late = [index for index in self._schedule.mask_frames if index >= end]
        if late:
            raise mask_after_end(late[0], end)

    def _kept_result(self, frame: Frame, following: Frame | None) -> StepResult:
        labels = self._kept.labels(frame.index)
        if frame.index in self._plan.resume_at:
            self._resume(frame, labels)
        elif frame.index in self._plan.steps:
            self._forward(frame, following)
        ids = self._kept.object_ids[frame.index]
        no_probs = np.zeros((0, *labels.shape), np.float32)
        self._lost = {k for k in ids if not (labels == k).any()}
        return StepResult(frame.index, labels, no_probs, ids, ())

    def _resume(self, frame: Frame, labels: UInt8Array) -> None:
        """Make the labels of a kept frame the state of the pipeline."""
        first = self._schedule.forward_frames[0]
        if frame.index == first:
            self._forward(frame, None)
            return
        known = np.where(np.isin(labels, self._pipeline.object_ids), labels, 0)
        result = self._pipeline.resume_at(frame.rgb, known.astype(np.uint8))
        if frame.index in self._schedule.forward_frames:
            apply_corrections(self._pipeline, self._labels[frame.index], result)

    def _result(self, frame: Frame, following: Frame | None) -> tuple[StepResult, Direction]:
        index = frame.index
        mask = self._schedule.masks.get(index)
        if not self._schedule.is_forward(index):
            if mask is not None:
                return given(index, self._labels[index]), "backward"
            one = self._schedule.backward_pass_of(index)
            if one is None:
                return without_objects(index, _size_of(frame)), "forward"
            self._run_passes_before(index + 1)
            assert self._spool is not None
            return from_backward(index, self._spool.take(index), self._lost), "backward"
        result = self._forward(frame, following)
        if mask is not None:
            if not mask.is_forward:
                return with_given(result, self._labels[index]), "both"
            return result, "forward"
        one = self._schedule.backward_pass_of(index)
        if one is None:
            return result, "forward"
        assert self._spool is not None
        spooled = self._spool.take(index)
        progress = one.progress_at(index)
        return blended(result, spooled, one.object_ids, progress, self._lost), "both"

    def _forward(self, frame: Frame, following: Frame | None) -> StepResult:
        """Run the forward pass for the next frame."""
        index = frame.index
        if index == self._schedule.forward_frames[0]:
            # The pipeline is needed to the end now: it has one state.
            self._run_passes_before(None)
            return self._pipeline.start(frame.rgb, self._labels[index])
        result = step(self._pipeline, frame, following)
        if index in self._schedule.forward_frames:
            result = apply_corrections(self._pipeline, self._labels[index], result)
        return result

    def _run_passes_before(self, end: int | None) -> None:
        """Run the backward passes that begin before a frame; None: all that are left."""
        while self._pending and (end is None or self._pending[0].first < end):
            self._run_backward(self._pending.pop(0))

    def _run_backward(self, one: BackwardPass) -> None:
        assert self._read_backwards is not None
        assert self._spool is not None
        keep = one.object_ids if self._needs_probs or one.anchor is not None else ()
        labels = self._labels[one.source]
        frames = self._read_backwards(one.first, one.source + 1)
        try:
            with Prefetch(frames, name="mpn-backwards") as reader:
                for frame, following in pairs_for(self._pipeline, reader):
                    if frame.index == one.source:
                        result = self._pipeline.start(frame.rgb, labels)
                    else:
                        result = step(self._pipeline, frame, following)
                        self._spool.put(frame.index, result, keep=keep)
                    if self._on_backward is not None:
                        update = FrameUpdate(frame.index, result, False, "backward")
                        done = one.source - frame.index
                        progress = BackwardProgress(one.source, done, len(one.frames))
                        self._on_backward(update, progress)
        except EndsEarlyError as error:
            raise mask_after_end(one.source, error.count) from error


def no_backward_pass(one: BackwardPass) -> InputError:
    """Return the error for frames that can be read forward only."""
    return InputError(
        f"the mask of frame {one.source} is for the frames before it as well, but these frames can "
        "only be read forward: give a path, a video that was opened, or a sequence of arrays, or "
        "set the direction to 'forward'"
    )


def _size_of(frame: Frame) -> tuple[int, int]:
    return frame.rgb.shape[0], frame.rgb.shape[1]
