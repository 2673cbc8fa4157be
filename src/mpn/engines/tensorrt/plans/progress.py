"""How far a build is: the library's nested phases as one fraction, and the time that is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mpn.engines.spec import Role


@dataclass(frozen=True)
class PlanProgress:
    """How far the build of one plan is.

    Attributes:
        role: Which network's.
        phase: What the library calls the innermost thing it is doing.
        fraction: 0 to 1, never falling.
        elapsed_s: Seconds since the start.
        eta_s: Seconds that are left if it goes on like this; None before anything can be said.
    """

    role: Role
    phase: str
    fraction: float
    elapsed_s: float
    eta_s: float | None


OnPlanProgress = Callable[[PlanProgress], None]


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class PhaseTree:
    """Phases that lie in each other's steps, as one fraction. To be used from any thread.

    A phase inside another one is a part of the step that the outer one is at: the outer phase
    counts the step only when it is complete.
    """

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self._finished = 0.0
        self._largest = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        self._phases[name] = _Phase(parent if parent in self._phases else None, max(steps, 1))

    def step(self, name: str, step: int) -> None:
        """A step, counted from 0, is complete."""
        if name in self._phases:
            phase = self._phases[name]
            phase.done = min(max(phase.done, step + 1), phase.steps)

    def finish(self, name: str) -> None:
        """A phase ends, with or without its last steps."""
        phase = self._phases.pop(name, None)
        if phase is not None and phase.parent is None:
            self._finished = 1.0

    @property
    def fraction(self) -> float:
        """0 to 1, never falling."""
        roots = [name for name, phase in self._phases.items() if phase.parent is None]
        now = max((self._of(name) for name in roots), default=self._finished)
        self._largest = max(self._largest, now)
        return self._largest

    def _of(self, name: str) -> float:
        phase = self._phases[name]
        inner = max(
            (self._of(child) for child, other in self._phases.items() if other.parent == name),
            default=0.0,
        )
        return min((phase.done + inner) / phase.steps, 1.0)


class BuildWatch:
    """Turns a builder's reports into :class:`PlanProgress`, and stops it when that fails.

    The library calls from C++ that lets no exception through: whatever the callback raises
    (Ctrl-C included) is kept, the build is cancelled, and :meth:`raise_kept` raises it after.

    Args:
        role: Which network is built.
        on_progress: Called with every report; None: only cancels.
        clock: Seconds, for the tests.
    """

    def __init__(
        self,
        role: Role,
        on_progress: OnPlanProgress | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._role, self._on_progress, self._clock = role, on_progress, clock
        self._tree = PhaseTree()
        self._lock = threading.Lock()
        self._started_s = clock()
        self._kept: BaseException | None = None

    def monitor(self, module: Any) -> Any:
        """An ``IProgressMonitor`` of the library; it must live as long as the builder's config."""
        watch = self

        class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # known at run time only
            def __init__(self) -> None:
                module.IProgressMonitor.__init__(self)

            def phase_start(
                self, phase_name: str, parent_phase: str | None, num_steps: int
            ) -> None:
                watch.report(phase_name, lambda: watch._start(phase_name, parent_phase, num_steps))

            def step_complete(self, phase_name: str, step: int) -> bool:
                return watch.report(phase_name, lambda: watch._tree.step(phase_name, step))

            def phase_finish(self, phase_name: str) -> None:
                watch.report(phase_name, lambda: watch._tree.finish(phase_name))

        return Monitor()

    def report(self, phase: str, change: Callable[[], None]) -> bool:
        """Take one report in; whether the build is to go on."""
        try:
            with self._lock:
                change()
                fraction, elapsed_s = self._tree.fraction, self._clock() - self._started_s
                if self._on_progress is not None and self._kept is None:
                    self._on_progress(
                        PlanProgress(
                            role=self._role,
                            phase=phase,
                            fraction=fraction,
                            elapsed_s=elapsed_s,
                            eta_s=elapsed_s * (1 - fraction) / fraction if fraction > 0 else None,
                        )
                    )
        except BaseException as error:  # see the class
            self._kept = error
        return self._kept is None

    def raise_kept(self) -> None:
        """Raise what the callback raised, if it did."""
        if self._kept is not None:
            raise self._kept

    def _start(self, name: str, parent: str | None, steps: int) -> None:
        self._tree.start(name, parent or None, steps)
