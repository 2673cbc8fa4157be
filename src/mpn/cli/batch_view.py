"""Show the progress of ``mpn batch`` on stderr: bars on a terminal, else lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mpn.cli.output import echo

if TYPE_CHECKING:
    from mpn.batch.batch import BatchState, OnChange
    from mpn.batch.outcome import UnitOutcome
    from mpn.batch.plan import Plan

_PLAIN_EVERY_S = 30.0
_SHOWN_PER_S = 4
_MOST_ROWS = 8
_LONGEST_NAME = 32


@contextmanager
def batch_display(plan: Plan, workers: int, *, quiet: bool) -> Iterator[OnChange]:
    """Yield the callback for the progress of a batch.

    Each failure is one line at once, also with ``quiet``.
    """
    if not quiet:
        echo(
            f"{counted(len(plan.to_run), 'video')} to run with {counted(workers, 'worker')}, "
            f"{len(plan.skipped)} done before",
            err=True,
        )
    if not quiet and sys.stderr.isatty():
        with _rich_display(plan, workers) as on_change:
            yield on_change
    else:
        yield _plain_display(quiet)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _line_of(outcome: UnitOutcome | None, state: BatchState) -> str | None:
    """Return the line of an outcome or of a wait; None if it needs none."""
    if outcome is None and state.in_use and not state.running:
        names = ", ".join(sorted(state.in_use)[:_MOST_ROWS])
        more = ", ..." if len(state.in_use) > _MOST_ROWS else ""
        count = counted(len(state.in_use), "video")
        return f"waiting for {count} in use by other processes: {names}{more}"
    if outcome is None or outcome.state != "failed":
        return None
    line = f"{outcome.name}: {reason_of(outcome, state)}"
    if outcome.name in state.failed:
        return f"failed: {line}"
    if outcome.is_in_use:  # it waits at the end
        return None
    return f"attempt {outcome.attempt} failed, runs again: {line}"


def reason_of(outcome: UnitOutcome, state: BatchState) -> str:
    """Return why a unit failed, with file and line of its manifest."""
    origin = state.to_run[outcome.name].unit.origin
    return f"{origin}: {outcome.reason}" if origin else outcome.reason


def _plain_display(quiet: bool) -> OnChange:
    shown_s, shown = time.monotonic(), ""

    def on_change(state: BatchState, outcome: UnitOutcome | None) -> None:
        nonlocal shown_s, shown
        line = _line_of(outcome, state)
        if line is not None and line != shown and not (quiet and outcome is None):
            shown = line
            echo(line, err=True)
        now_s = time.monotonic()
        if not quiet and now_s - shown_s >= _PLAIN_EVERY_S:
            shown_s = now_s
            echo(f"{state.finished} of {state.total} videos, {_speed(state)}", err=True)

    return on_change


def _speed(state: BatchState) -> str:
    eta = "" if state.eta_s is None else f", ETA {_duration(state.eta_s)}"
    failed = f", {len(state.failed)} failed" if state.failed else ""
    return f"{state.fps:.1f} FPS{eta}{failed}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def _rich_display(plan: Plan, workers: int) -> Iterator[OnChange]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    from mpn._common.console import PlainConsole

    console = PlainConsole(stderr=True)
    bars = Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        refresh_per_second=_SHOWN_PER_S,
        transient=True,
    )
    width = min(max((len(one.unit.name) for one in plan.to_run), default=0), _LONGEST_NAME)
    width = max(width, len("videos"))
    done, count = len(plan.skipped), len(plan.to_run) + len(plan.skipped)
    total = bars.add_task(f"{'videos':{width}}", completed=done, total=count, note="")
    rows = [
        bars.add_task("", total=None, note="", visible=False)
        for _ in range(min(workers, _MOST_ROWS))
    ]

    shown = ""

    def on_change(state: BatchState, outcome: UnitOutcome | None) -> None:
        nonlocal shown
        line = _line_of(outcome, state)
        if line is not None and line != shown:
            shown = line
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        bars.update(total, completed=state.finished, total=state.total, note=_speed(state))
        running = list(state.running.values())
        for row, progress in zip(rows, [*running, *[None] * len(rows)], strict=False):
            if progress is None:
                bars.update(row, visible=False)
                continue
            expected = progress.expected
            expected = None if expected is None else max(expected, progress.done)
            bars.update(
                row,
                description=f"{progress.name[-width:]:{width}}",
                completed=progress.done,
                total=expected,
                visible=True,
            )

    with bars:
        yield on_change
