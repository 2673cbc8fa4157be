from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from mpn.batch import batch
from mpn.batch.batch import BatchState, run_batch
from mpn.batch.log import BatchLog
from mpn.batch.manifest import Unit
from mpn.batch.outcome import UnitOutcome
from mpn.batch.plan import Plan, PlannedUnit
from mpn.batch.records import MEANWHILE
from mpn.batch.runner import Attempt, Feed, OnProgress, UnitProgress, lost_outcome

Decide = Callable[[Attempt], UnitOutcome]


class FakeRunner:
    """Run attempts one by one by a function."""

    workers = 1

    def __init__(self, decide: Decide) -> None:
        self._decide = decide
        self.attempts: list[tuple[str, int]] = []
        self.is_closed = False

    def run(self, feed: Feed, on_progress: OnProgress) -> Generator[UnitOutcome, None, None]:
        try:
            while (attempt := feed.take()) is not None:
                self.attempts.append((attempt.unit.name, attempt.number))
                on_progress(UnitProgress(attempt.unit.name, "w", 1, 10))
                yield self._decide(attempt)
        finally:
            self.is_closed = True


def plan_of(*names: str, frames: int | None = 10) -> Plan:
    units = [Unit(name=name, video=name, masks={None: "m"}, out=name) for name in names]
    return Plan(tuple(PlannedUnit(unit, "new", frames) for unit in units), ())


def outcome_of(attempt: Attempt, state: Any = "done", **fields: Any) -> UnitOutcome:
    return UnitOutcome(name=attempt.unit.name, state=state, attempt=attempt.number, **fields)


def test_failures_that_may_pass_run_again_at_the_end() -> None:
    def decide(attempt: Attempt) -> UnitOutcome:
        if attempt.unit.name == "lost" and attempt.number < 3:
            return outcome_of(attempt, "failed", may_retry=True, reason="killed")
        if attempt.unit.name == "wrong":
            return outcome_of(attempt, "failed", reason="no such video")
        return outcome_of(attempt, frames=10)

    runner = FakeRunner(decide)
    state = run_batch(plan_of("lost", "wrong", "good"), runner, retry=2)
    expected = [("lost", 1), ("wrong", 1), ("good", 1), ("lost", 2), ("lost", 3)]
    assert runner.attempts == expected
    assert (state.done.keys(), state.failed.keys()) == ({"lost", "good"}, {"wrong"})
    assert (state.frames, state.finished, state.stopped) == (20, 3, "")
    runner = FakeRunner(decide)
    state = run_batch(plan_of("lost"), runner, retry=1)
    assert state.failed["lost"].attempt == 2


def test_unit_of_a_lost_worker_has_error_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runner = FakeRunner(
        lambda attempt: (
            lost_outcome(attempt, "SIGKILL", worker="w", wall_s=1.0)
            if attempt.unit.name == "a"
            else outcome_of(attempt, frames=3, warnings=("damaged",))
        )
    )
    state = run_batch(plan_of("a", "b"), runner)
    record = json.loads((tmp_path / "a" / "error.json").read_text())
    assert (record["reason"], record["attempt"]) == ("its worker ended: SIGKILL", 2)
    assert not (tmp_path / "b").exists()
    assert state.as_json()["warnings"] == 1


def test_unit_in_use_waits_and_then_runs_or_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempts of --retry count only the failures of this batch."""
    polls: list[str] = []

    def is_in_use(unit: Unit) -> bool:
        polls.append(unit.name)
        return polls.count(unit.name) < {"a": 1, "b": 3}[unit.name]

    def decide(attempt: Attempt) -> UnitOutcome:
        name, earlier = attempt.unit.name, runner.attempts.count((attempt.unit.name, 1))
        if earlier == 1:
            return outcome_of(attempt, "failed", may_retry=True, is_in_use=True)
        if name == "a":
            return outcome_of(attempt, "skipped", reason="done before")
        return outcome_of(attempt, "failed", may_retry=True)

    monkeypatch.setattr(batch, "is_in_use", is_in_use)
    monkeypatch.setattr(batch, "_IN_USE_POLL_S", 0.0)
    runner = FakeRunner(decide)
    with BatchLog(tmp_path / "log") as log:
        state = run_batch(plan_of("a", "b"), runner, retry=1, log=log)
    assert runner.attempts == [("a", 1), ("b", 1), ("a", 1), ("b", 1), ("b", 2)]
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    states = [event["state"] for event in events if event["event"] == "video"]
    assert states == ["in_use", "in_use", "skipped", "failed", "failed"]
    assert polls == ["a", "b", "b", "b"]
    assert [(one.name, one.reason) for one in state.skipped] == [("a", MEANWHILE)]
    assert (list(state.failed), state.in_use) == (["b"], {})
    assert state.finished == state.total == 2


def test_full_disk_stops_the_batch(tmp_path: Path) -> None:
    runner = FakeRunner(
        lambda attempt: outcome_of(
            attempt, "failed", may_retry=True, is_disk_full=True, reason="No space left"
        )
    )
    with BatchLog(tmp_path / "batch.jsonl") as log:
        state = run_batch(plan_of("a", "b"), runner, log=log)
    assert "No space left" in state.stopped
    assert runner.attempts == [("a", 1)]
    assert runner.is_closed
    last = json.loads((tmp_path / "batch.jsonl").read_text().splitlines()[-1])
    assert (last["state"], last["not_run"]) == ("stopped", 1)


def test_log_has_each_outcome_and_continues(tmp_path: Path) -> None:
    path = tmp_path / "new" / "batch.jsonl"
    for _ in range(2):
        with BatchLog(path) as log:
            run_batch(
                plan_of("a"), FakeRunner(lambda attempt: outcome_of(attempt, frames=5)), log=log
            )
        with path.open("a") as file:
            file.write('{"cut')  # a batch that was killed while it wrote
    lines = path.read_text().splitlines()
    assert lines[3] == '{"cut'
    events = [json.loads(line) for line in lines if line != '{"cut']
    assert [event["event"] for event in events] == ["begin", "video", "end"] * 2
    assert len({event["batch"] for event in events}) == 2
    assert (events[1]["name"], events[1]["frames"], events[1]["is_retried"]) == ("a", 5, False)


def test_log_on_a_full_disk_does_not_stop_the_batch() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with BatchLog(Path("/dev/full")) as log:
        state = run_batch(
            plan_of("a"), FakeRunner(lambda attempt: outcome_of(attempt, frames=5)), log=log
        )
    assert state.done
    assert "No space left" in log.problem


def test_interrupt_is_logged_and_stops_the_runner(tmp_path: Path) -> None:
    def interrupt(state: BatchState, outcome: UnitOutcome | None) -> None:
        raise KeyboardInterrupt

    runner = FakeRunner(lambda attempt: outcome_of(attempt))
    with BatchLog(tmp_path / "log") as log, pytest.raises(KeyboardInterrupt):
        run_batch(plan_of("a"), runner, log=log, on_change=interrupt)
    assert runner.is_closed
    assert json.loads((tmp_path / "log").read_text().splitlines()[-1])["state"] == "interrupted"


def test_eta_counts_frames_of_running_units() -> None:
    plan = plan_of("a", "b", "c")
    state = BatchState({one.unit.name: one for one in plan.to_run}, [])
    assert state.eta_s is None
    state.done["a"] = UnitOutcome(name="a", state="done", frames=10)
    state.running["b"] = UnitProgress("b", "w", 5, 10)
    state.wall_s = 3.0
    assert (state.frames_left, state.fps, state.eta_s) == (15, 5.0, 3.0)
