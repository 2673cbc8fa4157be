"""Make the result of a frame from labels, a backward pass, or both directions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from mpn.runtime.host.merge import labels_from_merged
from mpn.runtime.host.preprocess import one_hot
from mpn.runtime.host.roi import box_from_prob
from mpn.runtime.session.spool import SpooledFrame
from mpn.runtime.state import object_ids_from_labels
from mpn.runtime.tracks import measure_objects, tracks_from_measured
from mpn.types import Float32Array, StepResult, Track, TrackBranch, TrackEvent, UInt8Array


def backward_weight(progress: float, forward: Track, backward: Track) -> float:
    """Return the weight of the backward pass for an object in a frame.

    Both directions are weighted by the distance to the mask of the other one, times the squared
    reliability; a direction that has lost the object has the weight 0. Compared with other weights
    in ``benchmarks/accuracy/directions.py``.

    Args:
        progress: Place of the frame between the mask before (0) and the mask after it (1).
        forward: The object in the forward pass.
        backward: The object in the backward pass.
    """
    return weight_of(progress, _trust(forward), _trust(backward))


def _trust(track: Track) -> float:
    if not track.area_px:
        return 0.0
    return (track.confidence if track.reliability is None else track.reliability) ** 2


def weight_of(progress: float, forward: float, backward: float) -> float:
    """Return the share of ``backward`` if both are also weighted by the distance."""
    before, after = (1 - progress) * forward, progress * backward
    total = before + after
    return progress if total == 0 else after / total


def blended(
    forward: StepResult,
    backward: SpooledFrame,
    object_ids: Collection[int],
    progress: float,
    lost_before: Collection[int] = (),
    *,
    weight_of_backward: Callable[[float, Track, Track], float] = backward_weight,
) -> StepResult:
    """Blend both directions of a frame between two masks.

    Args:
        forward: Result of the forward pass.
        backward: Result of the backward pass.
        object_ids: Objects that the frame gets from the backward pass; those that the forward pass
            has as well are averaged.
        progress: Place of the frame between the two masks, 0..1.
        lost_before: Objects without a pixel in the frame before.
        weight_of_backward: Returns the weight of the backward pass, from the arguments of
            :func:`backward_weight`.
    """
    ids = tuple(sorted({*forward.object_ids, *object_ids}))
    theirs = {track.object_id: track for track in backward.tracks}
    ours = {track.object_id: track for track in forward.tracks}
    planes = backward.planes(ids)
    reliability: dict[int, float | None] = {}
    branches: list[TrackBranch] = []
    events: dict[int, tuple[TrackEvent, ...]] = {}
    for position, object_id in enumerate(ids):
        if object_id not in ours:
            weight = 1.0
        elif object_id not in object_ids or object_id not in theirs:
            weight = 0.0
        else:
            weight = weight_of_backward(progress, ours[object_id], theirs[object_id])
        if object_id in ours:
            planes[position] *= np.float32(weight)
            plane = forward.probs[forward.object_ids.index(object_id)]
            planes[position] += np.float32(1 - weight) * plane
        heavier = theirs[object_id] if weight > 0.5 else ours[object_id]
        lighter = ours.get(object_id) if weight > 0.5 else theirs.get(object_id)
        if heavier.branch == "none" and lighter is not None:
            heavier = lighter
        reliability[object_id] = heavier.reliability
        branches.append(heavier.branch)
        events[object_id] = tuple(event for event in heavier.events if event != "lost")
    planes /= np.maximum(planes.sum(axis=0), 1)
    result = _result(forward.index, planes, ids, branches, events, lost_before, forward.timings)
    tracks = (
        replace(t, reliability=reliability[t.object_id]) if t.state == "tracked" else t
        for t in result.tracks
    )
    return replace(result, tracks=tuple(tracks))


def from_backward(index: int, spooled: SpooledFrame, lost_before: Collection[int]) -> StepResult:
    """Make the result of a frame that only a backward pass computed.

    The events are those of the reverse order, except that ``lost`` is that of the order of the
    frames.
    """
    tracks = tuple(_reordered(track, lost_before) for track in spooled.tracks)
    return StepResult(
        index, spooled.labels, spooled.planes(spooled.object_ids), spooled.object_ids, tracks
    )


def given(index: int, labels: UInt8Array) -> StepResult:
    """Make the result of a frame whose labels the user gave, without any pass."""
    ids = object_ids_from_labels(labels)
    branches: list[TrackBranch] = ["given"] * len(ids)
    return _result(index, one_hot(labels, ids), ids, branches, {}, (), {})


def with_given(result: StepResult, labels: UInt8Array) -> StepResult:
    """Give the objects of the labels their pixels; others keep theirs elsewhere."""
    given_ids = object_ids_from_labels(labels)
    ids = tuple(sorted({*result.object_ids, *given_ids}))
    planes = one_hot(labels, ids)
    is_free = labels == 0
    branch_of: dict[int, TrackBranch] = {t.object_id: t.branch for t in result.tracks}
    branch_of |= dict.fromkeys(given_ids, "given")
    for position, object_id in enumerate(ids):
        if object_id not in given_ids:
            plane = result.probs[result.object_ids.index(object_id)]
            np.multiply(plane, is_free, out=planes[position])
    branches = [branch_of[object_id] for object_id in ids]
    found = _result(result.index, planes, ids, branches, {}, (), result.timings)
    before = {t.object_id: t for t in result.tracks}
    tracks = (
        t
        if t.object_id in given_ids
        else replace(
            t, events=before[t.object_id].events, reliability=before[t.object_id].reliability
        )
        for t in found.tracks
    )
    return replace(found, tracks=tuple(tracks), labels_before=result.labels)


def without_objects(index: int, size_hw: tuple[int, int]) -> StepResult:
    """Make the result of a frame that no mask reaches."""
    labels = np.zeros(size_hw, np.uint8)
    return StepResult(index, labels, np.zeros((0, *size_hw), np.float32), (), ())


def _result(
    index: int,
    planes: Float32Array,
    object_ids: Sequence[int],
    branches: Sequence[TrackBranch],
    events: Mapping[int, tuple[TrackEvent, ...]],
    lost_before: Collection[int],
    timings: Mapping[str, float],
) -> StepResult:
    boxes = [box_from_prob(plane, 0.0) for plane in planes]
    labels = labels_from_merged(planes, object_ids, boxes)
    measured = measure_objects(labels, planes, object_ids, boxes)
    tracks = tracks_from_measured(
        measured, object_ids, branches, events=events, lost_before=lost_before
    )
    planes.setflags(write=False)
    return StepResult(index, labels, planes, tuple(object_ids), tracks, timings)


def _reordered(track: Track, lost_before: Collection[int]) -> Track:
    events: tuple[TrackEvent, ...] = tuple(event for event in track.events if event != "lost")
    if track.state == "lost" and track.object_id not in lost_before:
        events = ("lost", *events)
    return replace(track, events=events)
