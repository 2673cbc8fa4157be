from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpn.runtime.tracks import measure_objects, tracks_from_measured
from mpn.types import Roi, Track, TrackBranch, TrackEvent

LABELS = np.zeros((10, 20), np.uint8)
LABELS[2:5, 4:9] = 3
LABELS[6:8, 15:20] = 8
PROBS = np.zeros((3, 10, 20), np.float32)
PROBS[0, 2:5, 4:9] = 0.75
PROBS[1, 6:8, 15:20] = np.array([[0.6], [0.8]])
PROBS[2, 0, 0] = 0.4
FRAME = Roi(0, 0, 20, 10)


def tracks_of(
    probs: np.ndarray,
    object_ids: tuple[int, ...],
    branches: tuple[TrackBranch, ...],
    boxes: list[Roi | None],
    **rest: Any,
) -> tuple[Track, ...]:
    measured = measure_objects(LABELS, probs, object_ids, boxes)
    return tracks_from_measured(measured, object_ids, branches, **rest)


@pytest.mark.parametrize(
    "boxes", [[FRAME, FRAME, FRAME], [Roi(4, 2, 9, 5), Roi(13, 5, 20, 10), Roi(0, 0, 3, 3)]]
)
def test_a_track_measures_its_own_pixels(boxes: list[Roi | None]) -> None:
    three, eight, nine = tracks_of(PROBS, (3, 8, 9), ("propagation", "blended", "osvos"), boxes)
    assert (three.object_id, three.area_px, three.box_xyxy) == (3, 15, (4, 2, 9, 5))
    assert (eight.object_id, eight.area_px, eight.box_xyxy) == (8, 10, (15, 6, 20, 8))
    assert (three.state, three.branch) == ("tracked", "propagation")
    assert (eight.state, eight.branch) == ("tracked", "blended")
    assert three.confidence == 0.75
    assert eight.confidence == pytest.approx(0.7)
    assert (nine.state, nine.branch, nine.area_px) == ("lost", "none", 0)
    assert (nine.box_xyxy, nine.confidence) == (None, 0)


def test_object_without_pixels_is_lost() -> None:
    (track,) = tracks_of(PROBS[:1], (5,), ("propagation",), [None])
    assert (track.state, track.branch, track.area_px) == ("lost", "none", 0)


@pytest.mark.parametrize(
    ("lost_before", "events"), [((), ("lost",)), ((9,), ()), ((3,), ("lost",))]
)
def test_lost_event_is_reported_once_without_others(
    lost_before: tuple[int, ...], events: tuple[TrackEvent, ...]
) -> None:
    tracks = tracks_of(
        PROBS,
        (3, 8, 9),
        ("osvos", "propagation", "osvos"),
        [FRAME] * 3,
        events={3: ("redetected", "blended"), 9: ("redetected",)},
        lost_before=lost_before,
    )
    assert [track.events for track in tracks] == [("redetected", "blended"), (), events]
    assert tracks[0].as_json()["events"] == ["redetected", "blended"]


def test_object_given_without_pixels_is_not_lost() -> None:
    (track,) = tracks_of(PROBS[:1], (5,), ("given",), [None])
    assert (track.state, track.events) == ("given", ())


def test_reliability_lowers_confidence_by_agreement() -> None:
    """Agreement needs a target model; a mask of the user is certain."""
    branches: tuple[TrackBranch, ...] = ("propagation", "given", "propagation")
    boxes: list[Roi | None] = [FRAME, FRAME, FRAME]
    alone = tracks_of(PROBS, (3, 8, 9), branches, boxes)
    assert [track.reliability for track in alone] == [0.75, 1.0, 0.5]
    agreed = tracks_of(PROBS, (3, 8, 9), branches, boxes, agreement=[0.5, 0.1, 0.9])
    assert [track.reliability for track in agreed] == [pytest.approx(0.5 * 0.75**4), 1.0, 0.5]
    assert [track.confidence for track in agreed] == [track.confidence for track in alone]
