from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.schema import ResultError, check_result, flat_options, load_result
from mpn.runtime.options import ResolvedCrf, ResolvedOptions, option_names
from tests.benchmarks.results import fps_result
from tests.conftest import REPOSITORY

Break = Callable[[dict[str, Any]], Any]


def test_check_result_valid_passes() -> None:
    check_result(fps_result())


BROKEN: dict[str, tuple[Break, str]] = {
    "older schema": (lambda r: r.update(schema=1), "schema is 1, this version"),
    "no name of a benchmark": (
        lambda r: r.update(benchmark="F P S"),
        "benchmark is 'F P S', expect",
    ),
    "no machine": (lambda r: r.pop("machine"), "machine is missing"),
    "no processor": (lambda r: r["machine"].pop("processor"), "machine.processor is missing"),
    "no backend that ran": (lambda r: r["backend"].pop("used"), "backend.used is missing"),
    "cores as text": (lambda r: r["machine"].update(cores="2"), "machine.cores must be a whole"),
    "truth value for a number": (lambda r: r.update(warmup=True), "warmup must be a number"),
    "frame size of one side": (lambda r: r.update(frame_size_hw=[480]), "frame_size_hw must be"),
    "no precision": (
        lambda r: r["engine"]["roles"]["propagation"].clear(),
        "engine.roles.propagation.precision is missing",
    ),
    "cut digest": (
        lambda r: r["engine"]["digests"].update({"propagation.onnx": "abc"}),
        "engine.digests.propagation.onnx must be a SHA-256",
    ),
    "no runs": (lambda r: r.update(runs=[]), "runs must be a list of at least one"),
    "no variant": (lambda r: r["runs"][1].pop("variant"), r"runs\[1\].variant is missing"),
    "times without p95": (
        lambda r: r["runs"][0]["wall"]["frame"].pop("p95_ms"),
        r"runs\[0\].wall.frame.p95_ms is missing: times have n, min_ms",
    ),
    "times out of order": (
        lambda r: r["runs"][0]["pipeline"]["stages"]["flow"].update(min_ms=1e6),
        r"runs\[0\].pipeline.stages.flow: n >= 1 and 0 <= min",
    ),
    "no frame timed": (
        lambda r: r["runs"][0]["pipeline"]["stages"]["flow"].update(n=0),
        "n >= 1",
    ),
    "fps of zero": (
        lambda r: r["runs"][0]["pipeline"].update(fps=0),
        r"runs\[0\].pipeline.fps must be a positive number",
    ),
    "NaN": (lambda r: r.update(other=[float("nan")]), r"other\[0\] is nan, every number must be"),
    "score in percent": (
        lambda r: r.update(total={"J-Mean": 73.4}),
        "total.J-Mean must be a fraction of 0..1, got 73.4",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_check_result_invalid_raises_with_key(case: str) -> None:
    breaks, message = BROKEN[case]
    result = fps_result()
    breaks(result)
    with pytest.raises(ResultError, match=message) as caught:
        check_result(result)
    assert "\n" not in str(caught.value)


def test_check_result_engine_must_be_present_or_null() -> None:
    result = fps_result()
    result["engine"] = None
    check_result(result)
    del result["engine"]
    with pytest.raises(ResultError, match="engine is missing"):
        check_result(result)


def test_load_result_invalid_raises_with_path(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(ResultError, match=r"r\.json: not a readable benchmark result"):
        load_result(path)
    path.write_text("{")
    with pytest.raises(ResultError, match=r"r\.json: not a readable benchmark result"):
        load_result(path)
    path.write_text("[]")
    with pytest.raises(ResultError, match=r"r\.json: the file must be an object, got a list"):
        load_result(path)
    path.write_text(json.dumps(fps_result()))
    assert load_result(path) == fps_result()


def test_load_result_replaces_names_of_0_1(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    own = {"mirror": True, "osvos": "retrieve-only", "crf": False, "doubt_area_factor": 2.0}
    old = {"adapted": {"stages": ["warp", "adapted"], "adapt": None, "options": own}}
    path.write_text(json.dumps({**fps_result(), "ablations": old}))
    now = load_result(path)["ablations"]["finetuned"]
    assert now == {
        "stages": ["warp", "finetuned"],
        "finetune": None,
        "options": {"flip_tta": True, "osvos.mode": "redetect-only", "crf": False},
    }


def test_flat_options_reads_groups() -> None:
    every = ResolvedOptions().as_json()
    flat = flat_options(every)
    assert (flat["osvos.every"], flat["size"], flat["crf"]) == (1, 480, False)
    with_crf = flat_options(ResolvedOptions(crf=ResolvedCrf()).as_json())
    assert set(with_crf) == set(option_names())
    assert with_crf["crf"] is True
    assert flat_options(flat) == flat


def test_check_result_does_not_change_result() -> None:
    result = fps_result()
    before = copy.deepcopy(result)
    check_result(result)
    assert result == before


def test_schema_command_returns_exit_code(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(fps_result()))
    bad.write_text(json.dumps({**fps_result(), "schema": 1}))

    def run(*paths: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.report.schema", *map(str, paths)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )

    assert run(good).returncode == 0
    refused = run(good, bad)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: {bad}: schema is 1")
