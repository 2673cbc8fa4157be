"""CRF as the last stage of a frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from mpn.errors import InputError
from mpn.runtime.host import backend as host_backend
from mpn.runtime.host.crf import refine
from mpn.types import StepResult
from tests.builders.clips import Clip, Square, iou, squares_clip
from tests.runtime.pipelines import TWO, make, run
from tests.tolerances import PROBS_SUM

STILL = squares_clip([Square(1, (20, 15), 24, (0, 0))])
CRF = {"crf": True, "crf.srgb_bilateral": 30.0}
"""The squares are textured: colours of one object differ more than in a photograph."""


def blurred(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return weak probabilities that leak to the left: a propagation network."""
    prob = inputs["rgb_prob"][:, 3:4]
    return {"prob": 0.8 * np.maximum(prob, np.roll(prob, -12, axis=3))}


def first_step(options: dict[str, Any], clip: Clip = STILL) -> StepResult:
    pipeline = make(clip, propagation=blurred, options=options)
    pipeline.start(clip.frames[0], clip.labels[0])
    return pipeline.step(clip.frames[1])


def test_crf_changes_labels_and_probabilities() -> None:
    plain, refined = first_step({}), first_step(CRF)
    assert not np.array_equal(plain.labels, refined.labels)
    overlaps = [iou(result.labels > 0, STILL.labels[1] > 0) for result in (plain, refined)]
    assert overlaps[1] > overlaps[0] + 0.05
    assert np.array_equal(refined.labels > 0, refined.probs[0] > 0.5)
    assert "crf" in refined.timings
    assert "crf" not in plain.timings


def test_confidence_is_that_of_the_network_not_of_the_crf() -> None:
    refined = first_step(CRF)
    inside = refined.labels > 0
    assert refined.probs[0][inside].mean() > 0.9
    assert refined.tracks[0].confidence < 0.81


def test_the_first_frame_is_not_refined() -> None:
    pipeline = make(STILL, options=CRF)
    result = pipeline.start(STILL.frames[0], STILL.labels[0])
    assert np.array_equal(result.labels, STILL.labels[0])
    assert "crf" not in result.timings


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("size", [480, 30])
def test_next_frame_starts_before_crf_by_default(feedback: bool, size: int) -> None:
    shape = STILL.labels[0].shape
    hw = shape if size == 480 else (30, 45)
    clip = Clip(STILL.frames, STILL.labels, (np.zeros((2, *hw), np.float32),) * 5)
    options = {**CRF, "crf.feedback": feedback, "size": size}
    pipeline = make(clip, propagation=blurred, options=options)
    pipeline.start(clip.frames[0], clip.labels[0])
    before = make(clip, propagation=blurred, options={"size": size})
    before.start(clip.frames[0], clip.labels[0])
    result, plain = pipeline.step(clip.frames[1]), before.step(clip.frames[1])
    prob, plain_prob = (each._backend.snapshot().prob for each in (pipeline, before))
    assert np.array_equal(prob, plain_prob) != feedback
    if feedback and size == 480:
        assert np.array_equal(prob, result.probs)
    # In both cases the confidence is from the network.
    assert result.tracks[0].confidence == pytest.approx(plain.tracks[0].confidence, abs=0.1)


def test_objects_and_background_still_sum_to_one() -> None:
    for result in run(make(TWO, propagation=blurred, options=CRF), TWO)[1:]:
        assert result.probs.min() >= 0
        assert result.probs.sum(axis=0).max() <= 1 + PROBS_SUM
        best = result.probs.max(axis=0)
        assert not (result.labels[best < 1 / 3] > 0).any()


def test_crf_keeps_corrected_pixels_exactly() -> None:
    pipeline = make(TWO, propagation=blurred, options=CRF)
    pipeline.start(TWO.frames[0], TWO.labels[0])
    before = pipeline.step(TWO.frames[1])
    labels = np.zeros((60, 90), np.uint8)
    labels[45:58, 2:30] = 2
    corrected = pipeline.correct(labels)
    assert np.array_equal(corrected.labels == 2, labels == 2)
    untouched = (labels == 0) & (before.labels != 2)
    assert np.array_equal(corrected.labels[untouched], before.labels[untouched])
    pipeline.step(TWO.frames[2])


def test_the_stage_works_at_working_size_with_the_options_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[dict[str, Any]] = []

    def noted(merged: np.ndarray, rgb: np.ndarray, **rest: Any) -> Any:
        seen.append({"shape": merged.shape, "rgb": rgb.shape, **rest})
        return refine(merged, rgb, **rest)

    monkeypatch.setattr(host_backend, "refine", noted)
    clip = Clip(STILL.frames, STILL.labels, (np.zeros((2, 30, 45), np.float32),) * 5)
    pipeline = make(clip, options={**CRF, "size": 30, "crf.iterations": 2})
    pipeline.start(clip.frames[0], clip.labels[0])
    result = pipeline.step(clip.frames[1])
    assert result.probs.shape == (1, 60, 90)
    (call,) = seen
    assert (call["shape"], call["rgb"]) == ((1, 30, 45), (30, 45, 3))
    assert call["options"].iterations == 2
    assert call["boxes"][0] is not None  # not the whole frame


def test_crf_error_leaves_pipeline_unchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline = make(STILL, options=CRF)
    pipeline.start(STILL.frames[0], STILL.labels[0])

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise InputError("unary has 1 values that are not finite")

    with monkeypatch.context() as patched:
        patched.setattr(host_backend, "refine", refuse)
        with pytest.raises(InputError, match="not finite"):
            pipeline.step(STILL.frames[1])
    pipeline._flow._prepared = 1  # type: ignore[attr-defined]  # the clip counts frames
    assert pipeline.step(STILL.frames[1]).index == 1


def test_frames_without_any_object_are_no_work_for_the_crf() -> None:
    clip = squares_clip([Square(1, (66, 20), 20, (15, 0))], frames=5, pan_xy=(15, 0))
    results = run(make(clip, options=CRF), clip)
    assert not results[-1].labels.any()
