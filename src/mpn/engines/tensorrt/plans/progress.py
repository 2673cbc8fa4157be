"""Progress of a build: nested phases as one fraction, and the remaining time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mpn.engines.spec import Role


@dataclass(frozen=True)
class PlanProgress:
    """Progress of the build of one plan.

    Attributes:
        role: The network.
        phase: The library's name of the innermost phase.
        fraction: 0 to 1, never falling.
        elapsed_s: Seconds since the start.
        eta_s: Remaining seconds at the present rate; None while the fraction is 0.
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
    """Tree of nested phases with one fraction.

    An inner phase is a part of the current step of its outer phase. The outer phase counts that
    step when it is complete.
    """

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self._finished = 0.0
        self._largest = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Add a phase."""
        self._phases[name] = _Phase(parent if parent in self._phases else None, max(steps, 1))

    def step(self, name: str, step: int) -> None:
        """Mark a step of a phase, counted from 0, as complete."""
        if name in self._phases:
            phase = self._phases[name]
            phase.done = min(max(phase.done, step + 1), phase.steps)

    def finish(self, name: str) -> None:
        """Remove a phase, with or without its last steps."""
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
    """Convert a builder's reports to :class:`PlanProgress`; cancel on exceptions.

    The library calls from C++, which no exception may cross. An exception of the callback (Ctrl-C
    included) is stored and cancels the build; :meth:`raise_callback_error` raises it afterwards.

    Args:
        role: The network.
        on_progress: Called with each report, or None.
        clock: Returns seconds; for tests.
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
        """Create an ``IProgressMonitor``; it must outlive the builder's configuration."""
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
        """Apply one report; return whether the build should continue."""
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

    def raise_callback_error(self) -> None:
        """Raise the stored exception of the callback, if there is one."""
        if self._kept is not None:
            raise self._kept

    def _start(self, name: str, parent: str | None, steps: int) -> None:
        self._tree.start(name, parent or None, steps)
