"""Summaries of exported roles, and progress callbacks of an export."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mpn.engines.spec import (
    Role,
)

Step = Literal["load", "prepare", "trace", "write", "verify", "adapt"]
"""Building the network, folding and halving it, tracing it, writing its graph, comparing; then its
fine-tuning step, written and compared."""


class Progress:
    """Callbacks for every step of every role.

    This class does nothing; override the methods to display.
    """

    def reading(self, path: Path) -> None:
        """Report that a checkpoint is being read."""

    def started(self, role: Role, step: Step) -> None:
        """Report the start of a step."""

    def finished(self, role: Role, step: Step, elapsed_s: float) -> None:
        """Report the successful end of a step."""

    def reused(self, role: Role) -> None:
        """Report that the result of an earlier, interrupted run is used."""


@dataclass
class Stopwatch:
    """Result of :func:`timed`.

    Attributes:
        elapsed_s: Seconds of the step; 0 until it has ended.
    """

    elapsed_s: float = 0.0


@contextmanager
def timed(progress: Progress, role: Role, step: Step) -> Iterator[Stopwatch]:
    """Report and time one step; a step that raises is never reported as finished."""
    progress.started(role, step)
    stopwatch = Stopwatch()
    began_s = time.perf_counter()
    yield stopwatch
    stopwatch.elapsed_s = time.perf_counter() - began_s
    progress.finished(role, step, stopwatch.elapsed_s)
