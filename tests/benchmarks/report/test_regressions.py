from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.regressions import TOLERANCES, figures_of, print_comparison
from tests.benchmarks.results import (
    DIGEST,
    batch_ray_result,
    batch_result,
    compare_torch_result,
    crf_result,
    davis_result,
    directions_result,
    evaluation_result,
    export_result,
    features_result,
    finetune_step_result,
    finetuning_result,
    fps_result,
    lookalikes_result,
    memory_result,
    reappearance_result,
    releases_result,
    same_masks_result,
    scaling_result,
    service_result,
)
from tests.conftest import REPOSITORY

EVERY = [
    batch_result,
    batch_ray_result,
    finetune_step_result,
    finetuning_result,
    compare_torch_result,
    crf_result,
    davis_result,
    directions_result,
    evaluation_result,
    export_result,
    fps_result,
    features_result,
    lookalikes_result,
    memory_result,
    reappearance_result,
    releases_result,
    same_masks_result,
    scaling_result,
    service_result,
]
"""Results of the benchmarks."""

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Return a function that compares two results: exit code, stdout, stderr."""

    def run(old: dict[str, Any], new: dict[str, Any], *, force: bool = False) -> Any:
        paths = tmp_path / "old.json", tmp_path / "new.json"
        for path, result in zip(paths, (old, new), strict=True):
            path.write_text(json.dumps(result))
        code = print_comparison(*paths, force=force)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def scaled(summary: dict[str, float], factor: float) -> None:
    for key in ("min_ms", "median_ms", "p95_ms"):
        summary[key] *= factor


def first(result: dict[str, Any]) -> Any:
    return result["runs"][0]


@pytest.mark.parametrize("make", EVERY)
def test_compare_same_result_has_no_regression(
    compare: Callable[..., Any], make: Callable[[], dict[str, Any]]
) -> None:
    code, out, err = compare(make(), make())
    assert (code, err) == (0, "")
    assert " 0 worse, 0 better" in out


CHANGES: dict[str, tuple[Change, int, str]] = {
    "slower by less than the tolerance": (
        lambda r: scaled(first(r)["pipeline"]["frame"], 1.14), 0, "",
    ),
    "slower": (
        lambda r: scaled(first(r)["pipeline"]["frame"], 1.2), 1, "runs[1 plain].pipeline.frame",
    ),
    "faster": (lambda r: scaled(first(r)["pipeline"]["frame"], 0.5), 0, ""),
    "slower in the median alone: a busy machine": (
        lambda r: first(r)["pipeline"]["frame"].update(median_ms=24.0, p95_ms=50.0), 0, "",
    ),
    "a stage slower by microseconds": (
        lambda r: first(r)["pipeline"]["stages"].update(
            merge={"n": 5, "min_ms": 0.04, "median_ms": 0.05, "p95_ms": 0.06}
        ), 0, "",
    ),
    "fewer FPS": (lambda r: first(r)["wall"].update(fps=25.0), 1, "runs[1 plain].wall.fps"),
    "more memory": (
        lambda r: first(r)["wall"].update(peak_memory_mib=280.0), 1,
        "runs[1 plain].wall.peak_memory_mib",
    ),
    "a little more memory": (lambda r: first(r)["wall"].update(peak_memory_mib=260.0), 0, ""),
    "first mask later": (
        lambda r: first(r)["wall"].update(until_first_mask_ms=400.0), 1, "until_first_mask_ms",
    ),
    "first mask a little later": (
        lambda r: first(r)["wall"].update(until_first_mask_ms=240.0), 0, "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_compare_regression_sets_exit_code(compare: Callable[..., Any], case: str) -> None:
    change, expected, named = CHANGES[case]
    old, new = fps_result(), fps_result()
    first(old)["pipeline"]["stages"]["merge"] = {
        "n": 5, "min_ms": 0.01, "median_ms": 0.02, "p95_ms": 0.03,
    }  # fmt: skip
    first(new)["pipeline"]["stages"]["merge"] = dict(first(old)["pipeline"]["stages"]["merge"])
    change(new)
    code, out, _ = compare(old, new)
    assert code == expected
    if named:
        (line,) = [line for line in out.splitlines() if line.startswith("regression: ")]
        assert named in line


def test_compare_row_has_old_new_and_ratio(compare: Callable[..., Any]) -> None:
    old, new = fps_result(), fps_result()
    scaled(first(new)["pipeline"]["frame"], 2.0)
    _, out, _ = compare(old, new)
    (row,) = [line for line in out.splitlines() if line.startswith("runs[1 plain].pipeline.frame ")]
    assert row.split()[-4:] == ["20", "40", "2.000", "worse"]


SCORES: dict[str, tuple[Change, int]] = {
    "J within the tolerance": (lambda d: d.update({"J-Mean": 0.696}), 0),
    "J below it": (lambda d: d.update({"J-Mean": 0.694}), 1),
    "J above": (lambda d: d.update({"J-Mean": 0.8}), 0),
    "F below it": (lambda d: d["objects"]["dog_1"].update({"F-Mean": 0.6}), 1),
}


@pytest.mark.parametrize("case", SCORES)
def test_compare_scores_use_absolute_tolerance(compare: Callable[..., Any], case: str) -> None:
    change, expected = SCORES[case]

    new = davis_result()
    change(new["ablations"]["propagation"])
    assert compare(davis_result(), new)[0] == expected


def test_compare_covers_ratios_parity_and_counts(compare: Callable[..., Any]) -> None:
    slower = evaluation_result()
    slower["results"][0].update(ratio_of_medians=15.0, ratio_of_minima=15.0)
    code, out, _ = compare(evaluation_result(), slower)
    assert code == 1
    assert "regression: results[1 J of masks].ratio" in out
    slower["results"][0].update(ratio_of_minima=21.0)  # the medians alone: a busy machine
    assert compare(evaluation_result(), slower)[0] == 0

    def parity(result: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = result["results"][0]["parity"]["cases"][0]["measures"][0]
        return found

    for value, expected in ((9e-5, 0), (2.1e-4, 1)):
        other = export_result()
        parity(other)["value"] = value
        assert compare(export_result(), other)[0] == expected
    other = export_result()
    other["results"][0]["half_weights"] -= 1
    assert compare(export_result(), other)[0] == 1


CONDITIONS: dict[str, tuple[Change, str]] = {
    "machine": (lambda r: r["machine"].update(processor="Other"), "machine.processor is Test CPU"),
    "backend": (lambda r: r["backend"].update(used="cuda"), "backend.used is cpu in one and cuda"),
    "threads": (lambda r: r["backend"].update(threads=1), "backend.threads is 2 in one and 1"),
    "engines": (
        lambda r: r["engine"]["digests"].update({"propagation.onnx": DIGEST[::-1]}),
        "engine.digests is",
    ),
    "frame size": (lambda r: r.update(frame_size_hw=[240, 426]), "frame_size_hw is [480, 854]"),
    "objects": (lambda r: r.update(objects=[1]), "objects is [1, 3] in one and [1] in the other"),
    "data": (lambda r: r.update(data={"set": "train"}), "data is None"),
}


@pytest.mark.parametrize("case", CONDITIONS)
def test_compare_different_conditions_exits_2(compare: Callable[..., Any], case: str) -> None:
    change, message = CONDITIONS[case]
    other = fps_result()
    change(other)
    code, out, err = compare(fps_result(), other)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: the results cannot be compared: {message}")
    assert err.count("\n") == 1
    code, out, err = compare(fps_result(), other, force=True)
    assert code == 0
    assert err.startswith(f"note: compared although {message}")
    assert "0 worse" in out


def test_compare_other_benchmark_exits_2(compare: Callable[..., Any]) -> None:
    for force in (False, True):
        code, _, err = compare(fps_result(), export_result(), force=force)
        assert code == 2
        assert "benchmark is fps in one and export_table in the other" in err
        assert "--force" not in err


def test_compare_lists_figures_of_one_result_only(compare: Callable[..., Any]) -> None:
    new = fps_result()
    del first(new)["pipeline"]["stages"]["flow"]
    code, out, _ = compare(fps_result(), new)
    assert code == 0
    assert "old.json: runs[1 plain].pipeline.stages.flow\n" in out


def test_figures_have_unique_paths_and_tolerances() -> None:
    for make in EVERY:
        figures = list(figures_of(make()))
        assert len(dict(figures)) == len(figures) > 0
        assert {figure.kind for _, figure in figures} <= TOLERANCES.keys()


def test_compare_command_returns_exit_code(tmp_path: Path) -> None:
    slower, broken = fps_result(), tmp_path / "broken.json"
    scaled(first(slower)["pipeline"]["frame"], 3.0)
    paths = tmp_path / "old.json", tmp_path / "new.json"
    for path, result in zip(paths, (fps_result(), slower), strict=True):
        path.write_text(json.dumps(result))
    broken.write_text("{}")

    def run(old: Path, new: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.report", "--compare", old, new],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )

    assert run(paths[0], paths[0]).returncode == 0
    assert run(*paths).returncode == 1
    refused = run(paths[0], broken)
    assert refused.returncode == 2
    assert refused.stderr == f"error: {broken}: schema is missing\n"
