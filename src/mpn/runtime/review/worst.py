"""Choose the frames of a run that are worth a look.

The frames are divided into at most 48 buckets of equal length, and the least reliable frame of each
is a candidate, so that few pictures are kept while a run of unknown length passes. Of the
candidates the least reliable are chosen, with a distance between them (non-maximum suppression),
and ranked by the unreliability of the frames around them, which a correction changes too.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

WORST_COUNT = 12
"""Most frames that are shown."""
LEAST_COUNT = 3
"""Frames that are shown even if all are reliable."""
CHECK_BELOW = 0.4
"""Reliability below which a frame is marked. Of the training sequences, 16 of 19 wrong masks that
are not empty are below it, and 37 of 1785 right ones."""
_SHOWN_UP_TO = 0.5
"""An empty mask has this reliability."""
_LEAST_DISTANCE = 5
_MOST_BUCKETS = 4 * WORST_COUNT
_SHORTEST_BUCKET = 4

PictureT = TypeVar("PictureT")


def bucket_length(frames: int) -> int:
    """Return the frames per bucket, a power of 2: at most 48 buckets."""
    length = _SHORTEST_BUCKET
    while frames > _MOST_BUCKETS * length:
        length *= 2
    return length


def worst_positions(reliability: Sequence[float]) -> list[int]:
    """Rank the least reliable frames, spread in time.

    Args:
        reliability: Per frame that of its least reliable object, 0..1. Frames with 1 are not
            chosen.

    Returns:
        At most :data:`WORST_COUNT` positions, the most useful one first.
    """
    values = np.asarray(reliability, np.float64)
    length = bucket_length(len(values))
    distance = max(_LEAST_DISTANCE, len(values) // (2 * WORST_COUNT))
    lowest = [
        first + int(values[first : first + length].argmin())
        for first in range(0, len(values), length)
    ]
    chosen: list[int] = []
    for at in sorted(lowest, key=lambda at: (values[at], at)):
        is_shown = values[at] <= _SHOWN_UP_TO or len(chosen) < LEAST_COUNT
        if not is_shown or values[at] >= 1 or len(chosen) == WORST_COUNT:
            break
        if all(abs(at - other) >= distance for other in chosen):
            chosen.append(at)

    def unreliability(at: int) -> float:
        return float((1 - values[max(at - distance, 0) : at + distance + 1]).sum())

    return sorted(chosen, key=lambda at: (values[at] > _SHOWN_UP_TO, -unreliability(at), at))


class WorstPictures(Generic[PictureT]):
    """Keep pictures of the frames that :func:`worst_positions` may return.

    The frames come one by one, and their number is not known before. At most 49 are kept.
    """

    def __init__(self) -> None:
        self.values = array("d")
        """Reliability of each frame so far."""
        self._kept: dict[int, PictureT] = {}
        self._newest: tuple[int, Callable[[], PictureT]] | None = None

    def add(self, reliability: float, make: Callable[[], PictureT]) -> None:
        """Add the next frame.

        Args:
            reliability: Of its least reliable object, 0..1.
            make: Makes its picture; called at most once, before :meth:`pictures` returns. It may
                keep the frame in memory: one at a time does.
        """
        position, values = len(self.values), self.values
        values.append(reliability)
        length = bucket_length(position)
        if position % length == 0:
            self._settle()
        if bucket_length(position + 1) != length:
            self._merge(2 * length)
        if self._newest is None or reliability < values[self._newest[0]]:
            self._newest = position, make

    def pictures(self) -> dict[int, PictureT]:
        """Return the kept pictures by position."""
        self._settle()
        return dict(self._kept)

    def _settle(self) -> None:
        """Make the picture of the last bucket."""
        if self._newest is not None:
            position, make = self._newest
            self._newest = None
            if self.values[position] < 1:
                self._kept[position] = make()

    def _merge(self, length: int) -> None:
        """Keep one picture per longer bucket."""
        lowest: dict[int, int] = {}
        for at in self._kept:  # ascending
            other = lowest.setdefault(at // length, at)
            if self.values[at] < self.values[other]:
                lowest[at // length] = at
        self._kept = {at: self._kept[at] for at in lowest.values()}
