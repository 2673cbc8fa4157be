from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.report.schema import check_result

from benchmarks.speed import flow_overlap
from mpn.engines.directory.manifest import FlowSource
from mpn.errors import MpnError
from mpn.runtime.host.flow import DisFlow, FlowFrame
from tests.emulation.engines import fake_engine_set
from tests.engine_dirs import make_engine_dir
from tests.synthetic import Square, squares_clip

CLIP = squares_clip([Square(1, (30, 40), 24, (1, 2))], size_hw=(96, 128), frames=5)
ROUNDS = 2


def measured(flow_check_px: float) -> dict[str, Any]:
    engines = fake_engine_set(
        frame_size_hw=(96, 128), runtime_defaults={"flow_check_px": flow_check_px}
    )
    return flow_overlap.measure(engines, CLIP.frames, CLIP.labels[0], rounds=ROUNDS)


def test_flow_overlap_measures_equal_frames() -> None:
    entry = measured(flow_check_px=5)
    assert (entry["objects"], entry["is_flow_checked"]) == (1, True)
    assert entry["ways"].keys() == {"in turn", "both at once", "ahead"}
    counted = ROUNDS * (flow_overlap.IN_A_ROW - 1)
    assert {times["n"] for times in entry["ways"].values()} == {counted}
    assert entry["ratios"]["in turn"] == {"of_minima": 1.0, "of_medians": 1.0}


def test_flow_overlap_without_flow_check_has_two_ways() -> None:
    assert measured(flow_check_px=0)["ways"].keys() == {"in turn", "ahead"}


def test_flow_overlap_different_masks_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    def still(self: DisFlow, frame0: FlowFrame, frame1: FlowFrame) -> Any:
        return np.zeros((2, 2, *frame0.size_hw), np.float32)

    monkeypatch.setattr(DisFlow, "both_ways", still)
    with pytest.raises(MpnError, match="found different masks"):
        measured(flow_check_px=5)


def test_at_once_estimates_both_flows() -> None:
    plain = DisFlow(FlowSource("opencv-dis", "fast"))
    first, second = map(plain.prepare, CLIP.frames[:2])
    once = flow_overlap.AtOnce(DisFlow(FlowSource("opencv-dis", "fast")))
    there = once.between(first, second)
    back = once.between(second, first)
    assert np.array_equal(there, plain.between(first, second))
    assert np.array_equal(back, plain.between(second, first))
    assert not np.array_equal(there, back)


def test_flow_overlap_command_writes_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flow_overlap, "SIZE_HW", (96, 128))
    directory = make_engine_dir(tmp_path / "engines", frame_size_hw=(96, 128))
    out = tmp_path / "result.json"
    given = f"--engine-dir {directory} --objects 1,2 --rounds 1 --frames 4 --threads 1 -o {out}"
    assert flow_overlap.main(given.split()) == 0
    check_result(json.loads(out.read_text()))
    assert "K = 2, ahead" in capsys.readouterr().out
