"""Figures of all objects of a run, one value per frame."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

from mpn.types import Track

ABSENT: Final = 0
TRACKED: Final = 1
LOST: Final = 2
GIVEN: Final = 3
REDETECTED: Final = 4

_UNKNOWN_RELIABILITY = 1.0


class ObjectSeries:
    """Figures of one object; 5 bytes and a float per frame, so that long videos fit.

    Attributes:
        object_id: The value in the labels.
        reliability: Per frame, 0..1; 1 before the object was given.
        area_px: Per frame.
        state: Per frame one of the constants of this module.
    """

    def __init__(self, object_id: int, frames_before: int) -> None:
        self.object_id = object_id
        self.reliability = array("f", [_UNKNOWN_RELIABILITY]) * frames_before
        self.area_px = array("l", [0]) * frames_before
        self.state = array("B", [ABSENT]) * frames_before

    def add(self, track: Track | None) -> None:
        """Append a frame; None: the object does not exist in it."""
        if track is None:
            self.reliability.append(_UNKNOWN_RELIABILITY)
            self.area_px.append(0)
            self.state.append(ABSENT)
            return
        self.reliability.append(reliability_of_track(track))
        self.area_px.append(track.area_px)
        state = {"given": GIVEN, "lost": LOST}.get(track.state, TRACKED)
        self.state.append(REDETECTED if "redetected" in track.events else state)


def reliability_of_track(track: Track) -> float:
    """Return the reliability rounded as in tracks.jsonl; before 0.3 the confidence."""
    value = track.confidence if track.reliability is None else track.reliability
    return 1.0 if track.state == "given" else round(value, 4)


def frame_reliability(tracks: Sequence[Track]) -> float:
    """Return the reliability of the least reliable object of a frame."""
    return min((reliability_of_track(track) for track in tracks), default=_UNKNOWN_RELIABILITY)


def stretches(states: Sequence[int], wanted: int) -> list[tuple[int, int]]:
    """Return the first and last position of each run of one state."""
    found: list[tuple[int, int]] = []
    for position, state in enumerate(states):
        if state != wanted:
            continue
        if found and found[-1][1] == position - 1:
            found[-1] = (found[-1][0], position)
        else:
            found.append((position, position))
    return found
