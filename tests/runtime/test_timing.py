from __future__ import annotations

from time import sleep

import pytest

from mpn.runtime.timing import StageTimer


def test_stage_times_accumulate_over_frames() -> None:
    timer = StageTimer()
    for _ in range(2):
        with timer.stage("warp"):
            sleep(0.002)
    first = timer.finish_frame()
    with timer.stage("warp"), timer.stage("merge"):
        sleep(0.001)
    second = timer.finish_frame()
    assert first["warp"] >= 0.004
    assert set(second) == {"warp", "merge"}
    assert second["merge"] <= second["warp"]
    assert timer.total_s["warp"] == pytest.approx(first["warp"] + second["warp"])
    assert timer.total_s["merge"] == second["merge"]
    assert timer.finish_frame() == {}


def test_failed_stage_is_timed_and_frame_can_be_dropped() -> None:
    timer = StageTimer()
    with pytest.raises(RuntimeError), timer.stage("flow"):
        raise RuntimeError
    timer.drop_frame()
    assert timer.finish_frame() == {}
    assert timer.total_s == {}
