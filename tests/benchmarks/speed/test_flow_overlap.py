from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.report.schema import check_result
from benchmarks.speed import flow_overlap
from mpn.runtime.host.backend import HostBackend
from tests.builders.engine_dirs import make_engine_dir


def test_command_writes_a_result_in_the_common_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flow_overlap, "SIZE_HW", (96, 128))
    directory = make_engine_dir(tmp_path / "engines", frame_size_hw=(96, 128))
    out = tmp_path / "result.json"
    given = f"--engine-dir {directory} --objects 1,2 --rounds 1 --frames 6 --threads 1 -o {out}"
    assert flow_overlap.main(given.split()) == 0
    check_result(json.loads(out.read_text()))
    assert "K = 2, fast" in capsys.readouterr().out
    assert HostBackend.supports_prefetch
