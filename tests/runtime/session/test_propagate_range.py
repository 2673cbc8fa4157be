"""Ranges of a video: cancelled, closed, and in several threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpn
from mpn.errors import InputError
from mpn.runtime.pipeline import Pipeline
from mpn.runtime.session.propagate import propagate_range
from mpn.types import StepResult, Track
from tests.emulation.engines import fake_engine_set
from tests.runtime.media.clips import SCENE_HW, level_frame, scene, scene_labels, write_video
from tests.runtime.session.test_propagate import SIZE_HW, FakePipeline, frames_of, mask

FRAMES = 8
VIDEO = [level_frame(i) for i in range(FRAMES)]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mp4", VIDEO)


@pytest.mark.parametrize(
    ("given", "first", "last", "calls"),
    [
        (2, 2, 4, [("start", 2), ("step", 3), ("step", 4)]),
        # The mask is outside of the range.
        (0, 2, 3, [("start", 0), ("step", 1), ("step", 2), ("step", 3)]),
        (7, 5, 5, [("start", 7), ("step", 6), ("step", 5)]),
        (4, 3, 5, [("start", 4), ("step", 3), ("start", 4), ("step", 5)]),
    ],
)
@pytest.mark.parametrize("is_path", [True, False])
def test_range_computes_its_frames_only(
    clip: Path, given: int, first: int, last: int, calls: list[Any], is_path: bool
) -> None:
    pipeline = FakePipeline()
    video: Any = clip if is_path else np.stack(VIDEO)
    found = list(propagate_range(video, {given: mask(1)}, first, last, pipeline=pipeline))
    assert [frame for frame, _, _ in found] == list(range(first, last + 1))
    assert frames_of(pipeline) == calls
    for _, labels, _ in found:
        np.testing.assert_array_equal(labels, mask(1))


def test_range_has_confidences_and_the_masks_of_a_whole_run(tmp_path: Path) -> None:
    frames = scene(6)
    with Pipeline(fake_engine_set(frame_size_hw=SCENE_HW)) as pipeline:
        masks = {1: scene_labels(1), 4: scene_labels(4)}
        whole = list(mpn.propagate(frames, masks, pipeline=pipeline))
        part = list(mpn.propagate_range(frames, masks, 2, 4, pipeline=pipeline))
    assert [found.frame for found in part] == [2, 3, 4]
    for found in part:
        np.testing.assert_array_equal(found.labels, whole[found.frame].labels)
        assert found.confidences.keys() == {1, 2}
        assert all(0.5 < value <= 1 for value in found.confidences.values())


@pytest.mark.parametrize(
    ("masks", "first", "last", "message"),
    [
        ({0: mask(1)}, 3, 2, "0 <= first <= last, got 3..2"),
        ({}, 0, 2, "no mask was given"),
        ({"1": mask(1)}, 1, 3, "a whole number from 0, got '1'"),
        ({1.5: mask(1)}, 1, 3, "a whole number from 0, got 1.5"),
        ({-1: mask(1)}, 1, 3, "a whole number from 0, got -1"),
        (None, 1, 3, r"masks must be a mapping, .* got NoneType"),
        ({1: None}, 1, 3, "labels must be"),
        ({1: mask(1)}, None, 3, r"first must be the index of a frame, .* got None"),
        ({9: mask(1)}, 0, 2, "mask was given for frame 9, but the last frame is 7"),
        ({0: np.zeros((4, 4), np.uint8)}, 0, 2, "the mask is 4x4"),
    ],
)
def test_range_that_cannot_be_used_is_refused(
    clip: Path, masks: Any, first: int, last: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        list(propagate_range(clip, masks, first, last, pipeline=FakePipeline()))


@pytest.mark.parametrize("is_event", [True, False])
@pytest.mark.parametrize("given", [0, 7])
def test_cancelled_range_ends_within_a_frame(clip: Path, given: int, is_event: bool) -> None:
    event = threading.Event()

    class CancellingPipeline(FakePipeline):
        def step(self, rgb: np.ndarray) -> StepResult:
            if len(self.calls) == 3:
                event.set()
            return super().step(rgb)

    pipeline = CancellingPipeline()
    cancel: Any = event if is_event else event.is_set
    found = list(propagate_range(clip, {given: mask(1)}, 0, 7, cancel=cancel, pipeline=pipeline))
    assert len(pipeline.calls) == 4
    assert len(found) == (4 if given == 0 else 0)
    assert "mpn-reader" not in {thread.name for thread in threading.enumerate()}


class SlowPipeline(FakePipeline):
    """Records the thread of each call, and which generators overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[int] = []

    def start(self, rgb: np.ndarray, labels: np.ndarray) -> StepResult:
        self.threads.append(threading.get_ident())
        return super().start(rgb, labels)

    def step(self, rgb: np.ndarray) -> StepResult:
        self.threads.append(threading.get_ident())
        return super().step(rgb)

    def result(self) -> StepResult:
        result = super().result()
        tracks = (Track(1, "tracked", "propagation", 9, (0, 0, 3, 3), 0.75),)
        return StepResult(
            result.index, result.labels, result.probs, result.object_ids, tracks, result.timings
        )


@pytest.mark.parametrize("cancel", [True, 0])
def test_range_takes_an_event_or_function_to_cancel(clip: Path, cancel: Any) -> None:
    with pytest.raises(InputError, match=f"a function or None, got {cancel!r}"):
        propagate_range(clip, {0: mask(1)}, 0, 2, cancel=cancel, pipeline=FakePipeline())


def test_threads_share_a_pipeline_one_after_another(clip: Path) -> None:
    pipeline = SlowPipeline()
    both = threading.Barrier(2)

    def run(object_id: int) -> list[Any]:
        both.wait()
        return list(propagate_range(clip, {0: mask(object_id)}, 0, 7, pipeline=pipeline))

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(run, (1, 2)))
    for object_id, found in zip((1, 2), results, strict=True):
        assert [frame for frame, _, _ in found] == list(range(8))
        assert all(np.array_equal(labels, mask(object_id)) for _, labels, _ in found)
        assert found[5].confidences == {1: 0.75}
    changes = sum(a != b for a, b in zip(pipeline.threads, pipeline.threads[1:], strict=False))
    assert changes == 1


def test_second_generator_of_a_thread_is_refused_until_close(clip: Path) -> None:
    pipeline = FakePipeline()
    first = propagate_range(clip, {0: mask(1)}, 0, 7, pipeline=pipeline)
    next(first)
    second = propagate_range(clip, {0: mask(2)}, 0, 7, pipeline=pipeline)
    with pytest.raises(InputError, match="already has a generator that uses the pipeline"):
        next(second)
    first.close()
    assert next(propagate_range(clip, {0: mask(2)}, 0, 1, pipeline=pipeline)).frame == 0
    assert mask(1).shape == SIZE_HW
