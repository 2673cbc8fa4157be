"""A video whose objects the user gives: at its start, and in any frame later.

What is here knows frames, labels and the objects' own engines, and nothing of how a frame is
segmented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from mpn._common.closeable import Closeable
from mpn.errors import InputError
from mpn.runtime.ensemble import labels_from_merged
from mpn.runtime.flow import FlowEstimator, FlowFrame
from mpn.runtime.object_engines import (
    EnginesByObject,
    ObjectAdapterLike,
    ObjectEngines,
    adapted_engines,
)
from mpn.runtime.options import PipelineOptions
from mpn.runtime.preprocess import resize_rgb, working_size_hw
from mpn.runtime.state import State, object_ids_from_labels
from mpn.runtime.timing import StageTimer
from mpn.runtime.tracks import tracks_from_labels
from mpn.runtime.trust import trust_from_track
from mpn.types import StepResult, Track, UInt8Array, check_labels, check_rgb


class LabelledVideo(Closeable):
    """The state of a video between two frames, and how the user's labels change it.

    Args:
        options: In force.
        flow: Where the flow comes from.
        adapter: Fine-tunes the networks on each object that is given; closed with this. None: all
            objects use the engines as they are.
    """

    def __init__(
        self, options: PipelineOptions, flow: FlowEstimator, adapter: ObjectAdapterLike | None
    ) -> None:
        self._options = options
        self._flow = flow
        self._adapter = adapter
        self._objects = ObjectEngines()
        self._timer = StageTimer()
        self._state: State | None = None
        self._is_closed = False
        self._to_close = ExitStack()
        if adapter is not None:
            self._to_close.callback(adapter.close)
        self._to_close.callback(self._objects.close)

    @property
    def options(self) -> PipelineOptions:
        """The options in force, the manifest's advice included."""
        return self._options

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of the objects, ascending; empty before :meth:`start`."""
        return () if self._state is None else self._state.object_ids

    @property
    def timings(self) -> Mapping[str, float]:
        """Seconds by stage, summed over all frames since :meth:`start`."""
        return self._timer.total_s

    def adapt_report(self) -> list[dict[str, Any]]:
        """What fine-tuning did, as JSON types: an entry an object and network since start."""
        return [] if self._adapter is None else self._adapter.report_as_json()

    def start(self, rgb: UInt8Array, labels: UInt8Array) -> StepResult:
        """Begin a video, or begin anew.

        Args:
            rgb: (H, W, 3) uint8 RGB, its first frame.
            labels: (H, W) uint8: 0 background, ids of 1..254.

        Returns:
            The labels as they were given; no network runs.

        Raises:
            InputError: If an array has another shape or dtype.
            MaskError: If the labels hold no object, or 255.
        """
        self._check_open()
        check_rgb(rgb)
        input_hw = (rgb.shape[0], rgb.shape[1])
        if min(input_hw) < 1:
            raise InputError(f"the frame has no pixels: {input_hw[1]}x{input_hw[0]}")
        check_labels(labels, input_hw)
        object_ids = object_ids_from_labels(labels)
        self._timer = StageTimer()
        working_hw = working_size_hw(input_hw, self._options.size)
        frame, flow_frame = self._prepared(rgb, working_hw)
        own = self._adapted(frame, labels, object_ids)
        with self._timer.stage("output"):
            state = State.without_objects(frame, flow_frame, input_hw, working_hw)
            state = state.with_given(labels, object_ids)
        self._objects.replace(own)
        return self._finished(state)

    def correct(self, labels: UInt8Array) -> StepResult:
        """Say where objects really are in the current frame.

        The objects in the labels are taken from them as they are. All others stay as they are,
        except that they lose the pixels that the labels give away.

        Args:
            labels: (H, W) uint8 at input size: ids that exist, 0 elsewhere.

        Returns:
            The current frame, corrected; the next :meth:`step` goes on from it.

        Raises:
            InputError: If the labels have another shape, or the pipeline was not started.
            MaskError: If the labels hold no object, or one that does not exist yet.
        """
        state = self._started()
        self._timer.drop_frame()
        return self._finished(self._with_given(state, labels, state.known_ids(labels)))

    def add_objects(self, labels: UInt8Array) -> StepResult:
        """Add objects to the current frame.

        Args:
            labels: (H, W) uint8 at input size: ids that do not exist yet, 0 elsewhere. Pixels of
                other objects under them are theirs from now on.

        Returns:
            The current frame with the new objects; the next :meth:`step` goes on from it.

        Raises:
            InputError: If the labels have another shape, or the pipeline was not started.
            MaskError: If the labels hold no object, or one that exists.
        """
        state = self._started()
        self._timer.drop_frame()
        new_ids = state.new_ids(labels)
        state = self._with_given(state, labels, new_ids)
        seen = labels_from_merged(state.result_prob, state.object_ids, state.result_boxes)
        own = self._adapted(state.frame, seen, new_ids)
        self._objects.add(own)
        return self._finished(state)

    def resume_at(self, rgb: UInt8Array, labels: UInt8Array) -> StepResult:
        """Go on at another frame, from labels that were segmented earlier.

        Unlike :meth:`correct` this learns nothing from the labels: they are what was found, not
        what the user says. An object that they lack is lost.

        Args:
            rgb: (H, W, 3) uint8 RGB, of the size of the first.
            labels: (H, W) uint8 of that frame: ids that exist, or 0.

        Returns:
            That frame; the next :meth:`step` goes on from it.

        Raises:
            InputError: If an array has another shape, or the pipeline was not started.
        """
        state = self._started()
        state.check_frame(rgb)
        check_labels(labels, state.input_hw)
        self._timer.drop_frame()
        frame, flow_frame = self._prepared(rgb, state.working_hw)
        with self._timer.stage("output"):
            state = state.with_found(frame, flow_frame, labels)
        return self._finished(state)

    def close(self) -> None:
        """Close what is open; closing twice is allowed."""
        self._is_closed = True
        self._state = None
        self._to_close.close()

    def _prepared(
        self, rgb: UInt8Array, working_hw: tuple[int, int]
    ) -> tuple[UInt8Array, FlowFrame]:
        """A frame at working size, and as the flow wants it."""
        with self._timer.stage("input"):
            frame = resize_rgb(rgb, working_hw)
        with self._timer.stage("flow"):
            return frame, self._flow.prepare(frame)

    def _adapted(
        self, frame: UInt8Array, labels: UInt8Array, object_ids: tuple[int, ...]
    ) -> EnginesByObject:
        """Engines of their own for some objects; labels are those of all, at input size."""
        if self._adapter is None:
            return {}
        with self._timer.stage("adapt"):
            return adapted_engines(self._adapter, frame, labels, object_ids)

    def _with_given(self, state: State, labels: UInt8Array, given_ids: tuple[int, ...]) -> State:
        with self._timer.stage("output"):
            return state.with_given(labels, given_ids)

    def _finished(self, state: State) -> StepResult:
        """Make the result of a state and go on from it."""
        with self._timer.stage("output"):
            labels = labels_from_merged(state.result_prob, state.object_ids, state.result_boxes)
            tracks = tracks_from_labels(
                labels,
                state.soft_prob,
                state.object_ids,
                state.branches,
                state.result_boxes,
                events=state.events,
                lost_before=state.lost_ids,
            )
        self._keep(self._trusting(state, tracks))
        return StepResult(
            index=state.index,
            labels=labels,
            probs=state.result_prob,
            object_ids=state.object_ids,
            tracks=tracks,
            timings=self._timer.finish_frame(),
        )

    def _trusting(self, state: State, tracks: Sequence[Track]) -> State:
        """The state with what is remembered of each object's track."""
        options = self._options
        trust = {
            track.object_id: trust_from_track(
                track,
                state.trust.get(track.object_id),
                doubt_confidence=options.doubt_confidence,
                doubt_area_factor=options.doubt_area_factor,
                is_denied=track.object_id in state.denied_ids,
            )
            for track in tracks
        }
        return replace(state, trust=trust)

    def _keep(self, state: State) -> None:
        """Go on from a state."""
        self._state = state

    def _check_open(self) -> None:
        if self._is_closed:
            raise InputError("the pipeline is closed: make a new one")

    def _started(self) -> State:
        self._check_open()
        if self._state is None:
            raise InputError("the pipeline has no first frame yet: call start(rgb, labels) first")
        return self._state
