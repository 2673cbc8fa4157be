"""One frame through all stages. This is the only place that knows their order.

flow, warp, ROI (OSVOS: retrieve the lost), crop, propagation, paste (OSVOS: blend), merge, CRF,
labels. The next frame starts from the merged soft probability, not from the labels and not from
what CRF made of it: the paper propagates the mask probability and calls CRF the final stage.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Self

from mpn.engines.load import Backend, EngineSet, default_engine_dir, open_engines
from mpn.errors import EngineError
from mpn.runtime.adapt_options import AdaptOptions
from mpn.runtime.adapt_report import AdaptProgress
from mpn.runtime.adaptation import as_seen_in_training, options_for
from mpn.runtime.crf_refine import refine
from mpn.runtime.ensemble import merge
from mpn.runtime.flow import FlowEstimator, flow_estimator_from
from mpn.runtime.labelled_video import LabelledVideo
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


class Pipeline(LabelledVideo):
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
        adapter: ObjectAdapterLike | None = None,
    ) -> None:
        advice = engines.manifest.runtime_defaults
        options = (options or PipelineOptions()).with_defaults(advice)
        if options.osvos in ("blend", "retrieve-only") and engines.osvos is None:
            raise EngineError(
                f"option osvos is '{options.osvos}', but no OSVOS engine is open: export the "
                "engine directory with one, or use osvos 'auto' or 'off'"
            )
        flow = flow_estimator_from(engines) if flow is None else flow
        super().__init__(options, flow, adapter)
        self._to_close.callback(engines.close)
        self._engines = engines
        self._stages = Stages(engines, options, ops, self._objects)
        self._osvos = OsvosStage(engines, options, self._objects)

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
            pipeline = cls(engines, options=options, adapter=adapter)
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
            rgb: (H, W, 3) uint8 RGB, of the size of the first.

        Raises:
            EngineError: If a network fails or answers with non-finite values. The pipeline then
                stands where it stood before.
            InputError: If the frame has another size, or the pipeline was not started.
        """
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
            events={object_ids[k]: happened for k, happened in found.events.items()},
            denied_ids=frozenset(object_ids[k] for k in found.denied),
            result_prob=result_prob,
            result_boxes=result_boxes,
            soft_prob=soft_prob,
        )
