"""Segment a video frame by frame, from labels that the user gives in any frame."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Self

import numpy as np

from mpn._common.array_likes import labels_from, rgb_from
from mpn._common.closeable import Closeable
from mpn._common.concurrency import OneCaller, OpenCvThreads, one_caller, usable_threads
from mpn._common.cores import limited_cores
from mpn._common.memory import return_freed_memory
from mpn._common.options import refuse_old_arguments
from mpn.cuda.api import Stream, is_on_device
from mpn.engines.directory.manifest import load_manifest
from mpn.engines.open import Backend, EngineSet, PlanPolicy, local_engine_dir, open_engines
from mpn.errors import InputError
from mpn.runtime.agreement import agreement_with_scores
from mpn.runtime.backend import FrameBackend, FrameMemory, LazyStepResult, Readback
from mpn.runtime.candidates import Candidates
from mpn.runtime.device.backend import DeviceBackend
from mpn.runtime.finetune.loop import FinetuneProgress
from mpn.runtime.finetune.plan import options_affecting_weights, options_for
from mpn.runtime.frame import Outcome, segment_frame
from mpn.runtime.host.backend import HostBackend
from mpn.runtime.host.flow import FlowEstimator, PreparedFrame, flow_estimator_from
from mpn.runtime.host.memory import (
    empty_memory,
    labels_at_size,
    readback_from_memory,
    with_found_labels,
    with_given_labels,
)
from mpn.runtime.host.preprocess import own_rgb, working_size_hw
from mpn.runtime.host.target import TargetStage
from mpn.runtime.object_engines import (
    EnginesByObject,
    ObjectEngines,
    ObjectFinetunerLike,
    finetuned_engines,
)
from mpn.runtime.one_shot import one_shot_models, takes_score
from mpn.runtime.options import DeviceOptions, ResolvedOptions
from mpn.runtime.options import PipelineOptions as PipelineOptions
from mpn.runtime.osvos_policy import OsvosPolicy
from mpn.runtime.state import VideoState, object_ids_from_labels
from mpn.runtime.timing import StageTimer
from mpn.runtime.tracks import tracks_from_measured, update_track_memory
from mpn.types import ArrayLike, StepResult, Track, UInt8Array, check_labels, check_rgb

OnFinetune = Callable[[FinetuneProgress], None]
EnginesOpener = Callable[..., EngineSet]


class Pipeline(Closeable):
    """Segment a video frame by frame, from labels of its first frame.

    Use it in a ``with`` statement, or close it. The arrays of a result stay valid; ``probs`` is
    read-only, since the next frame starts from it. On a device ``probs`` is copied to the host when
    it is first read, which must happen before the next frame.

    Frames and labels may also be nested lists, objects that NumPy converts, or images of Pillow,
    see :mod:`mpn._common.array_likes`. Arrays that a method gets are copied: the caller may change
    them after it. Frames in device memory are not, see :meth:`step`, nor is that of
    :meth:`prefetch_frame`.

    One thread at a time: a call during another raises InputError, and so does a call in a fork of
    the process that made the pipeline.

    Args:
        engines: Open engines; closing the pipeline closes them.
        options: How the stages work; options not given follow the manifest's advice.
        flow: Estimates the flow on the host; default: the estimator that the manifest names, and
            with a stream the flow engine if there is one.
        finetuner: Fine-tunes the networks on each object that is given; closed with the pipeline.
            None: no fine-tuning.
        stream: CUDA stream of the objects, with engines that take device memory; None: frames are
            segmented on the host.
        device_options: How the device is used.

    Raises:
        EngineError: If OSVOS is requested and missing, or an engine takes host memory only.
        ManifestError: If the manifest's advice does not fit the options.
    """

    @refuse_old_arguments({"adapter": "finetuner"})
    def __init__(
        self,
        engines: EngineSet,
        *,
        options: PipelineOptions | None = None,
        flow: FlowEstimator | None = None,
        finetuner: ObjectFinetunerLike | None = None,
        stream: Stream | None = None,
        device_options: DeviceOptions | None = None,
    ) -> None:
        advice = engines.manifest.runtime_defaults
        options = (options or PipelineOptions()).with_defaults(advice)
        if options.finetune is not None and finetuner is None:
            raise InputError(
                "option finetune needs the engine directory: open it with "
                "Pipeline.from_engines, or give a finetuner"
            )
        models = one_shot_models(options, engines.engines.keys())
        self._caller = OneCaller("the pipeline")
        self._takes_device = stream is not None
        is_flow_of_host = stream is None or flow is not None or engines.flow is None
        self._engines, self._options = engines, options
        if flow is None and is_flow_of_host:
            flow = flow_estimator_from(engines)
        self._flow = flow
        self._finetuner = finetuner
        self._reported = 0
        self._objects = ObjectEngines()
        self._timer = StageTimer()
        self._osvos = OsvosPolicy(
            options, self._objects, models, takes_score=takes_score(engines.propagation.spec)
        )
        self._target: TargetStage | None = None
        if models.target:
            assert engines.features is not None
            self._target = TargetStage(engines.features, options.target)
        self._state: VideoState | None = None
        self._next_rgb: UInt8Array | None = None
        self._is_closed = False
        self._to_close = ExitStack()
        if finetuner is not None:
            self._to_close.callback(finetuner.close)
        self._to_close.callback(self._objects.close)
        self._to_close.callback(engines.close)
        self._backend: FrameBackend[Any]
        if stream is None:
            assert self._flow is not None
            self._backend = HostBackend(
                engines, options, self._objects, self._flow, self._timer, models, self._target
            )
        else:
            self._backend = DeviceBackend(
                stream,
                engines,
                options,
                self._objects,
                self._timer,
                models,
                self._target,
                device_options=device_options,
                host_flow=self._flow,
            )
        self._to_close.callback(self._backend.close)

    @classmethod
    @refuse_old_arguments(
        {"adapt": "options=PipelineOptions(finetune=...)", "on_adapt": "on_finetune"}
    )
    def from_engines(
        cls,
        directory: str | os.PathLike[str] | None = None,
        *,
        backend: Backend = "auto",
        threads: int | None = None,
        options: PipelineOptions | None = None,
        on_finetune: OnFinetune | None = None,
        device_options: DeviceOptions | None = None,
        plans: PlanPolicy | None = None,
        opener: EnginesOpener | None = None,
    ) -> Self:
        """Open an engine directory and make a pipeline of it.

        Args:
            directory: Engine directory: a folder, a zip file or an address, see
                :mod:`mpn.engines.directory.locate`; None for the installed weights.
            backend: See :func:`mpn.engines.open.open_engines`.
            threads: Threads within a network operator, and of OpenCV. OpenCV's number belongs to
                the whole process: it is set here, and set back when the last pipeline with a
                number is closed. At most the usable cores; more are lowered with MpnWarning. None
                leaves both alone.
            options: See the class.
            on_finetune: Called after every step of fine-tuning.
            device_options: How the device of a backend on a GPU is used.
            plans: Whether missing TensorRT plans are built, see ``open_engines``.
            opener: Opens the engines in place of ``open_engines``, with its arguments. The
                pipeline closes them, unless they are not ``owned``.

        Raises:
            BackendError: If the backend cannot run here.
            EngineError: If an engine cannot be opened, OSVOS is requested and missing, or
                fine-tuning is requested and no running network supports it.
            InputError: If ``threads`` is under 1.
            ManifestError: If the directory or its manifest cannot be used.
            MissingExtraError: If onnxruntime is not installed.
        """
        threads = usable_threads(threads)
        path = local_engine_dir(directory)
        manifest = load_manifest(path)
        resolved = (options or PipelineOptions()).with_defaults(manifest.runtime_defaults)
        models = one_shot_models(resolved, manifest.roles.keys())
        with ExitStack() as opened:
            engines = opened.enter_context(
                (opener or open_engines)(
                    path,
                    backend=backend,
                    threads=threads,
                    with_osvos=models.osvos,
                    with_features=models.target,
                    plans=plans,
                    manifest=manifest,
                )
            )
            finetuner = None
            if options is not None and options.finetune is not None:
                finetune = options_for(engines.manifest, resolved, options.finetune)
                options = replace(resolved, finetune=finetune)
                from mpn.runtime.finetune.finetuner import ObjectFinetuner

                finetuner = opened.enter_context(
                    ObjectFinetuner(
                        path,
                        engines,
                        finetune,
                        options_affecting_weights(resolved),
                        threads=threads,
                        on_progress=on_finetune,
                    )
                )
            stream = None
            if not engines.is_on_host:
                from mpn.cuda.device import CudaDevice

                device = CudaDevice(0 if engines.device is None else engines.device.index)
                # Kernels of the objects run before those of other streams.
                stream = device.create_stream(high_priority=True)
            pipeline = cls(
                engines,
                options=options,
                finetuner=finetuner,
                stream=stream,
                device_options=device_options,
            )
            opened.pop_all()
        opencv_threads = threads or limited_cores()
        if opencv_threads is not None:
            pipeline._to_close.enter_context(OpenCvThreads(opencv_threads))
        return pipeline

    @property
    def engines(self) -> EngineSet:
        """The open engines."""
        return self._engines

    @property
    def backend(self) -> str:
        """Name of the backend that runs the networks, for example ``"cpu"``."""
        return self._engines.backend

    @property
    def options(self) -> ResolvedOptions:
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

    @property
    def supports_prefetch(self) -> bool:
        """Whether :meth:`prefetch_frame` makes the next frame faster."""
        return self._backend.supports_prefetch

    def finetune_report(self) -> list[dict[str, Any]]:
        """Return one JSON entry per fine-tuned object and network since the start."""
        if self._finetuner is None:
            return []
        return self._finetuner.report_as_json()[self._reported :]

    def finetune_warnings(self) -> list[str]:
        """Return one line per problem that fine-tuning did not need to solve."""
        return [] if self._finetuner is None else list(self._finetuner.warnings)

    @one_caller
    def start(self, rgb: ArrayLike, labels: ArrayLike) -> StepResult:
        """Start a video, or start again.

        Args:
            rgb: (H, W, 3) uint8 RGB, its first frame. On a device also an array there, see
                :meth:`step`.
            labels: (H, W) uint8: 0 background, ids of 1..254.

        Returns:
            The labels as given; no network runs.

        Raises:
            InputError: If an array has another shape or dtype.
            MaskError: If the labels hold no object, or 255.
        """
        self._check_open()
        self._state = None  # if this fails, step must not continue the earlier video
        labels = labels_from(labels)
        rgb = self._backend.to_host(self._frame_from(rgb))
        check_rgb(rgb)
        input_hw = (rgb.shape[0], rgb.shape[1])
        if min(input_hw) < 1:
            raise InputError(f"the frame has no pixels: {input_hw[1]}x{input_hw[0]}")
        check_labels(labels, input_hw)
        object_ids = object_ids_from_labels(labels)
        self._timer.reset()
        state = VideoState(0, input_hw, working_size_hw(input_hw, self._options.size))
        frame, flow_frame = self._preprocess(rgb, state.working_hw)
        if self._finetuner is not None:  # its report grows from video to video
            self._reported = len(self._finetuner.report_as_json())
        own = self._adapt(frame, labels, object_ids)
        with self._timer.stage("output"):
            memory = empty_memory(frame, flow_frame, input_hw)
            state, memory = with_given_labels(state, memory, labels, object_ids)
        memory = self._with_target(state, memory, object_ids)
        self._objects.replace(own)
        return self._load(state, memory)

    @one_caller
    def step(self, rgb: ArrayLike) -> StepResult:
        """Segment the next frame.

        Args:
            rgb: (H, W, 3) uint8 RGB, of the size of the first. On a device also an array there, of
                any library with DLPack or ``__cuda_array_interface__``. On a device it must not
                change before the next frame.

        Raises:
            EngineError: If a network fails or its output is not finite. The pipeline is then in
                the state that it had before.
            InputError: If the frame has another size, or the pipeline was not started.
        """
        state = self._require_state()
        rgb = self._frame_from(rgb)
        state.check_size(self._backend.frame_shape(rgb))
        self._timer.drop_frame()
        always = self._osvos.every_frame(state.object_ids)
        next_rgb, self._next_rgb = self._next_rgb, None
        index, are_features_due = state.index + 1, self._osvos.are_features_due

        def prefetch() -> None:
            if next_rgb is not None:
                self._backend.prefetch(
                    next_rgb, osvos_for=always, runs_features=are_features_due(index + 1)
                )

        try:
            frame = self._backend.ingest(
                rgb, osvos_for=always, runs_features=are_features_due(index)
            )
            outcome = segment_frame(self._backend, self._osvos, state, frame, self._timer, prefetch)
            self._backend.commit(frame)
        except BaseException:
            self._backend.rollback()
            raise
        return self._commit(_next_state(state, outcome), outcome.readback)

    @one_caller
    def prefetch_frame(self, rgb: ArrayLike) -> None:
        """Announce the frame after the one that :meth:`step` gets next.

        Its copy and flow, its features if they are due, and on a device its OSVOS if that runs in
        every frame, are computed during that frame.
        Results are the same either way.

        Args:
            rgb: As for :meth:`step`, which must get the same array later, unchanged.
        """
        # Only an array is the same object when step gets it.
        can_follow = isinstance(rgb, np.ndarray) or is_on_device(rgb)
        self._next_rgb = rgb if can_follow and self.supports_prefetch else None

    @one_caller
    def correct(self, labels: ArrayLike) -> StepResult:
        """Correct objects of the current frame.

        The objects in the labels are replaced by them. All others stay, except that they lose the
        pixels that the labels give away.

        Args:
            labels: (H, W) uint8 at input size: ids that exist, 0 elsewhere.

        Returns:
            The current frame, corrected; the next :meth:`step` starts from it.

        Raises:
            InputError: If the labels have another shape, or the pipeline was not started.
            MaskError: If the labels hold no object, or one that does not exist yet.
        """
        state = self._require_state()
        self._timer.drop_frame()
        labels = labels_from(labels)
        given_ids = state.known_ids(labels)
        memory = self._backend.snapshot()
        with self._timer.stage("output"):
            state, memory = with_given_labels(state, memory, labels, given_ids)
        return self._load(state, self._with_target(state, memory, given_ids))

    @one_caller
    def add_objects(self, labels: ArrayLike) -> StepResult:
        """Add objects to the current frame.

        Args:
            labels: (H, W) uint8 at input size: ids that do not exist yet, 0 elsewhere. Other
                objects lose these pixels.

        Returns:
            The current frame with the new objects; the next :meth:`step` starts from it.

        Raises:
            InputError: If the labels have another shape, or the pipeline was not started.
            MaskError: If the labels hold no object, or one that exists.
        """
        state = self._require_state()
        self._timer.drop_frame()
        labels = labels_from(labels)
        new_ids = state.new_ids(labels)
        memory = self._backend.snapshot()
        with self._timer.stage("output"):
            state, memory = with_given_labels(state, memory, labels, new_ids)
        memory = self._with_target(state, memory, new_ids)
        all_labels = readback_from_memory(memory, state).labels
        self._objects.add(self._adapt(memory.frame, all_labels, new_ids))
        return self._load(state, memory)

    @one_caller
    def resume_at(self, rgb: ArrayLike, labels: ArrayLike) -> StepResult:
        """Continue at another frame, from labels of an earlier run.

        Unlike :meth:`correct` it takes no colours and areas from the labels, since the user did not
        give them. An object without a pixel is lost.

        Args:
            rgb: (H, W, 3) uint8 RGB, of the size of the first. On a device also an array there, see
                :meth:`step`.
            labels: (H, W) uint8 of that frame: ids that exist, or 0.

        Returns:
            That frame; the next :meth:`step` starts from it.

        Raises:
            InputError: If an array has another shape, or the pipeline was not started.
        """
        state = self._require_state()
        rgb = self._frame_from(rgb)
        state.check_size(self._backend.frame_shape(rgb))
        rgb = self._backend.to_host(rgb)
        labels = labels_from(labels)
        check_labels(labels, state.input_hw)
        self._timer.drop_frame()
        frame, flow_frame = self._preprocess(rgb, state.working_hw)
        before = self._backend.snapshot()
        with self._timer.stage("output"):
            state, memory = with_found_labels(state, frame, flow_frame, labels)
        if self._target is not None and before.targets is not None:
            with self._timer.stage("target"):
                memory = self._target.found(replace(memory, targets=before.targets), state)
        return self._load(state, memory)

    def close(self) -> None:
        """Close engines, finetuner and backend; closing twice is allowed.

        A call of another thread is waited for. In a fork of the process that made the pipeline
        nothing is closed.

        Raises:
            InputError: If this thread is within a call, as in a signal handler.
        """
        if self._caller.is_forked:
            return
        with self._caller.use(waits=True):
            self._is_closed = True
            self._state = None
            self._to_close.close()
            return_freed_memory()

    def _frame_from(self, rgb: Any) -> Any:
        """Return a frame as a NumPy array, or as given if the device takes it."""
        return rgb if self._takes_device and is_on_device(rgb) else rgb_from(rgb)

    def _preprocess(
        self, rgb: UInt8Array, working_hw: tuple[int, int]
    ) -> tuple[UInt8Array, PreparedFrame]:
        """Resize a frame to working size, and prepare it for flow."""
        self._backend.wait()  # a flow estimator is for one thread at a time
        with self._timer.stage("input"):
            frame = own_rgb(rgb, working_hw)
        with self._timer.stage("flow"):
            if self._flow is None:  # the device prepares its own frames
                return frame, PreparedFrame(frame, working_hw)
            return frame, self._flow.prepare(frame)

    def _adapt(
        self, frame: UInt8Array, labels: UInt8Array, object_ids: tuple[int, ...]
    ) -> EnginesByObject:
        """Fine-tune on some objects; ``labels`` hold all, at input size."""
        if self._finetuner is None:
            return {}
        with self._timer.stage("finetune"):
            small = labels_at_size(labels, (frame.shape[0], frame.shape[1]))
            return finetuned_engines(self._finetuner, frame, small, object_ids)

    def _with_target(
        self, state: VideoState, memory: FrameMemory, given_ids: Sequence[int]
    ) -> FrameMemory:
        """Solve the target model of objects that the user gave in the current frame."""
        if self._target is None:
            return memory
        with self._timer.stage("target"):
            return self._target.given(memory, state, given_ids)

    def _load(self, state: VideoState, memory: FrameMemory) -> StepResult:
        """Make arrays of the host the current frame."""
        with self._timer.stage("output"):
            readback = readback_from_memory(memory, state)
        self._backend.load(state, memory)
        self._next_rgb = None
        return self._commit(state, readback)

    def _commit(self, state: VideoState, readback: Readback) -> StepResult:
        """Store the state of a frame, and make its result."""
        agreement = None
        if self._target is not None and readback.scores is not None:
            with self._timer.stage("output"):
                agreement = agreement_with_scores(
                    readback.labels,
                    readback.scores,
                    state.object_ids,
                    size_hw=self._target.size_hw,
                )
        tracks = tracks_from_measured(
            readback.measured,
            state.object_ids,
            state.branches,
            events=state.events,
            lost_before=state.lost_ids,
            agreement=agreement,
        )
        self._state = self._update_memory(state, tracks)
        self._learn(tracks)
        return LazyStepResult(
            index=state.index,
            labels=readback.labels,
            probs=readback.probs,  # type: ignore[arg-type]
            object_ids=state.object_ids,
            tracks=tracks,
            timings=self._timer.finish_frame(),
        )

    def _learn(self, tracks: Sequence[Track]) -> None:
        """Update the target model of the objects with a confident mask, if it is due."""
        state = self._require_state()
        if self._target is None or not self._osvos.is_update_due(state.index):
            return
        least = self._options.target.confidence_min
        weights = {
            track.object_id: 1.0
            for track in tracks
            if track.state == "tracked"
            and track.confidence >= least
            and not state.track_memory[track.object_id].is_uncertain
        }
        self._backend.learn(weights)

    def _update_memory(self, state: VideoState, tracks: tuple[Track, ...]) -> VideoState:
        options = self._options
        track_memory = {
            track.object_id: update_track_memory(
                track,
                state.track_memory.get(track.object_id),
                confidence_min=options.osvos.confidence_min,
                is_rejected=track.object_id in state.rejected_ids,
            )
            for track in tracks
        }
        return replace(state, track_memory=track_memory)

    def _check_open(self) -> None:
        if self._is_closed:
            raise InputError("the pipeline is closed: make a new one")

    def _require_state(self) -> VideoState:
        self._check_open()
        if self._state is None:
            raise InputError("the pipeline has no first frame yet: call start(rgb, labels) first")
        return self._state


def _next_state(state: VideoState, outcome: Outcome) -> VideoState:
    found: Candidates = outcome.candidates
    object_ids = state.object_ids
    return replace(
        state,
        index=state.index + 1,
        bounds=outcome.readback.bounds,
        branches=found.branches,
        events=found.events_by_id(object_ids),
        rejected_ids=frozenset(object_ids[k] for k in found.rejected),
    )
