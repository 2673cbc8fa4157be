"""Choose the frames of a run to check first, as ``mpn review`` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mpn.runtime.review.worst import worst_positions

_UNKNOWN_RELIABILITY = 1.0
"""Of a frame without objects."""


def frames_to_check(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the least reliable frames, spread in time, as JSON types.

    Args:
        entries: Lines of tracks.jsonl, in order of the frames.

    Returns:
        ``frame``, ``object_id``, ``is_lost`` and ``reliability`` of each, in order of the frames.
        The object is the least reliable one of the frame.
    """
    positions = worst_positions([_least(entry)[0] for entry in entries])
    chosen = []
    for at in sorted(positions):
        reliability, track = _least(entries[at])
        chosen.append(
            {
                "frame": entries[at]["frame"],
                "object_id": track["object_id"],
                "is_lost": track["state"] == "lost",
                "reliability": reliability,
            }
        )
    return chosen


def _least(entry: Mapping[str, Any]) -> tuple[float, Mapping[str, Any]]:
    return min(
        ((_reliability(track), track) for track in entry["objects"]),
        key=lambda found: found[0],
        default=(_UNKNOWN_RELIABILITY, {}),
    )


def _reliability(track: Mapping[str, Any]) -> float:
    """Return the reliability of a mask; that of version 0.2 is its confidence."""
    value = track.get("reliability")
    return float(track["confidence"] if value is None else value)
