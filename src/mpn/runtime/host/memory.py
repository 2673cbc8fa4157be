"""Apply labels of the user, or of an earlier run, to the arrays of a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mpn.runtime.backend import FrameMemory, Readback
from mpn.runtime.host.flow import PreparedFrame
from mpn.runtime.host.merge import labels_from_merged
from mpn.runtime.host.preprocess import one_hot, resize_prob
from mpn.runtime.host.reliability import colour_table
from mpn.runtime.host.roi import box_from_prob
from mpn.runtime.state import VideoState
from mpn.runtime.tracks import measure_objects
from mpn.types import Float32Array, Roi, TrackBranch, UInt8Array


def empty_memory(
    frame: UInt8Array, flow_frame: PreparedFrame, input_hw: tuple[int, int]
) -> FrameMemory:
    """Make the arrays of a frame without objects.

    Args:
        frame: (h, w, 3) uint8 RGB at working size.
        flow_frame: The frame, prepared for flow.
        input_hw: (H, W) of the input.
    """
    prob = np.zeros((0, frame.shape[0], frame.shape[1]), np.float32)
    result_prob = resize_prob(prob, input_hw)
    return FrameMemory(frame, flow_frame, prob, result_prob, result_prob)


def with_given_labels(
    state: VideoState, memory: FrameMemory, labels: UInt8Array, given_ids: Sequence[int]
) -> tuple[VideoState, FrameMemory]:
    """Apply labels of the user to the current frame.

    The given objects, old or new, get the labels as their probability. Every other object keeps
    its probability, except at the pixels of the given objects.

    Args:
        state: Of the frame.
        memory: Of the frame.
        labels: (H, W) uint8 ids at input size.
        given_ids: The ids in ``labels``, without 0.
    """
    object_ids = tuple(sorted({*state.object_ids, *given_ids}))
    given = one_hot(labels, given_ids)
    given_small = resize_prob(given, state.working_hw)
    replaced: dict[int, Float32Array] = {}  # prob, soft_prob and result_prob may be one array

    def with_given(prob: Float32Array, planes: Float32Array) -> Float32Array:
        if id(prob) not in replaced:
            replaced[id(prob)] = _replaced(prob, state.object_ids, object_ids, planes, given_ids)
        return replaced[id(prob)]

    prob = with_given(memory.prob, given_small)
    result_prob = with_given(memory.result_prob, given)
    given_area = _areas_px(given_small, given_ids)
    first_area = dict(zip(state.object_ids, state.first_areas_px, strict=True)) | given_area
    branch = dict(zip(state.object_ids, state.branches, strict=True))
    branch |= dict.fromkeys(given_ids, "given")
    table = dict(zip(state.object_ids, state.colour_tables, strict=True))
    for object_id, plane in zip(given_ids, given_small, strict=True):
        table[object_id] = colour_table(memory.frame, plane > 0.5)
    state = replace(
        state,
        object_ids=object_ids,
        bounds=_bounds(prob),
        first_areas_px=tuple(first_area[object_id] for object_id in object_ids),
        branches=tuple(branch[object_id] for object_id in object_ids),
        events={k: happened for k, happened in state.events.items() if k not in given_ids},
        rejected_ids=state.rejected_ids - set(given_ids),
        colour_tables=tuple(table[object_id] for object_id in object_ids),
    )
    soft_prob = with_given(memory.soft_prob, given)
    return state, replace(memory, prob=prob, result_prob=result_prob, soft_prob=soft_prob)


def with_found_labels(
    state: VideoState, frame: UInt8Array, flow_frame: PreparedFrame, labels: UInt8Array
) -> tuple[VideoState, FrameMemory]:
    """Make the state of another frame from labels of an earlier run.

    First areas and colours stay those of the frames where the user gave the objects.

    Args:
        state: Of the frame before.
        frame: (h, w, 3) uint8 RGB at working size.
        flow_frame: The frame, prepared for flow.
        labels: (H, W) uint8 at input size; ids that the state does not have are dropped.
    """
    result_prob = one_hot(labels, state.object_ids)
    prob = resize_prob(result_prob, state.working_hw)
    found: list[TrackBranch] = [
        "none" if not plane.any() else "propagation" for plane in result_prob
    ]
    state = replace(
        state,
        index=state.index + 1,
        bounds=_bounds(prob),
        branches=tuple(found),
        events={},
        rejected_ids=frozenset(),
    )
    return state, FrameMemory(frame, flow_frame, prob, result_prob, result_prob)


def readback_from_memory(memory: FrameMemory, state: VideoState) -> Readback:
    """Compute the results of a frame whose arrays are on the host."""
    boxes, object_ids = _bounds(memory.result_prob), state.object_ids
    labels = labels_from_merged(memory.result_prob, object_ids, boxes)
    return Readback(
        labels=labels,
        measured=measure_objects(labels, memory.soft_prob, object_ids, boxes),
        bounds=state.bounds,
        rois=(),
        agreement=(),
        probs=memory.result_prob,
        scores=memory.scores,
    )


def labels_at_size(labels: UInt8Array, size_hw: tuple[int, int]) -> UInt8Array:
    """Resize the labels of all objects.

    Args:
        labels: (H, W) uint8 ids.
        size_hw: (height, width) wanted.

    Returns:
        (height, width) uint8: at each pixel the object or background of the largest share.
    """
    if labels.shape == size_hw:
        return labels
    all_ids = [int(i) for i in np.unique(labels) if i]
    return labels_from_merged(resize_prob(one_hot(labels, all_ids), size_hw), all_ids)


def _replaced(
    prob: Float32Array,
    known_ids: Sequence[int],
    object_ids: Sequence[int],
    given: Float32Array,
    given_ids: Sequence[int],
) -> Float32Array:
    """Insert the given planes into ``prob``, and clear the others at their pixels."""
    unclaimed = 1 - given.sum(axis=0)
    replaced = np.empty((len(object_ids), *prob.shape[1:]), np.float32)
    for plane, object_id in zip(replaced, object_ids, strict=True):
        if object_id in given_ids:
            plane[:] = given[given_ids.index(object_id)]
        else:
            np.multiply(prob[known_ids.index(object_id)], unclaimed, out=plane)
    return replaced


def _areas_px(prob: Float32Array, object_ids: Sequence[int]) -> dict[int, float]:
    areas = prob.sum(axis=(1, 2), dtype=np.float64)
    return {object_id: float(area) for object_id, area in zip(object_ids, areas, strict=True)}


def _bounds(prob: Float32Array) -> tuple[Roi | None, ...]:
    return tuple(box_from_prob(plane, 0.0) for plane in prob)
