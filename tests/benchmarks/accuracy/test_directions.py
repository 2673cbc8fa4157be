from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.accuracy import directions
from benchmarks.accuracy.directions import PRODUCT, WEIGHTS
from benchmarks.report.schema import load_result
from tests.builders.engine_dirs import make_engine_dir


def test_directions_command_writes_result(
    davis_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_dir, out = make_engine_dir(tmp_path / "engines"), tmp_path / "directions.json"
    arguments = ["--davis-root", davis_folder, "--engine-dir", engine_dir, "--set", "val"]
    arguments += ["--threads", "1", "-o", out]
    monkeypatch.setattr("sys.argv", ["directions", *map(str, arguments)])
    assert directions.main() == 0
    result = load_result(out)
    assert set(result["sequences"]) == {"koi", "pond"}
    assert result["product"] == PRODUCT
    two = result["mean"]["anchors"]["two"]
    assert set(two) == set(WEIGHTS)
    assert all(0.5 < j["J-Mean"] <= 1 for j in two.values())
    assert two["forward"] != two["backward"]
    assert set(result["mean"]["halves"]) == {"first", "second"}
