"""How an export tells what it is doing. The command line shows it; everybody else ignores it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mpn.engines.spec import Role

Step = Literal["load", "prepare", "trace", "write", "verify", "adapt"]
"""Building the network, folding and halving it, tracing it, writing its graph, comparing; then its
fine-tuning step, written and compared."""


class Progress:
    """Told of every step of every role. This one stays silent; override what you want to show."""

    def reading(self, path: Path) -> None:
        """A checkpoint is being read."""

    def started(self, role: Role, step: Step) -> None:
        """A step begins."""

    def finished(self, role: Role, step: Step, elapsed_s: float) -> None:
        """A step has ended well."""

    def reused(self, role: Role) -> None:
        """A role was finished by an earlier, interrupted run and is taken as it is."""


@dataclass
class Stopwatch:
    """What :func:`timed` measured.

    Attributes:
        elapsed_s: 0 until the step has ended.
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
