"""Run the units of a plan: order, retries, counts and the log, for every runner."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from mpn._common.storage import is_remote, public_address
from mpn.batch.log import BatchLog
from mpn.batch.outcome import UnitOutcome
from mpn.batch.plan import AttemptQueue, Plan, PlannedUnit
from mpn.batch.records import MEANWHILE, load_done, save_error
from mpn.batch.runner import Attempt, OnProgress, Runner, UnitProgress
from mpn.batch.unit import is_in_use
from mpn.errors import MpnError

_IN_USE_POLL_S = 0.5
"""Between two tests of the folders that other processes have in use."""


@dataclass
class BatchState:
    """Counts of a batch while it runs.

    Attributes:
        to_run: Units that run, by name.
        skipped: Outcomes of units that were complete.
        done: Outcomes of units that this batch completed, by name.
        failed: Last outcomes of units without a further attempt, by name.
        running: Latest progress of the units that run, by name.
        in_use: Attempts that wait for the end of another process, by name of the unit.
        wall_s: Seconds of the whole batch; None while it runs.
        stopped: Why it ended before all units had run; otherwise empty.
    """

    to_run: Mapping[str, PlannedUnit]
    skipped: list[UnitOutcome]
    done: dict[str, UnitOutcome] = field(default_factory=dict)
    failed: dict[str, UnitOutcome] = field(default_factory=dict)
    running: dict[str, UnitProgress] = field(default_factory=dict)
    in_use: dict[str, Attempt] = field(default_factory=dict)
    wall_s: float | None = None
    stopped: str = ""
    _started_s: float = field(default_factory=time.perf_counter)

    @property
    def total(self) -> int:
        """Number of all units, complete ones included."""
        return len(self.to_run) + self._skipped_before

    @property
    def finished(self) -> int:
        """Number of units that need no further work."""
        return len(self.done) + len(self.failed) + len(self.skipped)

    @property
    def frames(self) -> int:
        """Frames that this batch computed in units that are done."""
        return sum(outcome.frames for outcome in self.done.values())

    @property
    def elapsed_s(self) -> float:
        """Seconds since the begin, or of the whole batch."""
        return time.perf_counter() - self._started_s if self.wall_s is None else self.wall_s

    @property
    def fps(self) -> float:
        """Frames a second of all workers together, with the time of their start."""
        frames = self.frames + sum(progress.done for progress in self.running.values())
        return frames / max(self.elapsed_s, 1e-6)

    @property
    def frames_left(self) -> int | None:
        """Expected frames of the units that are not finished; None if no length is known."""
        known = [one.frames for one in self.to_run.values() if one.frames is not None]
        if not known:
            return None
        mean = sum(known) / len(known)
        left = 0.0
        gone = self.done.keys() | self.failed.keys() | {one.name for one in self.skipped}
        for name, one in self.to_run.items():
            if name not in gone:
                frames = mean if one.frames is None else one.frames
                running = self.running.get(name)
                left += max(frames - (running.done if running else 0), 0)
        return round(left)

    @property
    def eta_s(self) -> float | None:
        """Expected seconds to the end; None if it is unknown."""
        left, fps = self.frames_left, self.fps
        return None if left is None or fps == 0 else left / fps

    @property
    def _skipped_before(self) -> int:
        return sum(one.name not in self.to_run for one in self.skipped)

    def as_json(self) -> dict[str, Any]:
        """Return the counts as JSON types."""
        return {
            "videos": self.total,
            "done": len(self.done),
            "skipped": len(self.skipped),
            "failed": len(self.failed),
            "not_run": self.total - self.finished,
            "frames": self.frames,
            "wall_s": round(self.elapsed_s, 3),
            "fps": round(self.frames / max(self.elapsed_s, 1e-6), 3),
            "failures": [
                {"name": one.name, "reason": one.reason, "attempts": one.attempt}
                for one in self.failed.values()
            ],
            "warnings": sum(bool(one.warnings) for one in self.done.values()),
            "stopped": self.stopped,
        }


OnChange = Callable[[BatchState, UnitOutcome | None], None]


def run_batch(
    plan: Plan,
    runner: Runner,
    *,
    retry: int = 1,
    log: BatchLog | None = None,
    facts: Mapping[str, Any] | None = None,
    on_change: OnChange | None = None,
) -> BatchState:
    """Run the units of a plan.

    A unit whose folder another process has in use waits, at the end without a worker. It is skipped
    if that process has completed it, and runs if not.

    Args:
        plan: The units.
        runner: Runs the attempts.
        retry: Further attempts at a unit whose failure may not repeat: its worker ended, or an
            output or an engine failed. Unusable videos, masks and options fail at once.
        log: Gets each outcome.
        facts: Fields of the first line of the log.
        on_change: Called after each progress, and with each outcome of an attempt.

    Returns:
        The counts. If the disk was full, ``stopped`` has the reason and the other units did not
        run.

    Raises:
        MpnError: If no unit can run.
        KeyboardInterrupt: On a stop signal, after the workers have stopped.
    """
    state = BatchState({one.unit.name: one for one in plan.to_run}, list(plan.skipped))
    notify = on_change or (lambda state, outcome: None)
    log_event = log.write if log is not None else (lambda event, facts: None)
    log_event("begin", {**(facts or {}), "videos": state.total, "to_run": len(plan.to_run)})
    for outcome in plan.skipped:
        log_event("video", outcome.as_json())
    units = {one.unit.name: one.unit for one in plan.to_run}
    feed = AttemptQueue(units.values())

    def on_progress(progress: UnitProgress) -> None:
        state.running[progress.name] = progress
        notify(state, None)

    ended = "failed"
    try:
        with closing(_outcomes(runner, feed, on_progress, state, notify)) as outcomes:
            for outcome in outcomes:
                state.running.pop(outcome.name, None)
                if outcome.state == "skipped" and outcome.attempt > 1:
                    # Its worker was lost after it had written done.json.
                    outcome = replace(outcome, state="done", reason="an earlier attempt did it")
                elif outcome.state == "skipped":  # the plan had it as missing or stale
                    outcome = replace(outcome, reason=MEANWHILE)
                is_again = outcome.is_in_use or (
                    outcome.may_retry and outcome.attempt <= retry and not outcome.is_disk_full
                )
                if outcome.is_in_use:
                    state.in_use[outcome.name] = Attempt(units[outcome.name], outcome.attempt)
                elif is_again:
                    feed.add(Attempt(units[outcome.name], outcome.attempt + 1))
                elif outcome.state == "skipped":
                    state.skipped.append(outcome)
                else:
                    (state.done if outcome.state == "done" else state.failed)[outcome.name] = (
                        outcome
                    )
                unit = units[outcome.name]
                if outcome.is_lost and not is_again and not is_remote(unit.out):
                    with suppress(MpnError, OSError):  # the log has it, too
                        if load_done(unit) is None:
                            save_error(unit, outcome.record())
                places = {
                    "video": public_address(unit.video),
                    "out": public_address(unit.out),
                    "is_retried": is_again,
                    "state": "in_use" if outcome.is_in_use else outcome.state,
                }
                log_event("video", {**outcome.as_json(), **places})
                notify(state, outcome)
                if outcome.is_disk_full:
                    state.stopped = f"the disk is full ({outcome.name}: {outcome.reason})"
                    break
        ended = "stopped" if state.stopped else "complete"
    except KeyboardInterrupt:
        ended = "interrupted"
        raise
    finally:
        state.wall_s = state.elapsed_s
        state.running.clear()
        log_event("end", {"state": ended, **state.as_json()})
    return state


def _outcomes(
    runner: Runner, feed: AttemptQueue, on_progress: OnProgress, state: BatchState, notify: OnChange
) -> Generator[UnitOutcome, None, None]:
    """Yield the outcomes of a runner, and then those of units that were in use."""
    yield from runner.run(feed, on_progress)
    while state.in_use:
        notify(state, None)
        time.sleep(_IN_USE_POLL_S)
        for name, attempt in tuple(state.in_use.items()):
            if not is_in_use(attempt.unit):
                feed.add(state.in_use.pop(name))
        if len(feed):
            yield from runner.run(feed, on_progress)
