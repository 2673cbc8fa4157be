from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpn.cli import bench as bench_module
from mpn.cli.main import _run_app, app
from mpn.runtime.bench.roofline import Peaks
from tests.builders.engine_dirs import make_engine_dir

Bench = Callable[..., tuple[int, str, str]]
HANG_S = 120.0
"""Far above what a subprocess here needs, also on a busy machine."""


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_engine_dir(tmp_path_factory.mktemp("engines") / "tiny [v1]")


@pytest.fixture(scope="module")
def done(
    engine_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Run ``mpn bench`` in a process; return it and the file that it wrote."""
    out = tmp_path_factory.mktemp("results") / "new" / "fps.json"
    command = [
        sys.executable, "-c", "from mpn.cli.main import main; main()", "bench",
        "--engine-dir", engine_dir,
        "--objects", "2", "--frame-size", "96x64", "--frames", "2", "--warmup", "1",
        "--threads", "1", "--backend", "cpu", "--variants", "plain,crf", "--json", "-o", out,
    ]  # fmt: skip
    return (
        subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=False, timeout=HANG_S
        ),
        out,
    )


@pytest.fixture
def result(done: tuple[subprocess.CompletedProcess[str], Path]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(done[1].read_text())
    return loaded


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Run ``mpn bench`` in this process: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = _run_app(app, ["bench", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_bench_process_prints_the_json_it_writes(
    done: tuple[subprocess.CompletedProcess[str], Path], result: dict[str, Any]
) -> None:
    process, out = done
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == result
    assert process.stderr.startswith("opening the engines\n")
    assert f"wrote {out}" in process.stderr
    assert [path.name for path in out.parent.iterdir()] == ["fps.json"]


def test_every_option_arrives(
    done: tuple[subprocess.CompletedProcess[str], Path], result: dict[str, Any]
) -> None:
    assert result["objects"] == [2]
    assert result["frame_size_hw"] == [64, 96]
    assert (result["frames"], result["warmup"]) == (2, 1)
    assert result["backend"]["asked"] == "cpu"
    assert result["backend"]["threads"] == 1
    assert result["engine"]["name"] == "tiny"
    assert result["engine"]["is_shipped"] is False
    assert [(run["objects"], run["variant"]) for run in result["runs"]] == [
        (2, "plain"),
        (2, "crf"),
    ]
    assert [run["crf"] for run in result["runs"]] == [False, True]


def test_tables_fit_80_columns_and_list_missing_figures(
    result: dict[str, Any], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for objects in (1, 2, 3, 5):
        for variant in ("plain", "osvos", "crf", "osvos+crf+adapt"):
            runs.append({**result["runs"][1], "objects": objects, "variant": variant})
    shown = {**result, "objects": [1, 2, 3, 5], "runs": runs, "load_average_before": 0.0}
    monkeypatch.setattr("mpn.runtime.bench.benchmark.run_benchmark", lambda *_, **__: shown)
    code, out, err = bench()
    assert (code, err) == (0, "")
    for part in (
        "tiny", "on cpu, threads: 1, 96x64, 2 frames after 1", "engine-only", "pipeline", "wall",
        "K = 5", "propagation", "osvos+crf+adapt", "measured: fine-tuning", "not measured: OSVOS",
    ):  # fmt: skip
        assert part in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out


def test_busy_machine_is_reported(
    result: dict[str, Any], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {**result, "load_average_before": 100.0}
    monkeypatch.setattr("mpn.runtime.bench.benchmark.run_benchmark", lambda *_, **__: shown)
    code, _, err = bench()
    assert code == 0
    assert err.startswith("note: the machine was busy")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--objects", "1,two"), 2, "--objects takes numbers separated by commas"),
        (("--frame-size", "480p"), 2, "--frame-size takes WIDTHxHEIGHT"),
        (("--frames", "0"), 2, "error: --frames must be a whole number of at least 1, got 0"),
        (("--frames", "x"), 2, "error: --frames must be a whole number, got 'x'"),
        (("--threads", "0"), 2, "error: --threads must be a number of threads of at least 1"),
        (("--backend", "tpu"), 2, "error: --backend must be one of 'auto', 'cpu'"),
        (
            ("--variants", "fast"),
            2,
            "error: 'fast' is no variant: plain, default, or of osvos, crf, finetune",
        ),
        (("--profile", "--objects", "1,2"), 1, "error: a profile takes one number of objects"),
        (("--profile", "--variants", "crf"), 1, "error: a profile is of the variant default"),
        (("--objects", "0"), 2, "error: a number of objects must be 1..32"),
        (("--objects", "2,2"), 2, "error: the numbers of objects must be given, each once"),
        (("--frame-size", "853x480"), 2, "error: the frame size must be at least 32x32 and even"),
        (("--engine-dir", "absent"), 1, "error: there is no engine directory at absent"),
        (("-o", "."), 1, "error: cannot write .: it is a folder"),
    ],
)
def test_bad_option_is_one_clear_error(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, says: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    got, out, err = bench(*arguments)
    assert (got, out) == (code, "")
    assert says in err
    assert err.count("\n") == 1


def test_profile_lists_stages_and_operators(
    bench: Bench, engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peaks are planted: their sizes take seconds."""
    peaks = Peaks(1e9, 1e9, 1e9)
    monkeypatch.setattr("mpn.runtime.bench.profile.measure_peaks", lambda _: peaks)
    out = tmp_path / "profile.json"
    code, printed, err = bench(
        "--profile", "--engine-dir", engine_dir, "--frame-size", "96x64", "--frames", "2",
        "--warmup", "1", "--threads", "1", "--backend", "cpu", "-o", out,
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out.read_text())
    assert "propagation" in {stage["name"] for stage in found["stages"]}
    assert "propagation" in {operator["network"] for operator in found["operators"]}
    assert sum(found["summary"].values()) == pytest.approx(1, abs=1e-3)
    assert all(stage["bytes"] is not None for stage in found["stages"])
    assert [part["name"] for part in found["other_threads"]] == ["decode", "mask PNG", "overlay"]
    assert all(part["n"] == 2 and part["min_ms"] > 0 for part in found["other_threads"])
    assert "Types of operators" in printed
    assert "of the frame: " in printed


def test_wrong_path_is_found_before_measuring(
    bench: Bench, engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Any] = []
    monkeypatch.setattr(
        "mpn.runtime.bench.benchmark.run_benchmark", lambda *a, **_: measured.append(a)
    )
    assert bench("--engine-dir", engine_dir, "-o", engine_dir)[0] == 1
    assert measured == []


def test_command_imports_nothing_heavy() -> None:
    code = (
        f"import sys; import {bench_module.__name__}\n"
        "heavy = {'numpy', 'cv2', 'scipy', 'av', 'PIL', 'mpn.engines', 'mpn.runtime.options'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == "[]"


def test_bench_unsupported_variant_is_refused(bench: Bench, tmp_path: Path) -> None:
    engine_dir = make_engine_dir(tmp_path / "engines", with_osvos=False)
    code, out, err = bench("--engine-dir", engine_dir, "--variants", "osvos")
    assert (code, out) == (1, "")
    assert err.startswith("error: variant 'osvos' needs OSVOS")
    assert err.count("\n") == 1
