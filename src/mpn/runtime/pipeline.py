"""One frame through all stages. This is the only place that knows their order.

flow, warp, ROI (OSVOS: retrieve the lost), crop, propagation, paste (OSVOS: blend), merge, labels.
The next frame starts from the merged soft probability, not from the labels: the paper propagates
the mask probability.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Self

import cv2

from mpn.closing import Closing
from mpn.engines.load import Backend, EngineSet, default_engine_dir, open_engines
from mpn.errors import EngineError, InputError
from mpn.runtime.ensemble import labels_from_merged, merge
from mpn.runtime.flow import FlowEstimator, flow_estimator_from
from mpn.runtime.ops import cpu
from mpn.runtime.ops.base import Ops
from mpn.runtime.options import PipelineOptions as PipelineOptions
from mpn.runtime.preprocess import resize_prob, resize_rgb, working_size_hw
from mpn.runtime.roi import scaled_boxes, tight_boxes
from mpn.runtime.stages import Stages
from mpn.runtime.state import State, object_ids_from_labels
from mpn.runtime.timing import StageTimer
from mpn.runtime.tracks import tracks_from_labels
from mpn.types import StepResult, UInt8Array, check_labels, check_rgb


class Pipeline(Closing):
    """Segments a video frame by frame, from labels of its first frame.

    Use it in a ``with`` statement, or close it. The arrays of a result stay valid; ``probs`` is
    read-only, since the next frame starts from it. Not for use from two threads at once.

    Args:
        engines: Open engines; closing the pipeline closes them.
        options: How the stages work; options not given follow the manifest's advice.
        flow: Where the flow comes from; default: what the manifest says.
        ops: Array operations; default: the CPU's.

    Raises:
        EngineError: If OSVOS is asked for and not there.
        ManifestError: If the manifest's advice does not fit the options.
    """

    def __init__(
        self,
        engines: EngineSet,
        *,
        options: PipelineOptions | None = None,
        flow: FlowEstimator | None = None,
        ops: Ops = cpu,
    ) -> None:
        manifest = engines.manifest
        self._options = (options or PipelineOptions()).with_defaults(manifest.runtime_defaults)
        if self._options.osvos in ("blend", "retrieve-only") and engines.osvos is None:
            raise EngineError(
                f"option osvos is '{self._options.osvos}', but no OSVOS engine is open: export the "
                "engine directory with one, or use osvos 'auto' or 'off'"
            )
        self._engines = engines
        self._flow = flow_estimator_from(engines) if flow is None else flow
        self._stages = Stages(engines, self._options, ops)
        self._timer = StageTimer()
        self._state: State | None = None
        self._is_closed = False
        self._cv2_threads_before: int | None = None

    @classmethod
    def from_engines(
        cls,
        directory: str | os.PathLike[str] | None = None,
        *,
        backend: Backend = "auto",
        threads: int | None = None,
        options: PipelineOptions | None = None,
    ) -> Self:
        """Open an engine directory and make a pipeline of it.

        Args:
            directory: What mpn-export wrote; None for the one that ships with the package.
            backend: See :func:`mpn.engines.load.open_engines`.
            threads: Threads within a network operator, and of OpenCV. OpenCV's number belongs to
                the whole process: it is set here and set back by :meth:`close`. None leaves both
                alone.
            options: See the class.

        Raises:
            BackendError: If the backend asked for cannot run here.
            EngineError: If an engine cannot be opened, or OSVOS is asked for and not there.
            InputError: If ``threads`` is under 1.
            ManifestError: If the directory or its manifest cannot be used.
            MissingExtraError: If onnxruntime is not installed.
        """
        engines = open_engines(
            default_engine_dir() if directory is None else directory,
            backend=backend,
            threads=threads,
            with_osvos=options is None or options.osvos != "off",
        )
        try:
            pipeline = cls(engines, options=options)
        except BaseException:
            engines.close()
            raise
        if threads is not None:
            pipeline._cv2_threads_before = cv2.getNumThreads()
            cv2.setNumThreads(threads)
        return pipeline

    @property
    def engines(self) -> EngineSet:
        """The engines it runs."""
        return self._engines

    @property
    def options(self) -> PipelineOptions:
        """The options in force, the manifest's advice included."""
        return self._options

    @property
    def backend(self) -> str:
        """What really runs the networks, for example ``"cpu"``."""
        return self._engines.backend

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of the objects, ascending; empty before :meth:`start`."""
        return () if self._state is None else self._state.object_ids

    @property
    def timings(self) -> Mapping[str, float]:
        """Seconds by stage, summed over all frames since :meth:`start`."""
        return self._timer.total_s

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
        with self._timer.stage("input"):
            frame = resize_rgb(rgb, working_hw)
        with self._timer.stage("flow"):
            flow_frame = self._flow.prepare(frame)
        with self._timer.stage("output"):
            state = State.without_objects(frame, flow_frame, input_hw, working_hw)
            state = state.with_given(labels, object_ids)
        return self._finished(state)

    def step(self, rgb: UInt8Array) -> StepResult:
        """Segment the next frame.

        Args:
            rgb: (H, W, 3) uint8 RGB, of the size of the first.

        Raises:
            EngineError: If a network fails or answers with non-finite values. The pipeline then
                stands where it stood before.
            InputError: If the frame has another size, or the pipeline was not started.
        """
        state = self._started()
        self._check_frame(rgb, state)
        self._timer.drop_frame()
        return self._finished(self._next_state(state, rgb))

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
        return self._with_given(state, labels, state.known_ids(labels))

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
        return self._with_given(state, labels, state.new_ids(labels))

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
        self._check_frame(rgb, state)
        check_labels(labels, state.input_hw)
        self._timer.drop_frame()
        with self._timer.stage("input"):
            frame = resize_rgb(rgb, state.working_hw)
        with self._timer.stage("flow"):
            flow_frame = self._flow.prepare(frame)
        with self._timer.stage("output"):
            state = state.with_found(frame, flow_frame, labels)
        return self._finished(state)

    def close(self) -> None:
        """Close the engines; closing twice is allowed."""
        if self._is_closed:
            return
        self._is_closed = True
        self._state = None
        if self._cv2_threads_before is not None:
            cv2.setNumThreads(self._cv2_threads_before)
        self._engines.close()

    def _next_state(self, state: State, rgb: UInt8Array) -> State:
        options, stages, timed = self._options, self._stages, self._timer.stage
        with timed("input"):
            frame = resize_rgb(rgb, state.working_hw)
        with timed("flow"):
            flow_frame = self._flow.prepare(frame)
            flow_to_prev_px = self._flow.between(flow_frame, state.flow_frame)
            flow_from_prev_px = None
            if options.flow_check_px:
                flow_from_prev_px = self._flow.between(state.flow_frame, flow_frame)
        with timed("warp"):
            found = stages.warp(
                frame,
                state.prob,
                state.supports,
                state.first_areas_px,
                flow_to_prev_px,
                flow_from_prev_px,
                state.colour_tables if options.colour_weight else None,
            )
        foreground = None
        if stages.is_osvos_needed(found):
            with timed("osvos"):
                foreground = stages.foreground(frame)
                if found.has_lost:
                    found = stages.retrieve_lost(found, foreground, state.first_areas_px)
        prob, supports, branches = found.prob, found.supports, found.branches
        if options.use_propagation:
            with timed("crop"):
                packed = stages.crop(frame, found)
            with timed("propagation"):
                crops = stages.propagate(packed)
            with timed("paste"):
                prob, supports = stages.paste(crops, found), found.rois
        else:
            supports = tight_boxes(prob, supports)
        if foreground is not None and stages.blends(len(branches)):
            with timed("osvos"):
                prob, branches = stages.ensemble(prob, foreground, found)
                supports = found.rois
        with timed("merge"):
            prob = merge(prob, supports)
        with timed("output"):
            result_prob = resize_prob(prob, state.input_hw)
            result_boxes = scaled_boxes(supports, state.working_hw, state.input_hw)
        return replace(
            state,
            index=state.index + 1,
            frame=frame,
            flow_frame=flow_frame,
            prob=prob,
            supports=supports,
            branches=branches,
            result_prob=result_prob,
            result_boxes=result_boxes,
        )

    def _with_given(
        self, state: State, labels: UInt8Array, given_ids: tuple[int, ...]
    ) -> StepResult:
        self._timer.drop_frame()
        with self._timer.stage("output"):
            state = state.with_given(labels, given_ids)
        return self._finished(state)

    def _finished(self, state: State) -> StepResult:
        """Make the result of a state and go on from it."""
        with self._timer.stage("output"):
            labels = labels_from_merged(state.result_prob, state.object_ids, state.result_boxes)
            tracks = tracks_from_labels(
                labels, state.result_prob, state.object_ids, state.branches, state.result_boxes
            )
        self._state = state
        return StepResult(
            index=state.index,
            labels=labels,
            probs=state.result_prob,
            object_ids=state.object_ids,
            tracks=tracks,
            timings=self._timer.finish_frame(),
        )

    def _check_open(self) -> None:
        if self._is_closed:
            raise InputError("the pipeline is closed: make a new one")

    @staticmethod
    def _check_frame(rgb: UInt8Array, state: State) -> None:
        check_rgb(rgb)
        if rgb.shape[:2] != state.input_hw:
            raise InputError(
                f"the frame is {rgb.shape[1]}x{rgb.shape[0]} but the video began with "
                f"{state.input_hw[1]}x{state.input_hw[0]} (width x height): start anew for "
                "another video"
            )

    def _started(self) -> State:
        self._check_open()
        if self._state is None:
            raise InputError("the pipeline has no first frame yet: call start(rgb, labels) first")
        return self._state
