"""One frame through all stages. This is the only place that knows their order.

flow, warp, ROI (OSVOS: retrieve the lost), crop, propagation, paste (OSVOS: blend), merge, CRF,
labels. The next frame starts from the merged soft probability, not from the labels and not from
what CRF made of it: the paper propagates the mask probability and calls CRF the final stage.

The order stands here twice: for arrays of the host, and for a device, where the stages are started
one behind the other and the host waits once, for the labels. What the host alone can decide, where
to look for an object that is lost, it decides between two waits, in the frames that need it.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from mpn._common.closeable import Closeable
from mpn._common.concurrency import OpenCvThreads
from mpn.cuda.api import Stream, is_on_device
from mpn.engines.open import Backend, EngineSet, PlanPolicy, default_engine_dir, open_engines
from mpn.errors import EngineError, InputError
from mpn.runtime.candidates import (
    Candidates,
    all_there,
    blended_where,
    events_by_id,
    found_from_told,
)
from mpn.runtime.crf.refine import refine
from mpn.runtime.device.backend import DeviceStages
from mpn.runtime.device.images import boxes_from_rows
from mpn.runtime.device.ingest import SeenFrame
from mpn.runtime.device.readback import DeviceStepResult, Told
from mpn.runtime.finetune.loop import AdaptProgress
from mpn.runtime.finetune.options import AdaptOptions, as_seen_in_training, options_for
from mpn.runtime.host import ops as cpu
from mpn.runtime.host.backend import Stages
from mpn.runtime.host.flow import FlowEstimator, FlowFrame, flow_estimator_from
from mpn.runtime.host.merge import labels_from_merged, merge
from mpn.runtime.host.ops import Ops
from mpn.runtime.host.osvos import OsvosStage
from mpn.runtime.host.preprocess import resize_prob, resize_rgb, working_size_hw
from mpn.runtime.host.roi import scaled_boxes, tight_boxes
from mpn.runtime.object_engines import (
    EnginesByObject,
    ObjectAdapterLike,
    ObjectEngines,
    adapted_engines,
)
from mpn.runtime.options import DeviceOptions, PipelineOptions
from mpn.runtime.options import PipelineOptions as PipelineOptions
from mpn.runtime.state import State, object_ids_from_labels
from mpn.runtime.timing import StageTimer
from mpn.runtime.tracks import tracks_from_labels, tracks_from_measured, trust_from_track
from mpn.types import Roi, StepResult, Track, UInt8Array, check_labels, check_rgb


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


class DeviceVideo(LabelledVideo):
    """A :class:`LabelledVideo` that may be worked on by a device.

    Where it is, the state of the host is complete after what the user gives, and lags behind after
    a step until it is needed: its arrays are copied from the device then.

    Args:
        options: In force.
        flow: Where the flow comes from.
        adapter: See :class:`LabelledVideo`.
    """

    def __init__(
        self, options: PipelineOptions, flow: FlowEstimator, adapter: ObjectAdapterLike | None
    ) -> None:
        super().__init__(options, flow, adapter)
        self._device: DeviceStages | None = None
        self._given: Any = None
        self._expected: Any = None
        self._is_host_behind = False

    @property
    def looks_ahead(self) -> bool:
        """Whether :meth:`expect` makes the next frame faster."""
        return self._device is not None

    def expect(self, rgb: UInt8Array) -> None:
        """Say which frame will come after the one that :meth:`step` is given next.

        On a device its copy, its flow and, where it runs in every frame, its OSVOS are started
        beside that frame; on the host nothing happens. Results are the same either way.

        Args:
            rgb: As for :meth:`step`, which must be given this very array later, unchanged.
        """
        self._expected = rgb if self._device is not None else None

    def start(self, rgb: UInt8Array, labels: UInt8Array) -> StepResult:
        """See :meth:`LabelledVideo.start`; on a device also with a frame that lies there."""
        return super().start(self._on_host(rgb), labels)

    def resume_at(self, rgb: UInt8Array, labels: UInt8Array) -> StepResult:
        """See :meth:`LabelledVideo.resume_at`; on a device also with a frame that lies there."""
        return super().resume_at(self._on_host(rgb), labels)

    @abstractmethod
    def _frame_on_device(
        self, on: DeviceStages, state: State, rgb: Any
    ) -> tuple[SeenFrame, Told, Candidates]:
        """Carry the objects into a frame, up to its labels."""

    def _work_on(self, device: DeviceStages) -> None:
        """Work on a device from now on; it is closed with this."""
        self._device = device
        self._to_close.callback(device.close)

    def _taken_expected(self) -> Any:
        """The frame that will come next, once."""
        expected, self._expected = self._expected, None
        return expected

    def _step_on_device(self, on: DeviceStages, rgb: UInt8Array) -> StepResult:
        self._check_open()
        state = self._state if self._state is not None else self._started()
        if is_on_device(rgb):
            state.check_size(on.shape_of(rgb))
        else:
            state.check_frame(rgb)
        self._timer.drop_frame()
        on.overwriting()
        try:
            frame, told, found = self._frame_on_device(on, state, rgb)
        except BaseException:
            on.recover()
            raise
        tracks = tracks_from_measured(
            told.measured(),
            state.object_ids,
            found.branches,
            events=(events := events_by_id(found, state.object_ids)),
            lost_before=state.lost_ids,
        )
        on.commit(frame)
        object_ids = state.object_ids
        next_state = replace(
            state,
            index=state.index + 1,
            supports=boxes_from_rows(told.figures["merged_supports"]),
            branches=found.branches,
            events=events,
            denied_ids=frozenset(object_ids[k] for k in found.denied),
            flow_frame=state.flow_frame if frame.flow_frame is None else frame.flow_frame,
        )
        # The arrays of this state are those of an earlier frame: see _started.
        self._state, self._is_host_behind = self._trusting(next_state, tracks), True
        self._given = rgb
        for stage, seconds in on.timings(frame).items():
            self._timer.add(stage, seconds)
        return DeviceStepResult(
            index=next_state.index,
            labels=told.labels,
            probs=on.probs_loader(),  # type: ignore[arg-type]
            object_ids=object_ids,
            tracks=tracks,
            timings=self._timer.finish_frame(),
        )

    def _frame_of_host(self, rgb: Any, working_hw: tuple[int, int]) -> UInt8Array:
        """A frame at working size on the host, wherever it was given."""
        return resize_rgb(self._on_host(rgb), working_hw)

    def _on_host(self, rgb: Any) -> UInt8Array:
        """A frame on the host, wherever it was given."""
        if self._device is not None and is_on_device(rgb):
            return self._device.on_host(rgb)
        frame: UInt8Array = rgb
        return frame

    def _keep(self, state: State) -> None:
        super()._keep(state)
        self._given, self._expected, self._is_host_behind = None, None, False
        if self._device is not None:
            self._device.begin(state)

    def _started(self) -> State:
        """The state, complete on the host: what the device has made of it meanwhile included."""
        state = super()._started()
        if self._device is None or not self._is_host_behind:
            return state
        prob, soft_prob, result_prob = self._device.state_arrays()
        frame = self._frame_of_host(self._given, state.working_hw)
        everywhere = Roi(0, 0, state.input_hw[1], state.input_hw[0])
        state = replace(
            state,
            frame=frame,
            prob=prob,
            soft_prob=soft_prob,
            result_prob=result_prob,
            result_boxes=(everywhere,) * len(state.object_ids),
        )
        self._state, self._is_host_behind = state, False
        return state


class FlowOfDevice:
    """Stands for the flow that the device estimates by itself."""

    def prepare(self, rgb: UInt8Array) -> FlowFrame:
        """Nothing: the device prepares its own frames."""
        return FlowFrame(rgb, (rgb.shape[0], rgb.shape[1]))

    def between(self, frame0: FlowFrame, frame1: FlowFrame) -> Any:
        """Nobody asks.

        Raises:
            EngineError: Always.
        """
        raise EngineError("the flow of a frame on a device is not estimated on the host")

    both_ways = between


OnAdapt = Callable[[AdaptProgress], None]


class Pipeline(DeviceVideo):
    """Segments a video frame by frame, from labels of its first frame.

    Use it in a ``with`` statement, or close it. The arrays of a result stay valid; ``probs`` is
    read-only, since the next frame starts from it. Not for use from two threads at once.

    Args:
        engines: Open engines; closing the pipeline closes them.
        options: How the stages work; options not given follow the manifest's advice.
        flow: Where the flow comes from; default: what the manifest says.
        ops: Array operations; default: the CPU's.
        adapter: Fine-tunes the networks on each object that is given; closed with the pipeline.
            None: all objects use the engines as they are.
        stream: Where frames are worked on, with engines that take device memory; None: on the host.
            ``ops`` has no say then, and ``flow`` is asked only where no engine gives it.
        device_options: How the device is used.

    Raises:
        EngineError: If OSVOS is asked for and not there, or an engine takes host memory only.
        ManifestError: If the manifest's advice does not fit the options.
    """

    def __init__(
        self,
        engines: EngineSet,
        *,
        options: PipelineOptions | None = None,
        flow: FlowEstimator | None = None,
        ops: Ops = cpu,
        adapter: ObjectAdapterLike | None = None,
        stream: Stream | None = None,
        device_options: DeviceOptions | None = None,
    ) -> None:
        advice = engines.manifest.runtime_defaults
        options = (options or PipelineOptions()).with_defaults(advice)
        if options.osvos in ("blend", "retrieve-only") and engines.osvos is None:
            raise EngineError(
                f"option osvos is '{options.osvos}', but no OSVOS engine is open: export the "
                "engine directory with one, or use osvos 'auto' or 'off'"
            )
        is_flow_of_host = flow is not None or engines.flow is None
        flow = flow_estimator_from(engines) if flow is None else flow
        super().__init__(
            options, flow if stream is None or is_flow_of_host else FlowOfDevice(), adapter
        )
        self._to_close.callback(engines.close)
        self._engines = engines
        self._stages = Stages(engines, options, ops, self._objects)
        self._osvos = OsvosStage(engines, options, self._objects)
        if stream is not None:
            self._work_on(
                DeviceStages(
                    stream,
                    engines,
                    options,
                    self._objects,
                    device_options=device_options,
                    host_flow=flow if is_flow_of_host else None,
                )
            )

    @classmethod
    def from_engines(
        cls,
        directory: str | os.PathLike[str] | None = None,
        *,
        backend: Backend = "auto",
        threads: int | None = None,
        options: PipelineOptions | None = None,
        adapt: AdaptOptions | None = None,
        on_adapt: OnAdapt | None = None,
        device_options: DeviceOptions | None = None,
        plans: PlanPolicy | None = None,
    ) -> Self:
        """Open an engine directory and make a pipeline of it.

        Args:
            directory: What mpn-export wrote; None for the one that ships with the package.
            backend: See :func:`mpn.engines.open.open_engines`.
            threads: Threads within a network operator, and of OpenCV. OpenCV's number belongs to
                the whole process: it is set here and set back by :meth:`close`. None leaves both
                alone.
            options: See the class.
            adapt: How the networks are fine-tuned on each object that is given; None: not at all.
            on_adapt: Called after every step of fine-tuning.
            device_options: How the device of a backend other than ``"cpu"`` is used.
            plans: How plans of TensorRT are come by, see ``open_engines``.

        Raises:
            BackendError: If the backend asked for cannot run here.
            EngineError: If an engine cannot be opened, OSVOS is asked for and not there, or nothing
                that runs can be fine-tuned although it is asked for.
            InputError: If ``threads`` is under 1.
            ManifestError: If the directory or its manifest cannot be used.
            MissingExtraError: If onnxruntime is not installed.
        """
        path = Path(default_engine_dir() if directory is None else directory)
        with ExitStack() as opened:
            engines = opened.enter_context(
                open_engines(
                    path,
                    backend=backend,
                    threads=threads,
                    with_osvos=options is None or options.osvos != "off",
                    plans=plans,
                )
            )
            adapter = None
            if adapt is not None:
                advice = engines.manifest.runtime_defaults
                options = (options or PipelineOptions()).with_defaults(advice)
                from mpn.runtime.finetune.adapter import ObjectAdapter

                adapter = opened.enter_context(
                    ObjectAdapter(
                        path,
                        engines,
                        options_for(engines.manifest, options, adapt),
                        as_seen_in_training(options),
                        threads=threads,
                        on_progress=on_adapt,
                    )
                )
            stream = None
            if engines.backend != "cpu":
                from mpn.cuda.device import CudaDevice

                device = CudaDevice(0 if engines.device is None else engines.device.index)
                # The work of the objects goes first, flow and OSVOS wait for it.
                stream = device.create_stream(high_priority=True)
            pipeline = cls(
                engines,
                options=options,
                adapter=adapter,
                stream=stream,
                device_options=device_options,
            )
            opened.pop_all()
        if threads is not None:
            pipeline._to_close.enter_context(OpenCvThreads(threads))
        return pipeline

    @property
    def engines(self) -> EngineSet:
        """The engines it runs."""
        return self._engines

    @property
    def backend(self) -> str:
        """What really runs the networks, for example ``"cpu"``."""
        return self._engines.backend

    def step(self, rgb: UInt8Array) -> StepResult:
        """Segment the next frame.

        Args:
            rgb: (H, W, 3) uint8 RGB, of the size of the first. On a device also an array there, of
                any library with DLPack or ``__cuda_array_interface__``. On a device it must not
                change before the next frame.

        Raises:
            EngineError: If a network fails or answers with non-finite values. The pipeline then
                stands where it stood before.
            InputError: If the frame has another size, or the pipeline was not started.
        """
        if self._device is not None:
            return self._step_on_device(self._device, rgb)
        state = self._started()
        state.check_frame(rgb)
        self._timer.drop_frame()
        return self._finished(self._next_state(state, rgb))

    def _next_state(self, state: State, rgb: UInt8Array) -> State:
        options, stages, timed = self._options, self._stages, self._timer.stage
        index, object_ids = state.index + 1, state.object_ids
        frame, flow_frame = self._prepared(rgb, state.working_hw)
        with timed("flow"):
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
        wanted, planes = self._osvos.wanted(index, found, object_ids, state.trust), None
        if any(wanted):
            with timed("osvos"):
                planes = self._osvos.planes(frame, object_ids, wanted)
                found = self._osvos.retrieve_lost(frame, found, planes, state)
        prob, supports = found.prob, found.supports
        if options.use_propagation:
            with timed("crop"):
                packed = stages.crop(frame, found)
            with timed("propagation"):
                crops = stages.propagate(packed, found.present(object_ids))
            with timed("paste"):
                prob, supports = stages.paste(crops, found), found.rois
        else:
            supports = tight_boxes(prob, supports)
        if planes is not None and self._osvos.blends(object_ids):
            with timed("osvos"):
                prob, found = self._osvos.ensemble(prob, planes, found)
                supports = found.rois
        with timed("merge"):
            prob = merge(prob, supports)
        refined, refined_supports = prob, supports
        if options.crf:
            with timed("crf"):
                refined, refined_supports = refine(
                    prob, frame, boxes=supports, options=options.crf_options
                )
        with timed("output"):
            soft_prob = result_prob = resize_prob(prob, state.input_hw)
            if options.crf:
                result_prob = resize_prob(refined, state.input_hw)
            result_boxes = scaled_boxes(refined_supports, state.working_hw, state.input_hw)
            if options.crf_feedback:
                prob, supports = refined, refined_supports
        return replace(
            state,
            index=index,
            frame=frame,
            flow_frame=flow_frame,
            prob=prob,
            supports=supports,
            branches=found.branches,
            events=events_by_id(found, object_ids),
            denied_ids=frozenset(object_ids[k] for k in found.denied),
            result_prob=result_prob,
            result_boxes=result_boxes,
            soft_prob=soft_prob,
        )

    def _frame_on_device(
        self, on: DeviceStages, state: State, rgb: UInt8Array
    ) -> tuple[SeenFrame, Told, Candidates]:
        osvos, object_ids, index = self._osvos, state.object_ids, state.index + 1
        is_always = osvos.seeks_lost and osvos.is_in_every_frame(object_ids)
        always = object_ids if is_always else ()
        frame = on.sight.frame_for(rgb, osvos_for=always)
        expected = self._taken_expected()
        # Where nothing is expected to be lost, OSVOS is asked on the side for those that want it.
        wanted = osvos.wanted(index, all_there(state), object_ids, state.trust)
        is_sought = osvos.seeks_lost
        has_lost = is_sought and any(support is None for support in state.supports)
        if not has_lost and any(wanted) and not frame.has_osvos_for(wanted):
            on.sight.see_osvos(frame, object_ids, wanted)
        on.wait_for_flow(frame)
        if not has_lost:
            self._start_frame(on, frame, object_ids, planes_for=wanted)
            if expected is not None:
                on.sight.look_ahead(expected, osvos_for=always)
            told = on.told()
            found = found_from_told(told, wanted if osvos.blends(object_ids) else ())
            is_lost = is_sought and any(roi is None for roi in told.rois)
            if not is_lost and not self._is_anyone_mistaken(told, wanted, object_ids):
                return frame, told, found
        return frame, *self._decide_on_host(on, frame, state, rgb)

    def _start_frame(
        self,
        on: DeviceStages,
        frame: SeenFrame,
        object_ids: tuple[int, ...],
        *,
        planes_for: tuple[bool, ...],
    ) -> None:
        """All stages, one behind the other; nothing here waits."""
        options, plane_of = self._options, frame.plane_of
        front = [("warp", lambda: on.warp(frame))]
        if options.use_propagation:
            front.append(("", lambda: on.propagate(frame)))
        back: list[tuple[str, Callable[[], None]]] = []
        has_planes = any(planes_for)
        if has_planes and self._osvos.may_move_any(object_ids):
            back.append(("osvos", lambda: on.agree(frame)))
        is_blended = has_planes and self._osvos.blends(object_ids)
        back.append(
            (
                "merge",
                lambda: on.merge(frame, has_crops=options.use_propagation, is_blended=is_blended),
            )
        )
        if options.crf:
            back.append(("crf", lambda: on.refine(frame)))
        back.append(("output", on.output))
        on.segment("until propagation", frame, front)
        if has_planes:
            on.wait_for_osvos(frame)
        on.segment("from merge on", frame, back, key=(plane_of, has_planes, is_blended))

    def _decide_on_host(
        self, on: DeviceStages, frame: SeenFrame, state: State, rgb: UInt8Array
    ) -> tuple[Told, Candidates]:
        """The frame again, by the rules of the host: see OsvosStage.retrieve_lost."""
        options, osvos, object_ids = self._options, self._osvos, state.object_ids
        with on.timed("warp"):
            on.warp(frame)
        found = on.found()
        on.sight.wait()  # engines run on the host's arrays now, in no stream's order
        wanted = osvos.wanted(state.index + 1, found, object_ids, state.trust)
        planes: tuple[Any, ...] = (None,) * len(object_ids)
        if any(wanted):
            with self._timer.stage("osvos"):
                small = self._frame_of_host(rgb, state.working_hw)
                planes = osvos.planes(small, object_ids, wanted)
                found = osvos.retrieve_lost(small, found, planes, state)
        on.replace_found(found, planes)
        if options.use_propagation:
            on.propagate(frame)
        is_blended = any(wanted) and osvos.blends(object_ids)
        with on.timed("merge"):
            on.merge_replaced(has_crops=options.use_propagation, is_blended=is_blended)
        if options.crf:
            with on.timed("crf"):
                on.refine(frame)
        with on.timed("output"):
            on.output()
        told = on.told()
        return told, blended_where(found, wanted) if is_blended else found

    def _is_anyone_mistaken(
        self, told: Told, wanted: tuple[bool, ...], object_ids: tuple[int, ...]
    ) -> bool:
        """Whether the host must look at a tracked object: see OsvosStage.retrieve_lost."""
        if not any(wanted) or not self._osvos.may_move_any(object_ids):
            return False
        return any(
            is_wanted and self._osvos.is_mistaken_by(object_id, agreement)
            for object_id, is_wanted, agreement in zip(
                object_ids, wanted, told.agreement(), strict=True
            )
        )
