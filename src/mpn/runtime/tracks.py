"""Compute area, box, confidence and state of each object in a frame."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from mpn.types import Float32Array, Roi, Track, TrackBranch, TrackEvent, TrackState, UInt8Array

_CONFIDENCE_POWER = 4
"""Of the confidence in the reliability. It varies less than the agreement, 0.8 to 1. Powers of 2 to
8 rank the frames of the training sequences equally well (AUROC 0.976 to 0.979)."""

_LOST_RELIABILITY = 0.5
"""Of an empty mask, which is right if the object is hidden: the scores do not decide it. It lies
between most wrong masks (9 of 10 are below 0.40) and most right ones (9 of 10 are above 0.50)."""


class Measured(NamedTuple):
    """An object in the labels of a frame.

    Attributes:
        area_px: Its pixels.
        box_xyxy: Half-open bounding box; None without a pixel.
        confidence: Mean probability over its pixels, 0..1; 0 without a pixel.
    """

    area_px: int
    box_xyxy: tuple[int, int, int, int] | None
    confidence: float


def measure_objects(
    labels: UInt8Array,
    probs: Float32Array,
    object_ids: Sequence[int],
    boxes: Sequence[Roi | None],
) -> tuple[Measured, ...]:
    """Measure each object in the labels.

    Args:
        labels: (H, W) uint8 ids.
        probs: (K, H, W) float32, merged, before CRF.
        object_ids: The K ids.
        boxes: Per object a box outside which it has no pixel in the labels, or None.
    """
    return tuple(
        _measure(labels, probs[k], object_id, box)
        for k, (object_id, box) in enumerate(zip(object_ids, boxes, strict=True))
    )


def tracks_from_measured(
    measured: Sequence[Measured],
    object_ids: Sequence[int],
    branches: Sequence[TrackBranch],
    *,
    events: Mapping[int, tuple[TrackEvent, ...]] | None = None,
    lost_before: Collection[int] = (),
    agreement: Sequence[float] | None = None,
) -> tuple[Track, ...]:
    """Make one track per object.

    Args:
        measured: Per object its measurement.
        object_ids: The K ids.
        branches: Per object the source of its probability. An object without a pixel becomes
            ``"none"`` and is lost, unless the user gave it so.
        events: Events of the stages by object id; dropped for an object without a pixel.
        lost_before: Ids of the objects that had no pixel in the frame before either.
        agreement: Per object the agreement with the target model, 0..1; None without one.
    """
    tracks = []
    agreements = [None] * len(measured) if agreement is None else agreement
    for found, object_id, branch, agreed in zip(
        measured, object_ids, branches, agreements, strict=True
    ):
        found_state: TrackState = "tracked" if found.area_px else "lost"
        state: TrackState = "given" if branch == "given" else found_state
        happened = (events or {}).get(object_id, ())
        if state == "lost":
            happened = () if object_id in lost_before else ("lost",)
        tracks.append(
            Track(
                object_id=object_id,
                state=state,
                branch="none" if state == "lost" else branch,
                area_px=found.area_px,
                box_xyxy=found.box_xyxy,
                confidence=found.confidence,
                events=happened,
                reliability=reliability_of(state, found.confidence, agreed),
            )
        )
    return tuple(tracks)


def reliability_of(state: TrackState, confidence: float, agreement: float | None) -> float:
    """Combine the signals of a mask into its reliability, 0..1.

    Args:
        state: See :data:`mpn.types.TrackState`.
        confidence: Mean probability of its pixels, 0..1.
        agreement: With the target model, 0..1; None without one.
    """
    if state == "given":
        return 1.0
    if state == "lost":
        return _LOST_RELIABILITY
    if agreement is None:
        return confidence
    return float(agreement * confidence**_CONFIDENCE_POWER)


def _measure(labels: UInt8Array, prob: Float32Array, object_id: int, box: Roi | None) -> Measured:
    if box is None:
        return Measured(0, None, 0.0)
    window = (slice(box.y0, box.y1), slice(box.x0, box.x1))
    mask = (labels[window] == object_id).view(np.uint8)
    area_px = cv2.countNonZero(mask)
    if area_px == 0:
        return Measured(0, None, 0.0)
    x, y, width, height = cv2.boundingRect(mask)
    x, y = box.x0 + x, box.y0 + y
    confidence = float(cv2.mean(prob[window], mask=mask)[0])
    return Measured(area_px, (x, y, x + width, y + height), confidence)


_AREA_MEMORY = 0.2
"""Weight of the newest frame in the mean area: a memory of about five frames. An object that
shrinks by a tenth per frame has 0.56 of that mean, which a factor of 2 still accepts."""

_AREA_FACTOR_MAX = 2.0
"""An object is uncertain if its area exceeds this many times the mean of its last
frames, or falls below that mean divided by it."""


@dataclass(frozen=True)
class TrackMemory:
    """State of an object's track that the next frame needs.

    Attributes:
        state: In the last frame.
        mean_area_px: Exponential mean over the last frames with the object, in pixels of the
            labels at input size.
        is_uncertain: True if its confidence was too low, its area changed too fast, or OSVOS
            rejected it.
    """

    state: TrackState
    mean_area_px: float
    is_uncertain: bool


def update_track_memory(
    track: Track,
    before: TrackMemory | None,
    *,
    confidence_min: float,
    is_rejected: bool = False,
) -> TrackMemory:
    """Compute the memory of an object after a frame.

    Args:
        track: The object in this frame.
        before: Its memory before the frame; None for a new object.
        confidence_min: See :class:`mpn.runtime.options.OsvosOptions`.
        is_rejected: Whether OSVOS rejected the object in this frame.

    Returns:
        An object that the user gave is certain, and its mean area restarts. A lost object is lost,
        not uncertain, and keeps its mean area.
    """
    area_px = float(track.area_px)
    if before is None or track.state == "given":
        return TrackMemory(track.state, area_px, False)
    mean_px = before.mean_area_px
    if track.state == "lost":
        return TrackMemory(track.state, mean_px, False)
    if before.state == "lost" or mean_px == 0:
        mean_px = area_px  # after an absence it may have any size
    is_sudden = not mean_px / _AREA_FACTOR_MAX <= area_px <= mean_px * _AREA_FACTOR_MAX
    return TrackMemory(
        track.state,
        mean_px + _AREA_MEMORY * (area_px - mean_px),
        is_rejected or is_sudden or track.confidence < confidence_min,
    )
