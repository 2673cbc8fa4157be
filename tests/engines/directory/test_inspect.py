from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mpn.engines.directory.inspect import describe_engine_dir
from mpn.engines.onnxruntime.engine import why_no_cuda
from mpn.errors import ManifestError
from tests.builders.engine_dirs import make_engine_dir

NOT_VERIFIED = {"schema_version": 1, "verified": False, "skipped": "on demand"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_engine_dir(tmp_path / "engines", with_osvos=True, external_data=True)


def test_intact_directory_has_no_problem(directory: Path) -> None:
    report = describe_engine_dir(directory)
    assert report.problem is None
    assert report.parity is None
    cpu, openvino, cuda, *plans = report.backends
    assert [backend.backend for backend in plans] == ["tensorrt", "tensorrt-rtx"]
    assert report.plans == ()
    assert (cpu.backend, cpu.usable, cpu.reason) == ("cpu", True, "opened propagation, osvos")
    assert (openvino.backend, openvino.usable) == ("openvino", True)
    assert (cuda.backend, cuda.usable) == ("cuda", why_no_cuda() is None and cuda.usable)
    assert [file.path for file in report.files["propagation"]] == [
        "propagation.onnx",
        "propagation.onnx.data",
    ]
    for files in report.files.values():
        for file in files:
            assert file.problem is None
            assert file.size_bytes == (directory / file.path).stat().st_size


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_damaged_file_is_reported_and_nothing_is_opened(directory: Path, damage: str) -> None:
    data = directory / "propagation.onnx.data"
    if damage == "changed":
        data.write_bytes(b"\0" * data.stat().st_size)
    else:
        data.unlink()
    report = describe_engine_dir(directory)
    graph, weights = report.files["propagation"]
    assert graph.problem is None
    assert damage in str(weights.problem)
    assert (weights.size_bytes is None) == (damage == "missing")
    assert report.problem == weights.problem
    assert [backend.usable for backend in report.backends] == [False] * 5
    assert all("not tried" in backend.reason for backend in report.backends)


def test_missing_onnxruntime_reports_install_hint(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    report = describe_engine_dir(directory)
    assert report.problem is not None
    assert "no backend of this machine can run" in report.problem
    assert "[cpu]" in report.problem


def test_report_is_json(directory: Path) -> None:
    report = describe_engine_dir(directory)
    value = json.loads(json.dumps(report.as_json()))
    assert value["manifest"] == json.loads((directory / "manifest.json").read_text())
    assert value["backends"]["cpu"]["usable"] is True
    assert value["problem"] is None
    assert value["parity"] is None
    (directory / "parity.json").write_text(json.dumps(NOT_VERIFIED))
    assert describe_engine_dir(directory).as_json()["parity"] == NOT_VERIFIED


def test_folder_that_is_no_engine_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"holds no manifest\.json"):
        describe_engine_dir(tmp_path)
