"""Choose the frames of a run to check first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

MAX_FRAMES = 8
_SPREAD = 20
_LEAST_DISTANCE = 5
"""Chosen frames are further than a twentieth of the run, and than 5 frames, from each other."""

_UNCERTAIN_BELOW = 0.5


def frames_to_check(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the worst frames, spread in time, as JSON types.

    Args:
        entries: Lines of tracks.jsonl.

    Returns:
        ``frame`` and ``reason`` of each, in order of the frames.
    """
    scored = []
    count = 0
    for entry in entries:
        count += 1
        found = [_score(track) for track in entry["objects"]]
        score, reason = max(found, default=(0.0, ""))
        if score > 0:
            scored.append((score, entry["frame"], reason))
    chosen: list[tuple[float, int, str]] = []
    for each in sorted(scored, key=lambda item: (-item[0], item[1])):
        distance = max(count // _SPREAD, _LEAST_DISTANCE)
        if all(abs(each[1] - other[1]) > distance for other in chosen):
            chosen.append(each)
        if len(chosen) == MAX_FRAMES:
            break
    return [{"frame": frame, "reason": reason} for _, frame, reason in sorted(chosen, key=_frame)]


def _score(track: Mapping[str, Any]) -> tuple[float, str]:
    object_id = track["object_id"]
    if "lost" in track["events"]:
        return 2.0, f"object {object_id} is lost"
    reliability = track.get("reliability")
    if reliability is not None and track["area_px"] and reliability < _UNCERTAIN_BELOW:
        return 1 - reliability, f"object {object_id} has reliability {reliability:.2f}"
    return 0.0, ""


def _frame(item: tuple[float, int, str]) -> int:
    return item[1]
