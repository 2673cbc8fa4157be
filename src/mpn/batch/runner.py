"""Define the protocol of runners: how attempts reach the processes that compute."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

from mpn.batch.manifest import Unit
from mpn.batch.outcome import UnitOutcome


@dataclass(frozen=True)
class Attempt:
    """One attempt at a unit.

    Attributes:
        unit: The unit.
        number: From 1.
    """

    unit: Unit
    number: int = 1


@dataclass(frozen=True)
class UnitProgress:
    """Progress of a unit that runs.

    Attributes:
        name: Of the unit.
        worker: Name of the worker.
        done: Finished frames.
        expected: Total frames by the header; None if unknown.
    """

    name: str
    worker: str
    done: int
    expected: int | None


def lost_outcome(attempt: Attempt, reason: str, *, worker: str, wall_s: float) -> UnitOutcome:
    """Return the outcome of an attempt whose worker ended.

    Args:
        attempt: The attempt.
        reason: How the worker ended.
        worker: Its name.
        wall_s: Seconds of the attempt.
    """
    return UnitOutcome(
        name=attempt.unit.name,
        state="failed",
        wall_s=wall_s,
        reason=f"its worker ended: {reason}",
        attempt=attempt.number,
        worker=worker,
        may_retry=True,
        is_lost=True,
    )


OnProgress = Callable[[UnitProgress], None]


class Feed(Protocol):
    """Source of the attempts."""

    def take(self) -> Attempt | None:
        """Return the next attempt; None if there is none at the moment.

        A failed attempt adds another one, so a runner calls it again after each outcome.
        """


class Runner(Protocol):
    """Run attempts in workers. Order, retries, counts and logs are not its business."""

    @property
    def workers(self) -> int:
        """Number of workers."""

    def run(self, feed: Feed, on_progress: OnProgress) -> Generator[UnitOutcome, None, None]:
        """Yield the outcome of each attempt, until nothing runs and ``feed`` has none.

        A worker that ends during an attempt makes that attempt fail, with ``may_retry``, and is
        replaced. Closing the generator, or an exception in it, stops all workers.

        Args:
            feed: The attempts. Called in the thread that iterates.
            on_progress: Called in the thread that iterates, some times a second.

        Raises:
            MpnError: If no unit can run, for example without engines.
        """
