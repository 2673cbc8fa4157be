"""Run the stages of one frame in order, on the host or on a device.

The order is: ingest and flow, warp and ROIs, scores of the target model (OSVOS or the target model
re-detects lost objects), growth of the ROIs by the scores, crop, propagation, paste (OSVOS is
blended), merge, CRF, labels. The next frame starts from the merged soft probability, not from the
labels, and not from the output of CRF unless ``crf.feedback`` is set: the paper propagates the mask
probability and calls CRF the final stage.

A device runs a frame optimistically: all stages are enqueued as if no object got lost, and the host
waits once, for the labels. If an object got lost, or OSVOS contradicts a candidate, the frame is
repeated in the order of the host, with a second wait for the candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from mpn.runtime.backend import FrameBackend, FramePlan, FrameT, QueuedBackend, Readback
from mpn.runtime.candidates import Candidates, candidates_from_rois, mark_blended
from mpn.runtime.osvos_policy import OsvosPolicy
from mpn.runtime.state import VideoState
from mpn.runtime.timing import StageTimer


@dataclass(frozen=True)
class Outcome:
    """Results of a frame before it is committed.

    Attributes:
        readback: Labels and measurements.
        candidates: Branches, events and rejected objects.
    """

    readback: Readback
    candidates: Candidates


def segment_frame(
    backend: FrameBackend[FrameT],
    policy: OsvosPolicy,
    state: VideoState,
    frame: FrameT,
    timer: StageTimer,
    prefetch: Callable[[], None],
) -> Outcome:
    """Run all stages of a frame.

    Args:
        backend: Holds the planes of the objects.
        policy: Decides for which objects OSVOS runs, and where it re-detects them.
        state: State of the frame before.
        frame: The frame, ingested.
        timer: Takes the times of the host.
        prefetch: Starts work for the next frame. It is called once, when all work of this frame is
            enqueued, or before the first stage if nothing is enqueued.

    Raises:
        EngineError: If a network fails or its output is not finite.
    """
    plan, queue = policy.plan(state), backend.queue
    is_optimistic = queue is not None and not policy.must_redetect_lost(state.bounds)
    if queue is not None and is_optimistic:
        _enqueue(queue, frame, plan)
    prefetch()
    if is_optimistic:
        readback = backend.readback()
        if not policy.must_redetect(readback, plan, state):
            return _outcome(readback, plan, candidates_from_rois(readback.rois))
    backend.warp(frame)
    found, maps = backend.candidates(), None
    plan = policy.plan_for(found, state)
    if queue is not None and plan.runs_features:
        queue.run_features(frame)
    backend.score(frame, runs_features=plan.runs_features)
    if plan.needs_osvos:
        with timer.stage(policy.stage_name):
            maps = backend.osvos_maps(frame, plan.osvos_for)
            found = policy.redetect(found, maps, state)
    backend.set_candidates(found, maps)
    if plan.use_propagation:
        backend.grow_rois(frame)
        backend.propagate(frame)
    _finish(backend, frame, plan)
    return _outcome(backend.readback(), plan, found)


def _enqueue(queue: QueuedBackend[FrameT], frame: FrameT, plan: FramePlan) -> None:
    if plan.needs_osvos:
        queue.run_osvos(frame, plan.osvos_for)
    if plan.runs_features:
        queue.run_features(frame)  # outside of the graphs: a capture cannot wait

    def front() -> None:
        queue.warp(frame)
        queue.score(frame, runs_features=plan.runs_features)
        if plan.use_propagation:
            queue.grow_rois(frame)
            queue.propagate(frame)

    def back() -> None:
        if plan.scores_agreement:
            queue.score_agreement(frame)
        _finish(queue, frame, plan)

    queue.segment("graph_front", frame, plan.runs_features, front)
    if plan.needs_osvos:
        queue.wait_for_osvos(frame)  # outside of the graphs, too
    # These stages do not depend on the features: fewer graphs.
    queue.segment("graph_back", frame, replace(plan, runs_features=False), back)


def _finish(backend: FrameBackend[FrameT], frame: FrameT, plan: FramePlan) -> None:
    backend.merge(frame, use_crops=plan.use_propagation, blends=plan.blends)
    if plan.use_crf:
        backend.refine(frame)
    backend.emit()


def _outcome(readback: Readback, plan: FramePlan, found: Candidates) -> Outcome:
    return Outcome(readback, mark_blended(found, plan.osvos_for) if plan.blends else found)
