"""Decide which units run, and in which order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mpn._common.storage import is_remote
from mpn.batch.manifest import Unit
from mpn.batch.outcome import Settings, UnitOutcome
from mpn.batch.records import digest_of_engines, load_done, skip_reason, stale_reason
from mpn.batch.runner import Attempt
from mpn.runtime.media.video import frame_count_hint

_THREADS = 8
"""Reads at once: they wait for the disk or the network."""
_LONGEST_COUNT_S = 20.0
"""Headers that are not read in this time stay unread: the order is only a matter of speed."""


@dataclass(frozen=True)
class PlannedUnit:
    """A unit that runs.

    Attributes:
        unit: The unit.
        reason: Why it runs.
        frames: Number of its frames by the header; None if unknown.
    """

    unit: Unit
    reason: str
    frames: int | None


@dataclass(frozen=True)
class Plan:
    """Units that run, the longest first, and those that are complete.

    Attributes:
        to_run: Units of unknown length come first: they fail at once, or may be long.
        skipped: Outcomes of complete units.
    """

    to_run: tuple[PlannedUnit, ...]
    skipped: tuple[UnitOutcome, ...]


def plan_units(units: Sequence[Unit], settings: Settings) -> Plan:
    """Compare all units with their done.json, and count the frames of those that run.

    Raises:
        ManifestError: If the engines cannot be used.
    """
    engine = digest_of_engines(settings.manifest())
    with ThreadPoolExecutor(_THREADS) as pool:
        checked = list(pool.map(lambda unit: _checked(unit, settings, engine), units))
        to_run = [one for one in checked if isinstance(one, PlannedUnit)]
        until_s = time.monotonic() + _LONGEST_COUNT_S
        counts = list(pool.map(lambda one: _frames_of(one.unit, until_s), to_run))
    planned = [
        PlannedUnit(one.unit, one.reason, frames)
        for one, frames in zip(to_run, counts, strict=True)
    ]
    planned.sort(key=lambda one: -(one.frames or 0) if one.frames else float("-inf"))
    return Plan(tuple(planned), tuple(one for one in checked if isinstance(one, UnitOutcome)))


def _checked(unit: Unit, settings: Settings, engine: str) -> PlannedUnit | UnitOutcome:
    done = load_done(unit)
    reason = "fresh results were requested" if settings.fresh else stale_reason(unit, engine, done)
    if reason is None and done is not None:
        return UnitOutcome(
            name=unit.name, state="skipped", frames=done.frames, reason=skip_reason(unit, done)
        )
    return PlannedUnit(unit, reason or "", None)


def _frames_of(unit: Unit, until_s: float) -> int | None:
    if is_remote(unit.video) or time.monotonic() > until_s:
        return None
    count = frame_count_hint(unit.video)
    if count is None:
        return None
    start, end = unit.options.start or 0, unit.options.end
    return max((count if end is None else min(count, end)) - start, 1)


class AttemptQueue:
    """The attempts that wait; see :class:`mpn.batch.runner.Feed`."""

    def __init__(self, units: Iterable[Unit]) -> None:
        self._waiting = deque(Attempt(unit) for unit in units)

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> Attempt | None:
        """See :meth:`mpn.batch.runner.Feed.take`."""
        return self._waiting.popleft() if self._waiting else None

    def add(self, attempt: Attempt) -> None:
        """Add an attempt after all others."""
        self._waiting.append(attempt)
