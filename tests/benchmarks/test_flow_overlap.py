from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flow_overlap
from mpn.engines.manifest import FlowSource
from mpn.errors import MpnError
from mpn.runtime.flow import DisFlow, FlowFrame
from result_format import check_result
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


def test_every_way_is_measured_on_as_many_frames() -> None:
    entry = measured(flow_check_px=5)
    assert (entry["objects"], entry["is_flow_checked"]) == (1, True)
    assert entry["ways"].keys() == {"in turn", "both at once", "ahead"}
    counted = ROUNDS * (flow_overlap.IN_A_ROW - 1)
    assert {times["n"] for times in entry["ways"].values()} == {counted}
    assert entry["ratios"]["in turn"] == {"of_minima": 1.0, "of_medians": 1.0}


def test_without_the_flow_check_there_is_no_flow_back_to_do_at_once() -> None:
    assert measured(flow_check_px=0)["ways"].keys() == {"in turn", "ahead"}


def test_ways_that_find_different_masks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def still(self: DisFlow, frame0: FlowFrame, frame1: FlowFrame) -> Any:
        return np.zeros((2, 2, *frame0.size_hw), np.float32)

    monkeypatch.setattr(DisFlow, "both_ways", still)
    with pytest.raises(MpnError, match="found different masks"):
        measured(flow_check_px=5)


def test_both_flows_are_estimated_when_the_first_is_asked_for() -> None:
    plain = DisFlow(FlowSource("opencv-dis", "fast"))
    first, second = map(plain.prepare, CLIP.frames[:2])
    once = flow_overlap.AtOnce(DisFlow(FlowSource("opencv-dis", "fast")))
    there = once.between(first, second)
    back = once.between(second, first)
    assert np.array_equal(there, plain.between(first, second))
    assert np.array_equal(back, plain.between(second, first))
    assert not np.array_equal(there, back)


def test_command_writes_a_result_in_the_common_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flow_overlap, "SIZE_HW", (96, 128))
    directory = make_engine_dir(tmp_path / "engines", frame_size_hw=(96, 128))
    out = tmp_path / "result.json"
    given = f"--engine-dir {directory} --objects 1,2 --rounds 1 --frames 4 --threads 1 -o {out}"
    assert flow_overlap.main(given.split()) == 0
    check_result(json.loads(out.read_text()))
    assert "K = 2, ahead" in capsys.readouterr().out
