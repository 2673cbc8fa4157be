"""Choose the frames of a run that are worth a look.

The frames are divided into at most 48 buckets of equal length, and the least reliable frame of each
is a candidate, so that few pictures are kept while a run of unknown length passes. The candidate
whose correction is expected to mend most is the first frame. Of the others the least reliable are
chosen, with a distance between them (non-maximum suppression). All are ranked by the error that a
correction at frame t is expected to mend:

    mended(t) = sum over frames f of (1 - reliability(f))^2 * share(f, t)

up to the nearest frames with masks of the user, on both sides. On a side with such a mask, of frame
m, the share is ``|f - m| / |t - m| * exp(-|f - t| / 100)``: frames between two masks are blended
from both by their distances. On a side without, masks are only propagated, and the share is
``exp(-|f - t| / 10)``. So a frame late in a long failure comes first: the frames before it are
mended from two masks.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

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
_REACH_BLENDED = 100.0
_REACH = 10.0
"""Frames after which the share of the error that a correction mends has fallen to 1/e, between two
masks and on a side without another mask. Fitted to J after corrections at every sixth frame of
eight training sequences, with networks that were not trained on them. Values from 50 explain J
equally well between two masks; with 200 a short failure in a long video does not come first. The
square of 1 - reliability is 1 - J only roughly: 0.30 for 0.19, 0.20 for 0.18, 0.06 for 0.06."""
_NEGLIGIBLE = 8
"""Reaches after which the share, below 0.0004, is left out, so that long videos are fast."""
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
    """Rank the frames to check, the most useful one first, spread in time.

    Args:
        reliability: Per frame that of its least reliable object, 0..1. Frames with 1 are not
            chosen.

    Returns:
        At most :data:`WORST_COUNT` positions.
    """
    values = np.asarray(reliability, np.float64)
    length = bucket_length(len(values))
    distance = max(_LEAST_DISTANCE, len(values) // (2 * WORST_COUNT))
    lowest = [
        first + int(values[first : first + length].argmin())
        for first in range(0, len(values), length)
    ]
    mended = {at: mended_error(values, at) for at in lowest if values[at] < 1}
    if not mended:
        return []
    chosen = [max(mended, key=lambda at: (mended[at], -at))]
    for at in sorted(mended, key=lambda at: (values[at], at)):
        is_shown = values[at] <= _SHOWN_UP_TO or len(chosen) < LEAST_COUNT
        if not is_shown or len(chosen) == WORST_COUNT:
            break
        # The first frame does not hide a frame close to it that is less reliable.
        if all(abs(at - k) >= distance or values[at] < values[k] for k in chosen):
            chosen.append(at)
    return sorted(chosen, key=lambda at: (-mended[at], at))


def mended_error(reliability: npt.NDArray[np.float64], at: int) -> float:
    """Return how much error a correction is expected to mend, in frames.

    Args:
        reliability: (N,) of all frames, 0..1. A frame with 1 has masks of the user: a correction
            does not reach it.
        at: Position of the correction.
    """
    given = np.flatnonzero(reliability >= 1)
    later = int(np.searchsorted(given, at))
    error = (1 - reliability) ** 2
    before, after = error[:at][::-1], error[at + 1 :]
    return float(
        error[at]
        + _mended_side(before, at - int(given[later - 1]) if later else None)
        + _mended_side(after, int(given[later]) - at if later < len(given) else None)
    )


def _mended_side(error: npt.NDArray[np.float64], distance: int | None) -> float:
    """Return what a correction mends on one side, with the nearest frame first."""
    if distance is None:
        error = error[: int(_NEGLIGIBLE * _REACH)]
        return float((error * np.exp(-np.arange(1, len(error) + 1) / _REACH)).sum())
    error = error[: min(distance - 1, int(_NEGLIGIBLE * _REACH_BLENDED))]
    away = np.arange(1, len(error) + 1)
    return float((error * (1 - away / distance) * np.exp(-away / _REACH_BLENDED)).sum())


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
