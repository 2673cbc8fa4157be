from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accuracy.precision import main
from benchmarks.report.schema import load_result
from tests.benchmarks.accuracy.conftest import SIZE_HW
from tests.builders.engine_dirs import make_engine_dir


def renamed(engines: Path, to: Path, **changed: Any) -> Path:
    """Copy an engine directory under another name."""
    shutil.copytree(engines, to)
    manifest = json.loads((to / "manifest.json").read_text())
    (to / "manifest.json").write_text(json.dumps(manifest | {"name": to.name} | changed))
    return to


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr("sys.argv", ["precision.py", *map(str, arguments)])
    return main()


def test_precision_same_engines_agree(
    davis_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engines = make_engine_dir(tmp_path / "plain", frame_size_hw=SIZE_HW)
    same = renamed(engines, tmp_path / "same")
    other = renamed(engines, tmp_path / "other", runtime_defaults={"size": 24})
    results = {}
    for directory in (same, other):
        out = tmp_path / f"{directory.name}.json"
        code = run(
            monkeypatch, "--davis-root", davis_folder, "--engine-dir", engines, "--other",
            directory, "--threads", "1", "-o", out,
        )  # fmt: skip
        assert code == 0
        results[directory.name] = load_result(out)
    agreed = results["same"]
    assert agreed["mask_iou"]["mean"] == 1.0
    assert set(agreed["mask_iou"]["objects"]) == {"pond_1", "pond_2", "koi_1"}
    first, second = agreed["sides"].values()
    assert first["J-Mean"] == second["J-Mean"] > 0
    assert first["size_bytes"] == sum(f.stat().st_size for f in engines.rglob("*") if f.is_file())
    assert list(results["other"]["sides"]) == ["tiny", "other"]
    assert results["other"]["mask_iou"]["mean"] < 0.99


def test_precision_same_name_exits_1(
    davis_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engines = make_engine_dir(tmp_path / "plain", frame_size_hw=SIZE_HW)
    code = run(
        monkeypatch, "--davis-root", davis_folder, "--engine-dir", engines, "--other", engines,
        "-o", tmp_path / "out.json",
    )  # fmt: skip
    assert code == 1
    assert "both engine directories have the name 'tiny'" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
