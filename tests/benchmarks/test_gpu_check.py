"""Run gpu_check.py on a machine without a GPU."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu.harness import DRY, Bench, Budget, CannotRunError, Runner, Sizes, guarded
from benchmarks.gpu.networks import parity
from benchmarks.gpu_check import BUDGETS_S, TOTAL_S, main
from benchmarks.report.schema import load_result
from mpn.engines.spec import Precision
from tests.emulation.cuda_shim.fixtures import shim as shim

WITHOUT_TORCH = "bandwidth,kernels,crf,masks,engines,speed"


def document(path: Path) -> dict[str, Any]:
    found = load_result(path)
    assert found["benchmark"] == "gpu_check"
    return found


def test_gpu_check_without_gpu_lists_what_did_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    assert main(["-o", str(out), "--sections", WITHOUT_TORCH]) == 0
    found = document(out)
    if found["device"].get("name"):
        pytest.skip("there is a GPU here")
    assert found["backend"]["used"] == "none"
    for section in ("bandwidth", "kernels", "crf", "speed"):
        assert found["sections"][section]["status"] == "cannot run"
        assert any(line.startswith(f"{section}: ") for line in found["not_measured"])
    assert "things could not run" in capsys.readouterr().out
    assert all("\n" not in line for line in found["not_measured"])


@pytest.mark.usefixtures("shim")
def test_dry_run_runs_every_section(tmp_path: Path) -> None:
    """Run through the shim on the CPU; the figures are meaningless."""
    out = tmp_path / "dry.json"
    assert main(["--dry-run", "-o", str(out)]) == 0
    found = document(out)
    assert found["not_measured"] == []
    assert {name: entry["status"] for name, entry in found["sections"].items()} == dict.fromkeys(
        BUDGETS_S, "done"
    )
    kernels = found["sections"]["kernels"]
    assert kernels["checked"] == kernels["of"]
    assert kernels["differ"] == []
    assert found["sections"]["masks"]["tiny, objects 1"]["holds"]
    assert found["sections"]["masks"]["tiny-target, objects 3"]["holds"]
    engines = found["sections"]["engines"]
    assert engines["lite-int8 is refused"]["holds"]
    roles = engines["tiny-target on cpu"]["roles"]
    assert {role: list(figures["parity"]) for role, figures in roles.items()} == {
        "propagation": ["prob"],
        "features": ["features"],
    }
    for role, figures in roles.items():
        (found_parity,) = figures["parity"].values()
        assert found_parity["verdict"] == "within the limits", (role, found_parity)
    assert found["is_dry_run"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_parity_has_a_verdict(precision: Precision) -> None:
    prob = np.random.default_rng(0).random((1, 1, 33, 33), dtype=np.float32)
    same = parity("propagation", precision, prob, prob)
    assert same["verdict"] == "within the limits"
    shifted = np.roll(prob, 1, axis=3)
    other = parity("propagation", precision, shifted, prob)
    assert other["verdict"] == "differs"
    assert other["max_abs"] == np.abs(shifted - prob).max()
    for found in (same, other):
        assert found["measures"]
    broken = parity("propagation", precision, np.full_like(prob, np.nan), prob)
    assert broken["verdict"] == "differs"


def test_runner_records_failure_and_continues() -> None:
    bench = Bench(DRY, True, None, "no device", [], [])

    def broken(bench: Bench, budget: Budget) -> dict[str, Any]:
        raise ZeroDivisionError("in line\ntwo")

    def missing(bench: Bench, budget: Budget) -> dict[str, Any]:
        return {"part": guarded(lambda: {"stream": bench.need_stream()})}

    runner = Runner(bench, total_s=math.inf)
    runner.run("broken", broken, budget_s=1)
    runner.run("missing", missing, budget_s=1)
    runner.run("fine", lambda *_: {"figure": 3}, budget_s=1)
    assert runner.sections["broken"]["status"] == "failed"
    assert runner.sections["broken"]["why"].startswith("ZeroDivisionError: in line two (test_gpu_")
    assert runner.sections["missing"]["part"] == {"status": "cannot run", "why": "no device"}
    assert runner.sections["fine"]["figure"] == 3
    lines = runner.could_not_run()
    assert lines[1] == "missing, part: no device"
    assert len(lines) == 2
    json.dumps(runner.sections)


def test_runner_without_time_skips_sections() -> None:
    assert Budget(0).is_spent
    assert not Budget(60).is_spent
    runner = Runner(Bench(Sizes(), False, None, "no device", [], []), total_s=0)
    runner.run("late", lambda *_: {}, budget_s=1)
    assert runner.sections["late"]["why"] == "the total time is spent"


def test_budgets_are_under_eight_minutes() -> None:

    assert TOTAL_S <= 450, "and the last part may run over"
    assert all(seconds <= 120 for seconds in BUDGETS_S.values())
    with pytest.raises(CannotRunError, match="no device"):
        Bench(DRY, True, None, "no device", [], []).need_stream()
