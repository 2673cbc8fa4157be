"""Prefetch of the next frame during the current one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mpn.errors import VideoError
from mpn.runtime.session.passes import Passes, PassResult
from mpn.runtime.session.request import given_mask
from mpn.runtime.session.schedule import Schedule
from mpn.runtime.session.stepping import SupportsPrefetch, frames_from_arrays, with_lookahead
from mpn.types import Frame, StepResult

FRAMES = [np.full((4, 5, 3), n, np.uint8) for n in range(4)]
LABELS = np.ones((4, 5), np.uint8)


class Watched:
    """Record the calls of a pipeline."""

    supports_prefetch = True
    object_ids = (1,)

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda rgb, *_: self.called(name, int(rgb[0, 0, 0]))

    def called(self, name: str, index: int) -> StepResult:
        self.calls.append((name, index))
        return StepResult(index, LABELS, np.zeros((1, 4, 5), np.float32), (1,), ())

    def prefetch_frame(self, rgb: np.ndarray) -> None:
        self.calls.append(("prefetch_frame", int(rgb[0, 0, 0])))


def propagated(
    frames: Iterator[Frame], pipeline: Any, *, is_live: bool = False
) -> Iterator[PassResult]:
    schedule = Schedule(0, {0: given_mask(LABELS, "both")})
    return Passes(schedule, {0: LABELS}, pipeline, is_live=is_live).run(frames)


def test_propagate_announces_each_frame_one_step_early() -> None:
    pipeline: Any = Watched()
    assert isinstance(pipeline, SupportsPrefetch)
    list(propagated(frames_from_arrays(FRAMES), pipeline))
    assert pipeline.calls == [
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

    results = propagated(source(), pipeline, is_live=is_live)
    next(results)
    assert read == ([0] if is_live else [0, 1])
    next(results)
    assert (("prefetch_frame", 2) in pipeline.calls) is not is_live


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
