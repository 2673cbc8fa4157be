"""The benchmark of the service, on a tiny clip and engines."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.schema import check_result
from benchmarks.speed import service
from mpn.errors import InputError
from mpn.runtime.bench.result import benchmark_document
from tests.builders.engine_dirs import make_engine_dir


def test_planted_mask_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last mask of the video is another one; frames, errors and stop are right."""
    make_inputs = service.make_inputs

    def planted(*arguments: Any) -> service.Inputs:
        inputs = make_inputs(*arguments)
        inputs.masks["video"][-1] += b"x"
        return inputs

    monkeypatch.setattr(service, "make_inputs", planted)
    monkeypatch.setattr(service, "_SAMPLE_EVERY_S", 0.05)
    given = argparse.Namespace(
        engine_dir=make_engine_dir(tmp_path / "engines", frame_size_hw=(64, 96)),
        minutes=0.01,
        sessions=2,
        frames=3,
        objects=1,
        frame_size="96x64",
        threads=1,
        out=tmp_path / "service.json",
    )
    body = service.benchmark(given)
    check_result(benchmark_document("service", body))
    assert body["errors"] == []
    assert min(body["sessions"].values()) >= 1
    assert body["differing"] == body["sessions"]["video"]
    assert not body["is_good"]
    assert body["one_more"]["status"] == 429
    assert body["stop"]["exit_code"] == 0
    assert body["stop"]["lost"] == 0
    assert body["stop"]["accepted"] >= 2 * 4


def test_memory_is_fitted_after_its_start() -> None:
    samples = [(0.0, 100.0), *((float(second), 500.0 + second / 60) for second in range(60, 301))]
    figures = service.memory_figures(samples)
    assert figures["rss_slope_per_minute_mib"] == 1.0
    assert figures["rss_settled_mib"] == 501.0
    with pytest.raises(InputError, match="too few samples"):
        service.memory_figures(samples[:2])
