"""Prefetch of the next frame during the current one."""

from __future__ import annotations

from collections.abc import Iterator
from threading import current_thread
from typing import Any

import numpy as np
import pytest

from mpn.errors import InputError, VideoError
from mpn.runtime.host.flow import DisFlow
from mpn.runtime.pipeline import Pipeline, PipelineOptions
from mpn.runtime.session.propagate import (
    SupportsPrefetch,
    frames_from_arrays,
    propagate_frames,
    with_lookahead,
)
from mpn.types import Frame
from tests.emulation.engines import fake_engine_set
from tests.runtime.pipelines import PLAIN, TWO

FRAMES = [np.full((4, 5, 3), n, np.uint8) for n in range(4)]
LABELS = np.ones((4, 5), np.uint8)


class Watched:
    """Records the calls of a pipeline."""

    supports_prefetch = True
    object_ids = (1,)

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda rgb, *_: self.calls.append((name, int(rgb[0, 0, 0])))

    def prefetch_frame(self, rgb: np.ndarray) -> None:
        self.calls.append(("prefetch_frame", int(rgb[0, 0, 0])))


def test_propagate_announces_each_frame_one_step_early() -> None:
    pipeline: Any = Watched()
    assert isinstance(pipeline, SupportsPrefetch)
    list(propagate_frames(frames_from_arrays(FRAMES), pipeline, LABELS))
    assert pipeline.calls == [
        ("prefetch_frame", 1),
        ("start", 0),
        ("prefetch_frame", 2),
        ("step", 1),
        ("prefetch_frame", 3),
        ("step", 2),
        ("step", 3),
    ]


@pytest.mark.parametrize("is_live", [False, True])
def test_a_live_source_is_not_waited_for(is_live: bool) -> None:
    pipeline: Any = Watched()
    read: list[int] = []

    def source() -> Iterator[Frame]:
        for frame in frames_from_arrays(FRAMES):
            read.append(frame.index)
            yield frame

    results = propagate_frames(source(), pipeline, LABELS, is_live=is_live)
    next(results)
    assert read == ([0] if is_live else [0, 1])
    assert (("prefetch_frame", 1) in pipeline.calls) is not is_live


def test_a_video_that_is_cut_short_is_worked_on_up_to_there() -> None:
    def source() -> Iterator[Frame]:
        yield from frames_from_arrays(FRAMES[:2])
        raise VideoError("cut short")

    pairs = with_lookahead(source())
    seen = [next(pairs), next(pairs)]
    with pytest.raises(VideoError, match="cut short"):
        next(pairs)
    assert [(frame.index, following and following.index) for frame, following in seen] == [
        (0, 1),
        (1, None),
    ]
    assert list(with_lookahead(iter(()))) == []


def probs(*, announced: list[int], fails_at: int = -1, flow_check_px: float = 3.0) -> np.ndarray:
    """Segment five frames; ``announced`` has the frame announced before each step."""
    options = PipelineOptions(flow_check_px=flow_check_px, size=40)
    results = []
    with Pipeline(fake_engine_set(preprocessing=PLAIN), options=options) as pipeline:
        pipeline.start(TWO.frames[0], TWO.labels[0])
        for n, frame in enumerate(TWO.frames[1:6], start=1):
            if announced:
                pipeline.prefetch_frame(TWO.frames[announced[n - 1]])
            if n == fails_at:
                with pytest.raises(InputError, match="uint8"):
                    pipeline.step(frame.astype(np.float32))
            results.append(pipeline.step(frame).probs)
            if n == 3:
                labels = np.where(TWO.labels[3] == 2, 2, 0).astype(np.uint8)
                results.append(pipeline.correct(labels).probs)
            if n == 4:
                results.append(pipeline.resume_at(TWO.frames[4], TWO.labels[4]).probs)
    return np.stack(results)


@pytest.mark.parametrize("flow_check_px", [0.0, 3.0])
def test_prefetch_on_host_changes_no_bit(flow_check_px: float) -> None:
    expected = probs(announced=[], flow_check_px=flow_check_px)
    for announced in ([2, 3, 4, 5, 6], [7, 1, 9, 0, 3]):  # the next frame, and wrong ones
        given = probs(announced=announced, fails_at=2, flow_check_px=flow_check_px)
        assert given.tobytes() == expected.tobytes()


def test_prefetch_on_host_runs_in_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    estimate = DisFlow.estimate

    def noted(*args: Any) -> Any:
        threads.append(current_thread().name.partition("_")[0])
        return estimate(*args)

    monkeypatch.setattr(DisFlow, "estimate", noted)
    probs(announced=[2, 3, 4, 5, 6], flow_check_px=0.0)
    assert threads.count("mpn-flow") >= 3


def test_prefetch_error_is_raised_by_its_own_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    estimate, calls = DisFlow.estimate, iter(range(100))

    def second_fails(*args: Any) -> Any:
        if next(calls) == 1:
            raise InputError("flow fails")
        return estimate(*args)

    monkeypatch.setattr(DisFlow, "estimate", second_fails)
    options = PipelineOptions(flow_check_px=0.0)
    with Pipeline(fake_engine_set(preprocessing=PLAIN), options=options) as pipeline:
        pipeline.start(TWO.frames[0], TWO.labels[0])
        pipeline.prefetch_frame(TWO.frames[2])
        pipeline.step(TWO.frames[1])
        with pytest.raises(InputError, match="flow fails"):
            pipeline.step(TWO.frames[2])
        assert pipeline.step(TWO.frames[2]).index == 2
