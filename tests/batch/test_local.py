"""Tests with real worker processes: each takes a second or more to start."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mpn._common import memory
from mpn.batch.batch import BatchState, run_batch
from mpn.batch.manifest import Unit
from mpn.batch.outcome import Settings, UnitOutcome
from mpn.batch.plan import plan_units
from mpn.batch.records import MEANWHILE
from mpn.batch.runners import local, process
from mpn.batch.runners.local import LocalRunner, local_runner
from mpn.errors import EngineError, MpnWarning
from tests.batch.clips import InProcessRunner, unit_of, write_inputs

FRAMES = 60
HANG_S = 60.0

CHILD = """
import json, sys
from mpn.batch.batch import run_batch
from mpn.batch.runners.local import LocalRunner
from mpn.batch.manifest import Unit
from mpn.batch.outcome import Settings
from mpn.batch.plan import plan_units

settings, units = json.loads(sys.argv[1])
settings = Settings.from_json(settings)
runner = LocalRunner(settings, 1)

def on_change(state, outcome):
    if outcome is None:
        print(runner._slots[0].worker._process.pid, flush=True)

run_batch(plan_units([Unit.from_json(unit) for unit in units], settings), runner,
          on_change=on_change)
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Settings]:
    folder = tmp_path_factory.mktemp("batch")
    return folder, write_inputs(folder, frames=FRAMES)


def masks_of(unit: Unit) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (unit.folder / "masks").iterdir()}


def unfinished_in(folder: Path) -> list[Path]:
    return [*folder.rglob("*partial*"), *folder.rglob(".mpn-*")]


def test_killed_worker_costs_one_attempt(inputs: tuple[Path, Settings]) -> None:
    folder, settings = inputs
    units = [unit_of(folder, name) for name in ("a", "b")]
    runner = LocalRunner(settings, 1)
    outcomes: list[UnitOutcome] = []

    def kill_first(state: BatchState, outcome: UnitOutcome | None) -> None:
        if outcome is not None:
            outcomes.append(outcome)
        elif not outcomes:
            worker: Any = runner._slots[0].worker
            os.kill(worker._process.pid, signal.SIGKILL)

    state = run_batch(plan_units(units, settings), runner, on_change=kill_first)
    assert [(one.name, one.state, one.attempt) for one in outcomes] == [
        ("a", "failed", 1), ("b", "done", 1), ("a", "done", 2),
    ]  # fmt: skip
    assert "SIGKILL" in outcomes[0].reason
    assert state.done.keys() == {"a", "b"}
    assert masks_of(units[0]) == masks_of(units[1])
    assert len(masks_of(units[0])) == FRAMES
    assert unfinished_in(folder) == []


@pytest.mark.skipif(sys.platform == "win32", reason="stops and continues a process")
@pytest.mark.parametrize("is_killed", [False, True])
def test_batch_waits_for_a_unit_of_another_batch(
    inputs: tuple[Path, Settings], is_killed: bool
) -> None:
    """The other batch completes it, or both of its processes are killed in it."""
    folder, settings = inputs
    unit = unit_of(folder, f"shared-{is_killed}")
    given = json.dumps([settings.as_json(), [unit.as_json()]])
    outcomes: list[UnitOutcome] = []
    with subprocess.Popen([sys.executable, "-c", CHILD, given], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        worker = int(other.stdout.readline())
        os.kill(worker, signal.SIGSTOP)  # it keeps its lock

        def on_change(state: BatchState, outcome: UnitOutcome | None) -> None:
            outcomes.extend([] if outcome is None else [outcome])
            if outcome is None or not outcome.is_in_use:
                return
            if is_killed:
                other.kill()
            os.kill(worker, signal.SIGKILL if is_killed else signal.SIGCONT)

        runner = LocalRunner(settings, 1) if is_killed else InProcessRunner(settings)
        state = run_batch(plan_units([unit], settings), runner, retry=0, on_change=on_change)
    assert outcomes[0].is_in_use
    assert (state.failed, state.in_use) == ({}, {})
    assert [one.reason for one in state.skipped] == ([] if is_killed else [MEANWHILE])
    assert list(state.done) == ([unit.name] if is_killed else [])
    assert len(masks_of(unit)) == FRAMES
    assert unfinished_in(unit.folder) == []


@pytest.mark.skipif(sys.platform != "linux", reason="waits for a process by pidfd")
def test_workers_end_when_the_batch_is_killed(inputs: tuple[Path, Settings]) -> None:
    folder, settings = inputs
    units = [unit_of(folder, name) for name in ("c", "d")]
    given = json.dumps([settings.as_json(), [unit.as_json() for unit in units]])
    with subprocess.Popen([sys.executable, "-c", CHILD, given], stdout=subprocess.PIPE) as batch:
        assert batch.stdout is not None
        pid = int(batch.stdout.readline())
        descriptor = os.pidfd_open(pid)
        batch.kill()
    try:
        assert select.select([descriptor], [], [], HANG_S)[0], "the worker runs for ever"
    finally:
        os.close(descriptor)
    assert not (units[1].folder / "done.json").exists()
    plan = plan_units(units, settings)
    state = run_batch(plan, LocalRunner(settings, 1))
    assert len(state.done) + len(plan.skipped) == 2
    assert masks_of(units[0]) == masks_of(units[1])
    assert unfinished_in(folder) == []
    assert plan_units(units, settings).to_run == ()


def test_workers_without_engines_end_the_batch(
    inputs: tuple[Path, Settings], tmp_path: Path
) -> None:
    folder, _ = inputs
    settings = write_inputs(tmp_path)
    (tmp_path / "engines" / "propagation.onnx").write_bytes(b"")
    with pytest.raises(EngineError, match=r"propagation\.onnx"):
        run_batch(plan_units([unit_of(folder, "e")], settings), LocalRunner(settings, 1))


def test_workers_that_cannot_start_end_the_batch(
    inputs: tuple[Path, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, settings = inputs
    monkeypatch.setattr(process.sys, "executable", "/bin/false")
    units = [unit_of(folder, f"f{index}") for index in range(9)]
    with pytest.raises(EngineError, match=r"worker processes end before .* exit code 1"):
        run_batch(plan_units(units, settings), LocalRunner(settings, 1))


@pytest.mark.parametrize(
    ("cores", "memory_mb", "gpus", "expected"),
    [
        (8, None, [], (8, 1, None)),
        (8, 2000, [], (2, 4, None)),
        (8, 100, [], (1, 8, None)),
        (8, None, ["0", "1"], (2, 4, ["0", "1"])),
    ],
)
def test_local_runner_fits_the_machine(
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    memory_mb: int | None,
    gpus: list[str],
    expected: tuple[int, int, Any],
) -> None:
    monkeypatch.setattr(local, "usable_cores", lambda: cores)
    monkeypatch.setattr(local, "available_memory_mb", lambda: memory_mb)
    monkeypatch.setattr(local, "visible_gpus", lambda: gpus)
    runner = local_runner(Settings(), 100)
    assert (runner.workers, runner._settings.threads, runner._gpus) == expected
    assert local_runner(Settings(), 1).workers == 1
    assert local_runner(Settings(backend="openvino"), 9)._gpus is None
    assert local_runner(Settings(threads=3), 9, workers=2)._settings.threads == 3
    if not gpus and memory_mb is None:
        assert local_runner(Settings(threads=3), 9).workers == 2
    with pytest.warns(MpnWarning, match=r"5 x 3 .* than the 8 cores .*: each worker uses 1"):
        assert local_runner(Settings(threads=3), 9, workers=5)._settings.threads == 1


def test_available_memory_is_that_of_the_control_group(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("0::/job\n")
    (tmp_path / "job").mkdir()
    for name, text in {
        "memory.max": "3000000000", "memory.current": "2500000000",
        "memory.stat": "anon 1\ninactive_file 500000000\n",
    }.items():  # fmt: skip
        (tmp_path / "job" / name).write_text(text)
    assert list(memory._group_memory_mb(tmp_path, tmp_path / "self")) == [1000]
    (tmp_path / "job" / "memory.max").write_text("max")
    assert list(memory._group_memory_mb(tmp_path, tmp_path / "self")) == []
    found = memory.available_memory_mb()
    assert found is None or found > 0
