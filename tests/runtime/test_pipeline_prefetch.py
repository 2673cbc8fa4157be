"""Prefetch of the next frame during the current one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from mpn.errors import EngineError, VideoError
from mpn.runtime.host.flow import DisFlow
from mpn.runtime.host.target import TargetStage
from mpn.runtime.pipeline import Pipeline
from mpn.runtime.session.passes import Passes, PassResult
from mpn.runtime.session.request import given_mask
from mpn.runtime.session.schedule import Schedule
from mpn.runtime.session.stepping import SupportsPrefetch, frames_from_arrays, with_lookahead
from mpn.types import Frame, StepResult
from tests.builders.clips import Square, squares_clip
from tests.emulation.engines import pooled_colours
from tests.runtime.pipelines import make

FRAMES = [np.full((4, 5, 3), n, np.uint8) for n in range(4)]
LABELS = np.ones((4, 5), np.uint8)
SCORED = squares_clip([Square(3, (24, 16), 30, (2, 1))], size_hw=(65, 97), frames=8)


def score_and_prior(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a propagation network whose output depends on flow and features."""
    return {"prob": inputs["rgb_prob_score"][:, 3:].mean(axis=1, keepdims=True)}


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


def scored(**given: Any) -> Pipeline:
    given.setdefault("propagation", score_and_prior)
    return make(features=pooled_colours, takes_score=True, **given)


def announced(pipeline: Pipeline, following: Callable[[int], np.ndarray | None]) -> list[bytes]:
    """Run a clip; announce ``following(n)`` before frame n."""
    pipeline.start(SCORED.frames[0], SCORED.labels[0])
    done = []
    for n, frame in enumerate(SCORED.frames[1:], 1):
        after = following(n)
        if after is not None:
            pipeline.prefetch_frame(after)
        result = pipeline.step(frame)
        done.append(result.labels.tobytes() + result.probs.tobytes())
    return done


def after(n: int) -> np.ndarray | None:
    return SCORED.frames[n + 1] if n + 1 < len(SCORED.frames) else None


@pytest.mark.parametrize("options", [{}, {"flow_check_px": 2.0, "size": 48}])
def test_results_with_prefetch_are_the_same(options: dict[str, Any]) -> None:
    with scored(options=options) as pipeline:
        expected = announced(pipeline, lambda n: None)
        features = len(pipeline.engines.features.calls)  # type: ignore[union-attr]
    with scored(options=options) as pipeline:
        assert announced(pipeline, after) == expected
        assert len(pipeline.engines.features.calls) == features  # type: ignore[union-attr]
        # Announced and not given: another frame, one of another size, one of another type.
        assert announced(pipeline, lambda n: SCORED.frames[-n - 1]) == expected
        assert announced(pipeline, lambda n: SCORED.frames[n][:, :40]) == expected
        assert announced(pipeline, lambda n: SCORED.frames[n].astype(np.float32)) == expected
    assert len(set(expected)) == len(expected)


def test_next_frame_is_computed_during_the_current_one() -> None:
    """The network of frame 1 waits until flow and features of frame 2 are done."""
    has_features = threading.Event()

    def features(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = pooled_colours(inputs)
        if started:
            has_features.set()
        return found

    def late(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert has_features.wait(60)
        return score_and_prior(inputs)

    started: list[bool] = []
    with make(features=features, takes_score=True, propagation=late) as pipeline:
        pipeline.start(SCORED.frames[0], SCORED.labels[0])
        started.append(True)
        pipeline.prefetch_frame(SCORED.frames[2])
        pipeline.step(SCORED.frames[1])


@pytest.mark.parametrize(("owner", "name"), [(TargetStage, "features"), (DisFlow, "estimate")])
def test_error_of_a_prefetched_frame_is_its_own(
    owner: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second call is that for the announced frame 2."""
    calls, original = list[int](), getattr(owner, name)

    def broken(*args: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 2:
            raise EngineError("broken")
        return original(*args)

    with scored() as pipeline:
        expected = announced(pipeline, lambda n: None)
        monkeypatch.setattr(owner, name, broken)
        pipeline.start(SCORED.frames[0], SCORED.labels[0])
        pipeline.prefetch_frame(SCORED.frames[2])
        done = [pipeline.step(SCORED.frames[1])]
        with pytest.raises(EngineError, match="broken"):
            pipeline.step(SCORED.frames[2])
        done.append(pipeline.step(SCORED.frames[2]))
    assert [r.labels.tobytes() + r.probs.tobytes() for r in done] == expected[:2]
