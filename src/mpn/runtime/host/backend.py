"""Implement the frame backend in NumPy and OpenCV, with arrays of the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from mpn._common.closeable import Closeable
from mpn.engines.open import EngineSet
from mpn.runtime.backend import FrameMemory, OsvosMaps, QueuedBackend, Readback
from mpn.runtime.candidates import Candidates
from mpn.runtime.host.crf import refine
from mpn.runtime.host.flow import FlowEstimator
from mpn.runtime.host.ingest import HostFrame, HostIngest
from mpn.runtime.host.merge import labels_from_merged, merge
from mpn.runtime.host.osvos import OsvosRunner, blend_osvos
from mpn.runtime.host.preprocess import resize_prob
from mpn.runtime.host.roi import scaled_boxes, tight_boxes
from mpn.runtime.host.stages import Stages
from mpn.runtime.host.target import (
    TargetStage,
    crop_scores,
    exclusive_scores,
    grown_rois,
    warp_scores,
)
from mpn.runtime.object_engines import ObjectEngines
from mpn.runtime.one_shot import OneShotModels, takes_score
from mpn.runtime.options import ResolvedOptions
from mpn.runtime.state import VideoState
from mpn.runtime.target import NO_SCORE, Targets, target_scores
from mpn.runtime.timing import StageTimer
from mpn.runtime.tracks import measure_objects
from mpn.types import Float32Array, Roi, UInt8Array, check_rgb

Boxes = tuple[Roi | None, ...]


@dataclass
class _Work:
    """Results of the stages of a frame that is not committed yet.

    Attributes:
        frame: The frame.
        candidates: Of the warp, or as re-detected.
        maps: OSVOS of the frame; None: it does not run.
        features: (C, gh, gw) float32; None: the features engine does not run.
        scores: (K, gh, gw) float32 of the target model; None: it is not in use.
        exclusive: The same, lowered at the expected places of the other objects.
        pasted: (K, h, w) float32, output of the propagation network.
        merged: (K, h, w) float32, and per object a box outside which it is exactly 0.
        refined: The same after CRF; ``merged`` without CRF.
        memory: Arrays of the frame once it is committed.
        readback: Results of the frame.
    """

    frame: HostFrame
    candidates: Candidates | None = None
    maps: OsvosMaps | None = None
    features: Float32Array | None = None
    scores: Float32Array | None = None
    exclusive: Float32Array | None = None
    pasted: Float32Array | None = None
    merged: tuple[Float32Array, Boxes] | None = None
    refined: tuple[Float32Array, Boxes] | None = None
    memory: FrameMemory | None = None
    readback: Readback | None = None


class HostBackend(Closeable):
    """Implement :class:`mpn.runtime.backend.FrameBackend` on the host.

    Args:
        engines: Open engines.
        options: The pipeline's, in force.
        objects: The objects' own engines.
        flow: Estimates the flow.
        timer: Takes the times of the stages.
        models: OSVOS, the target model, or both.
        target: The target model; None if it is not in use.
    """

    queue: QueuedBackend[HostFrame] | None = None
    supports_prefetch = True

    def __init__(
        self,
        engines: EngineSet,
        options: ResolvedOptions,
        objects: ObjectEngines,
        flow: FlowEstimator,
        timer: StageTimer,
        models: OneShotModels,
        target: TargetStage | None = None,
    ) -> None:
        self._options, self._timer = options, timer
        self._models, self._target = models, target
        self._takes_score = takes_score(engines.propagation.spec)
        self._roi_size = engines.manifest.roi_size
        self._ingest = HostIngest(flow, target, timer, checks_flow=bool(options.flow_check_px))
        self._stages = Stages(engines, options, objects)
        self._osvos = OsvosRunner(engines, options, objects)
        self._state: VideoState | None = None
        self._memory: FrameMemory | None = None
        self._bounds: Boxes = ()
        self._work: _Work | None = None
        self._learner = ThreadPoolExecutor(1, thread_name_prefix="mpn-target")
        self._learning: Future[Targets] | None = None

    def frame_shape(self, rgb: UInt8Array) -> tuple[int, ...]:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        check_rgb(rgb)
        return rgb.shape

    def to_host(self, rgb: UInt8Array) -> UInt8Array:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        return rgb

    def load(self, state: VideoState, memory: FrameMemory) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        self._work = self._learning = None
        self._state, self._memory, self._bounds = state, memory, state.bounds

    def wait(self) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        self._ingest.wait()

    def snapshot(self) -> FrameMemory:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        self._ingest.wait()
        self._finish_learning()
        return self._current

    def ingest(
        self, rgb: UInt8Array, *, osvos_for: Sequence[bool] = (), runs_features: bool = False
    ) -> HostFrame:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        before = self._current
        frame = self._ingest.take(rgb, before.frame, before.flow_frame)
        self._work = _Work(frame)
        return frame

    def prefetch(
        self, rgb: UInt8Array, *, osvos_for: Sequence[bool] = (), runs_features: bool = False
    ) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        if rgb.dtype != np.uint8 or rgb.shape != (*self._loaded.input_hw, 3):
            return  # its own step raises
        self._ingest.prefetch(
            rgb, self._current_work.frame, self._current.frame, runs_features=runs_features
        )

    def warp(self, frame: HostFrame) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        state = self._loaded
        with self._timer.stage("warp"):
            self._current_work.candidates = self._stages.warp(
                frame.frame,
                self._current.prob,
                self._bounds,
                state.first_areas_px,
                frame.flow_to_prev_px,
                frame.flow_from_prev_px,
                state.colour_tables if self._options.colour_weight else None,
            )

    def candidates(self) -> Candidates:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        found = self._current_work.candidates
        assert found is not None
        return found

    def score(self, frame: HostFrame, *, runs_features: bool) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        target, before, work = self._target, self._current, self._current_work
        if target is None or before.targets is None or before.scores is None:
            return
        if runs_features:
            work.features = self._ingest.features(frame)
            self._finish_learning()
            targets, object_ids = self._current.targets, self._loaded.object_ids
            assert targets is not None
            with self._timer.stage("target"):
                work.scores = target_scores(targets, work.features, object_ids)
        else:
            with self._timer.stage("target"):
                work.scores = warp_scores(before.scores, frame.flow_to_prev_px, target.size_hw)

    def osvos_maps(self, frame: HostFrame, osvos_for: Sequence[bool]) -> OsvosMaps:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        scores, target = self._current_work.scores, self._target
        if not self._models.osvos and target is not None and scores is not None:
            return target.maps(frame.frame, scores, osvos_for)
        return self._osvos.maps(frame.frame, self._loaded.object_ids, osvos_for)

    def set_candidates(self, candidates: Candidates, maps: OsvosMaps | None) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        work = self._current_work
        work.candidates, work.maps = candidates, maps

    def grow_rois(self, frame: HostFrame) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        target, work, growth = self._target, self._current_work, self._options.target.roi_growth
        if target is None or work.scores is None:
            return
        with self._timer.stage("target"):
            found = self.candidates()
            work.exclusive = exclusive_scores(work.scores, found.prob, target.size_hw)
            if not growth:
                return
            rois = grown_rois(
                work.exclusive,
                found.rois,
                frame_hw=(frame.frame.shape[0], frame.frame.shape[1]),
                size_hw=target.size_hw,
                growth=growth,
            )
            work.candidates = replace(found, rois=rois)

    def propagate(self, frame: HostFrame) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        found, timed = self.candidates(), self._timer.stage
        with timed("crop"):
            packed = self._stages.crop(frame.frame, found, self._score_crops(frame, found))
        with timed("propagation"):
            crops = self._stages.propagate(packed, found.present(self._loaded.object_ids))
        with timed("paste"):
            self._current_work.pasted = self._stages.paste(crops, found)

    def merge(self, frame: HostFrame, *, use_crops: bool, blends: bool) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        work, found = self._current_work, self.candidates()
        if use_crops:
            assert work.pasted is not None
            prob, bounds = work.pasted, found.rois
        else:
            prob, bounds = found.prob, tight_boxes(found.prob, found.bounds)
        if blends and work.maps is not None:
            with self._timer.stage("osvos"):
                weight = self._models.blend_weight(self._options)
                prob = blend_osvos(prob, work.maps.planes, found.rois, osvos_weight=weight)
                bounds = found.rois
        with self._timer.stage("merge"):
            work.merged = work.refined = (merge(prob, bounds), bounds)

    def refine(self, frame: HostFrame) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        work = self._current_work
        assert work.merged is not None
        prob, bounds = work.merged
        with self._timer.stage("crf"):
            work.refined = refine(prob, frame.frame, boxes=bounds, options=self._options.crf)

    def emit(self) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        state, options, work = self._loaded, self._options, self._current_work
        assert work.merged is not None
        assert work.refined is not None
        (prob, bounds), (refined, refined_bounds) = work.merged, work.refined
        with self._timer.stage("output"):
            soft_prob = result_prob = resize_prob(prob, state.input_hw)
            if options.crf:
                result_prob = resize_prob(refined, state.input_hw)
            boxes = scaled_boxes(refined_bounds, state.working_hw, state.input_hw)
            if options.crf is not None and options.crf.feedback:
                prob, bounds = work.refined
            labels = labels_from_merged(result_prob, state.object_ids, boxes)
            measured = measure_objects(labels, soft_prob, state.object_ids, boxes)
        frame = work.frame
        work.memory = FrameMemory(
            frame.frame,
            frame.flow_frame,
            prob,
            result_prob,
            soft_prob,
            self._current.targets,
            work.scores,
            work.features,
        )
        rois = self.candidates().rois
        work.readback = Readback(labels, measured, bounds, rois, (), result_prob, work.scores)

    def readback(self) -> Readback:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        readback = self._current_work.readback
        assert readback is not None
        return readback

    def commit(self, frame: HostFrame) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        self._memory, self._bounds = self._current_work.memory, self.readback().bounds
        self._work = None

    def learn(self, weights: Mapping[int, float]) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        self._finish_learning()
        memory, target = self._current, self._target
        if target is None or memory.targets is None or memory.features is None or not weights:
            return
        self._learning = self._learner.submit(
            target.learned,
            memory.targets,
            memory.features,
            memory.prob,
            self._loaded.object_ids,
            weights,
        )

    def _finish_learning(self) -> None:
        """Wait for the update of the target model in its thread, and use its result.

        The scores of the next frame with features need it. The frames between, and the warp of that
        frame, run at the same time.
        """
        learning, self._learning = self._learning, None
        if learning is None:
            return
        with self._timer.stage("target"):
            targets = learning.result()
        self._memory = replace(self._current, targets=targets)

    def rollback(self) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        self._work = None

    def close(self) -> None:
        """See :class:`mpn.runtime.backend.FrameBackend`."""
        self._learner.shutdown()
        self._ingest.close()
        self._state = self._memory = self._work = self._learning = None

    def _score_crops(self, frame: HostFrame, found: Candidates) -> Float32Array | None:
        """Return the score channel of the crops, for a network that takes it."""
        if not self._takes_score:
            return None
        scores, target, side = self._current_work.exclusive, self._target, self._roi_size
        if scores is None or target is None:
            count = sum(roi is not None for roi in found.rois)
            return np.full((count, side, side), NO_SCORE, np.float32)
        frame_hw = (frame.frame.shape[0], frame.frame.shape[1])
        return crop_scores(scores, found.rois, frame_hw=frame_hw, size_hw=target.size_hw, side=side)

    @property
    def _current_work(self) -> _Work:
        assert self._work is not None
        return self._work

    @property
    def _current(self) -> FrameMemory:
        assert self._memory is not None
        return self._memory

    @property
    def _loaded(self) -> VideoState:
        assert self._state is not None
        return self._state
