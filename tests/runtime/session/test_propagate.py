from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpn.errors import InputError, MaskError, VideoError
from mpn.masks import save_labels
from mpn.runtime.media.video import open_video
from mpn.runtime.options import FinetuneOptions, PipelineOptions
from mpn.runtime.pipeline import Pipeline
from mpn.runtime.session.propagate import propagate
from mpn.types import StepResult
from tests.builders.learning_dirs import make_adaptable_engine_dir
from tests.emulation.engines import fake_engine_set
from tests.runtime.media.clips import index_from_frame, level_frame, write_folder, write_video

SIZE_HW = (48, 64)


def mask(*ids: int) -> np.ndarray:
    """Draw one square per id in a row."""
    labels = np.zeros(SIZE_HW, np.uint8)
    for object_id in ids:
        labels[5:15, 10 * object_id - 8 : 10 * object_id] = object_id
    return labels


class FakePipeline:
    """Record its calls; objects do not move."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.labels = np.zeros(SIZE_HW, np.uint8)
        self.index = -1

    @property
    def object_ids(self) -> tuple[int, ...]:
        return tuple(int(k) for k in np.unique(self.labels) if k)

    def start(self, rgb: np.ndarray, labels: np.ndarray) -> StepResult:
        self.calls.append(("start", index_from_frame(rgb)))
        self.labels, self.index = labels.copy(), 0
        return self.result()

    def step(self, rgb: np.ndarray) -> StepResult:
        self.calls.append(("step", index_from_frame(rgb)))
        self.index += 1
        return self.result()

    def correct(self, labels: np.ndarray) -> StepResult:
        return self.given("correct", labels)

    def add_objects(self, labels: np.ndarray) -> StepResult:
        return self.given("add", labels)

    def given(self, name: str, labels: np.ndarray) -> StepResult:
        ids = tuple(int(k) for k in np.unique(labels) if k)
        self.calls.append((name, *ids))
        self.labels = np.where(labels > 0, labels, self.labels)
        return self.result()

    def result(self) -> StepResult:
        ids = self.object_ids
        return StepResult(
            index=self.index,
            labels=self.labels.copy(),
            probs=np.zeros((len(ids), *SIZE_HW), np.float32),
            object_ids=ids,
            tracks=(),
            timings={"stage": 1.0},
        )


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mp4", [level_frame(i) for i in range(8)])


def test_every_frame_is_yielded_the_first_with_the_labels_given(clip: Path) -> None:
    pipeline = FakePipeline()
    results = list(propagate(clip, mask(1), pipeline=pipeline))
    assert [result.index for result in results] == list(range(8))
    np.testing.assert_array_equal(results[0].labels, mask(1))
    assert pipeline.calls == [("start", 0), *(("step", i) for i in range(1, 8))]


def test_inputs_are_opened_at_the_first_result() -> None:
    results = propagate("nowhere.mp4", mask(1), pipeline=FakePipeline())
    with pytest.raises(VideoError, match="no such video"):
        next(results)


def test_masks_may_be_files(clip: Path, tmp_path: Path) -> None:
    save_labels(tmp_path / "first.png", mask(3))
    results = propagate(clip, tmp_path / "first.png", pipeline=FakePipeline())
    assert next(results).object_ids == (3,)
    results.close()


def test_start_and_end_choose_the_frames(clip: Path) -> None:
    pipeline = FakePipeline()
    list(propagate(clip, mask(1), pipeline=pipeline, start=2, end=5))
    assert pipeline.calls == [("start", 2), ("step", 3), ("step", 4)]


def test_an_open_source_and_arrays_are_taken_too(clip: Path) -> None:
    from_source, from_arrays = FakePipeline(), FakePipeline()
    with open_video(clip) as video:
        list(propagate(video, mask(1), pipeline=from_source, start=1, end=4))
    frames = (level_frame(i) for i in range(8))
    list(propagate(frames, mask(1), pipeline=from_arrays, start=1, end=4))
    assert from_source.calls == from_arrays.calls == [("start", 1), ("step", 2), ("step", 3)]


def test_corrections_correct_known_objects_and_add_new_ones(clip: Path) -> None:
    pipeline = FakePipeline()
    corrections = {3: mask(2, 4), 5: mask(5), 6: mask(1)}
    results = list(propagate(clip, mask(1, 2), corrections=corrections, pipeline=pipeline))
    assert pipeline.calls[3:7] == [("step", 3), ("correct", 2), ("add", 4), ("step", 4)]
    assert pipeline.calls[8:] == [("add", 5), ("step", 6), ("correct", 1), ("step", 7)]
    assert [result.object_ids for result in results][2:6] == [
        (1, 2), (1, 2, 4), (1, 2, 4), (1, 2, 4, 5),
    ]  # fmt: skip
    assert results[3].timings == {"stage": 3.0}  # step, correct and add together


@pytest.mark.parametrize(
    ("corrections", "start", "message"),
    [
        ({0: mask(1)}, None, "two masks were given for frame 0"),
        ({1: mask(1)}, 3, "given for frame 1, but the first frame to segment is 3"),
        ({99: mask(1)}, None, "mask was given for frame 99, but the last frame is 7"),
        ({2: np.zeros((4, 4), np.uint8)}, None, "the mask is 4x4 but the frame is 64x48"),
    ],
)
def test_propagate_invalid_corrections_are_refused(
    clip: Path, corrections: dict[int, np.ndarray], start: int | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        list(
            propagate(clip, mask(1), corrections=corrections, start=start, pipeline=FakePipeline())
        )


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (np.zeros((4, 6), np.uint8), InputError, "the mask is 6x4 but the frame is 64x48"),
        ("absent.png", MaskError, "no such mask"),
    ],
)
def test_unusable_first_mask(clip: Path, given: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        next(propagate(clip, given, pipeline=FakePipeline()))  # type: ignore[arg-type]


def test_no_frame_at_all_is_an_error() -> None:
    with pytest.raises(InputError, match="no frame"):
        list(propagate([], mask(1), pipeline=FakePipeline()))


def test_closing_early_ends_the_reader(clip: Path) -> None:
    results = propagate(clip, mask(1), pipeline=FakePipeline())
    next(results)
    results.close()
    assert "mpn-reader" not in {thread.name for thread in threading.enumerate()}


def test_a_failing_pipeline_ends_the_reader(clip: Path) -> None:
    class FailingPipeline(FakePipeline):
        def step(self, rgb: np.ndarray) -> StepResult:
            raise RuntimeError("kernel")

    with pytest.raises(RuntimeError, match="kernel"):
        list(propagate(clip, mask(1), pipeline=FailingPipeline()))
    assert "mpn-reader" not in {thread.name for thread in threading.enumerate()}


def test_frames_are_not_kept(tmp_path: Path) -> None:
    alive: weakref.WeakSet[Buffer] = weakref.WeakSet()
    most = 0

    def frames() -> Iterator[np.ndarray]:
        for index in range(60):
            buffer = level_frame(index).view(Buffer)
            alive.add(buffer)
            yield buffer
            del buffer

    for _ in propagate(frames(), mask(1), pipeline=FakePipeline()):
        most = max(most, len(alive))
    # Four are read ahead, one is in the reader, one or two are in use.
    assert most <= 8


class Buffer(np.ndarray):
    """An array with weak references, which ndarray itself does not support."""

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:  # type: ignore[override]
        return self is other


def test_real_pipeline_holds_still_objects_still(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    folder = write_folder(tmp_path / "still", [noise] * 5)
    labels = np.zeros((64, 96), np.uint8)
    labels[20:40, 30:60] = 7
    pipeline = Pipeline(fake_engine_set(frame_size_hw=(64, 96)))
    for result in propagate(folder, labels, pipeline=pipeline):
        np.testing.assert_array_equal(result.labels, labels)
        assert result.object_ids == (7,)


def test_networks_are_fine_tuned_before_the_first_result(tmp_path: Path) -> None:
    directory = make_adaptable_engine_dir(tmp_path / "engines", frame_size_hw=SIZE_HW)
    frames = [level_frame(index, SIZE_HW) for index in range(3)]
    options = PipelineOptions(finetune=FinetuneOptions(steps=2, size=65, batch=1))
    results = list(
        propagate(frames, mask(1, 2), engine_dir=directory, backend="cpu", options=options)
    )
    assert ["finetune" in result.timings for result in results] == [True, False, False]
    plain = list(propagate(frames, mask(1, 2), engine_dir=directory, backend="cpu"))
    assert "finetune" not in plain[0].timings
    assert not np.array_equal(plain[2].probs, results[2].probs)


def test_propagate_keeps_no_array_of_the_caller() -> None:
    """One array is filled for each frame, and the labels change after the call."""

    def reused() -> Iterator[np.ndarray]:
        rgb = level_frame(0)
        for index in range(8):
            rgb[:] = level_frame(index)
            yield rgb

    pipeline, first, later = FakePipeline(), mask(1), mask(2)
    results = propagate(reused(), first, corrections={3: later}, pipeline=pipeline)
    first[:], later[:] = 0, 0
    assert len(list(results)) == 8
    steps = [call for call in pipeline.calls if call[0] in ("start", "step")]
    assert steps == [("start", 0), *(("step", index) for index in range(1, 8))]
    assert ("add", 2) in pipeline.calls


def test_correction_file_belongs_to_the_image_of_its_name(tmp_path: Path) -> None:
    write_folder(tmp_path / "v1", [level_frame(i) for i in range(5)], pattern="{:d}0.png")
    save_labels(tmp_path / "20.png", mask(2))
    for index in (2, 20):
        pipeline = FakePipeline()
        list(
            propagate(
                tmp_path / "v1",
                mask(1),
                corrections={index: tmp_path / "20.png"},
                pipeline=pipeline,
            )
        )
        assert pipeline.calls.index(("add", 2)) == pipeline.calls.index(("step", 2)) + 1
    with pytest.raises(InputError, match="name of frame 2"):
        next(propagate(tmp_path / "v1", tmp_path / "20.png", pipeline=FakePipeline()))


# --- masks of any frame -----------------------------------------------------------------------


def frames_of(pipeline: FakePipeline) -> list[tuple[object, ...]]:
    return [call for call in pipeline.calls if call[0] in ("start", "step")]


@pytest.mark.parametrize("kind", ["path", "source", "array", "list"])
def test_masks_of_any_frame_run_both_ways(clip: Path, kind: str) -> None:
    frames = [level_frame(i) for i in range(8)]
    pipeline = FakePipeline()
    given: object = {"path": clip, "array": np.stack(frames), "list": frames}.get(kind)
    with open_video(clip) as source:
        results = list(
            propagate(source if given is None else given, {3: mask(1, 2)}, pipeline=pipeline)
        )
    assert [result.index for result in results] == list(range(8))
    assert frames_of(pipeline) == [
        ("start", 3), ("step", 2), ("step", 1), ("step", 0),
        ("start", 3), ("step", 4), ("step", 5), ("step", 6), ("step", 7),
    ]  # fmt: skip
    for result in results:
        np.testing.assert_array_equal(result.labels, mask(1, 2))
        assert result.probs.shape == (2, *SIZE_HW)


@pytest.mark.parametrize(
    ("video", "masks", "options", "message"),
    [
        ("frames", {3: mask(1)}, {}, "these frames can only be read forward"),
        ("clip", {3: mask(1)}, {"corrections": {4: mask(1)}}, "give all masks in one mapping"),
        ("clip", {"1": mask(1)}, {}, "a whole number from 0, got '1'"),
        ("clip", {}, {}, "no mask was given"),
        ("clip", {1.5: mask(1)}, {}, "a whole number from 0, got 1.5"),
        ("clip", mask(1), {"corrections": {-1: mask(1)}}, "a whole number from 0, got -1"),
        ("clip", {9: mask(1)}, {}, "a mask was given for frame 9, but the last frame is 7"),
        ("clip", {3: mask(1)}, {"direction": "up"}, "must be one of both, forward, backward"),
    ],
)
def test_masks_that_cannot_be_used_are_refused(
    clip: Path, video: str, masks: object, options: dict[str, object], message: str
) -> None:
    source = clip if video == "clip" else (level_frame(i) for i in range(8))
    with pytest.raises(InputError, match=message):
        list(propagate(source, masks, pipeline=FakePipeline(), **options))  # type: ignore[arg-type]


def test_iterable_of_frames_takes_forward_masks(clip: Path) -> None:
    frames = (level_frame(i) for i in range(8))
    pipeline = FakePipeline()
    results = list(propagate(frames, {3: mask(1)}, direction="forward", pipeline=pipeline))
    assert [result.object_ids for result in results] == [()] * 3 + [(1,)] * 5
    assert frames_of(pipeline)[0] == ("start", 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"start": "1"}, "the start must be a frame index of at least 0, got '1'"),
        ({"end": 2.5}, "the end must be a frame index, got 2.5"),
        ({"end": 0}, r"got 0\.\.0"),
        ({"direction": "up"}, "direction of a mask must be one of .*, got 'up'"),
    ],
)
def test_wrong_range_or_direction_raises_at_the_call(wrong: dict[str, Any], message: str) -> None:
    frames = [level_frame(k, SIZE_HW) for k in range(3)]
    assert len(list(propagate(frames, mask(1), pipeline=FakePipeline(), start=0, end=2))) == 2
    with pytest.raises(InputError, match=message) as caught:
        propagate(frames, mask(1), pipeline=FakePipeline(), **wrong)
    assert "\n" not in str(caught.value)
