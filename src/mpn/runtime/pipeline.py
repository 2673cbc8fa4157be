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
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from mpn.cuda.api import Stream
from mpn.engines.load import Backend, EngineSet, PlanPolicy, default_engine_dir, open_engines
from mpn.errors import EngineError
from mpn.runtime.adapt_options import AdaptOptions
from mpn.runtime.adapt_report import AdaptProgress
from mpn.runtime.adaptation import as_seen_in_training, options_for
from mpn.runtime.candidates import Candidates
from mpn.runtime.crf_refine import refine
from mpn.runtime.device.found import all_there, blended_where, events_by_id, found_from_told
from mpn.runtime.device.options import DeviceOptions
from mpn.runtime.device.sight import SeenFrame
from mpn.runtime.device.stages import DeviceStages
from mpn.runtime.device.told import Told
from mpn.runtime.device.video import DeviceVideo, FlowOfDevice
from mpn.runtime.ensemble import merge
from mpn.runtime.flow import FlowEstimator, flow_estimator_from
from mpn.runtime.object_engines import ObjectAdapterLike
from mpn.runtime.opencv_threads import OpenCvThreads
from mpn.runtime.ops import cpu
from mpn.runtime.ops.base import Ops
from mpn.runtime.options import PipelineOptions as PipelineOptions
from mpn.runtime.osvos_stage import OsvosStage
from mpn.runtime.preprocess import resize_prob
from mpn.runtime.roi import scaled_boxes, tight_boxes
from mpn.runtime.stages import Stages
from mpn.runtime.state import State
from mpn.types import StepResult, UInt8Array

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
            backend: See :func:`mpn.engines.load.open_engines`.
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
                from mpn.runtime.adapt import ObjectAdapter

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
