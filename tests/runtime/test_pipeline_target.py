"""Test the target model in the pipeline; the features are colours."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from mpn.errors import EngineError
from mpn.runtime.host.target import TargetStage
from mpn.runtime.pipeline import Pipeline
from mpn.runtime.target import Targets, target_scores
from tests.builders.clips import Square, squares_clip
from tests.emulation.engines import nothing_found, pooled_colours
from tests.runtime.pipelines import PAN, TWO, make, run

SCORED = squares_clip([Square(3, (24, 16), 30, (2, 1))], size_hw=(65, 97), frames=8)


def score_channel(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a propagation network that returns the score of the target model."""
    return {"prob": inputs["rgb_prob_score"][:, 4:5]}


def prior_of_five(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a network with five channels that returns its input probability."""
    return {"prob": inputs["rgb_prob_score"][:, 3:4]}


def scored(**given: Any) -> Pipeline:
    given.setdefault("propagation", score_channel)
    return make(SCORED, features=pooled_colours, takes_score=True, **given)


def calls(pipeline: Pipeline, role: str) -> list[dict[str, np.ndarray]]:
    return getattr(pipeline.engines, role).calls  # type: ignore[no-any-return]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_score_is_fifth_channel_and_follows_object() -> None:
    with scored() as pipeline:
        results = run(pipeline, SCORED)
        channel = calls(pipeline, "propagation")[-1]["rgb_prob_score"][0, 4]
    assert 0 <= channel.min() < 0.2
    assert 0.8 < channel.max() <= 1
    # A grid of 8 px: the score alone follows the square to half a cell.
    assert iou(results[-1].labels == 3, SCORED.labels[-1] == 3) > 0.7


def test_features_run_every_second_frame_and_for_updates() -> None:
    for options, frames in (
        ({}, [0, 2, 4, 6]),
        ({"target.every": 3, "target.update_every": 0}, [0, 3, 6]),
        ({"target.every": 3, "target.update_every": 2}, [0, 2, 3, 4, 6]),
    ):
        with scored(options=options) as pipeline:
            done = [len(calls(pipeline, "features"))]
            for n, (frame, labels) in enumerate(zip(SCORED.frames, SCORED.labels, strict=True)):
                pipeline.step(frame) if n else pipeline.start(frame, labels)
                done.append(len(calls(pipeline, "features")))
        assert [n for n in range(8) if done[n + 1] > done[n]] == frames


def test_update_needs_confident_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    for least, learned in ((0.5, True), (1.0, False)):
        options = {"target.confidence_min": least}
        with scored(options=options, propagation=prior_of_five) as pipeline:
            run(pipeline, SCORED)
            memory = pipeline._backend.snapshot()
        assert memory.targets is not None
        assert bool(memory.targets.recent) == learned


def test_update_ends_before_the_next_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The update of frame 4 waits until frame 5 is done."""
    learned, gate, order = TargetStage.learned, threading.Event(), list[str]()

    def late(*args: Any, **kwargs: Any) -> Targets:
        assert gate.wait(60)
        order.append("learned")
        return learned(*args, **kwargs)

    def scores(*args: Any) -> np.ndarray:
        order.append("scores")
        return target_scores(*args)

    with scored(options={"target.confidence_min": 0.5}) as pipeline:
        run(pipeline, SCORED)
        expected = pipeline._backend.snapshot()
    monkeypatch.setattr(TargetStage, "learned", late)
    monkeypatch.setattr("mpn.runtime.host.backend.target_scores", scores)
    with scored(options={"target.confidence_min": 0.5}) as pipeline:
        pipeline.start(SCORED.frames[0], SCORED.labels[0])
        for frame in SCORED.frames[1:6]:
            pipeline.step(frame)
        order.append("5 done")
        gate.set()
        for frame in SCORED.frames[6:]:
            pipeline.step(frame)
        memory = pipeline._backend.snapshot()
    assert order == ["scores", "scores", "5 done", "learned", "scores"]
    assert memory.targets is not None
    assert expected.targets is not None
    assert len(memory.targets.recent) == 1
    np.testing.assert_array_equal(memory.prob, expected.prob)
    np.testing.assert_array_equal(memory.targets.weights[3], expected.targets.weights[3])


def test_new_video_drops_the_update_of_the_last_one() -> None:
    def pipeline() -> Pipeline:
        return scored(
            flows=np.zeros((20, 2, 65, 97), np.float32), options={"target.confidence_min": 0.5}
        )

    with pipeline() as new, pipeline() as used:
        used.start(SCORED.frames[0], SCORED.labels[0])
        for frame in SCORED.frames[1:5]:
            used.step(frame)
        assert used._backend._learning is not None  # type: ignore[union-attr]
        for of in (new, used):
            of.start(SCORED.frames[0], SCORED.labels[0])
            for frame in SCORED.frames[1:]:
                of.step(frame)
        expected, memory = (of._backend.snapshot() for of in (new, used))
    assert memory.targets is not None
    assert expected.targets is not None
    np.testing.assert_array_equal(memory.prob, expected.prob)
    np.testing.assert_array_equal(memory.targets.weights[3], expected.targets.weights[3])
    assert len(memory.targets.recent) == 1


@pytest.mark.parametrize(("growth", "least", "most"), [(1.0, 0.75, 1.0), (0.0, 0.0, 0.6)])
def test_hidden_half_is_found_again(growth: float, least: float, most: float) -> None:
    """The right half of a still square is covered in frame 1."""
    clip = squares_clip([Square(3, (24, 12), 40, (0, 0))], size_hw=(65, 97), frames=5)
    empty = squares_clip([], size_hw=(65, 97), frames=1)
    frames = [frame.copy() for frame in clip.frames]
    frames[1][:, 44:] = empty.frames[0][:, 44:]
    options = {
        "roi_margin_frac": 0.0,
        "roi_margin_px_min": 0,
        "target.every": 1,
        "target.update_every": 0,
        "target.roi_growth": growth,
    }
    with make(clip, features=pooled_colours, takes_score=True, propagation=score_channel,
              options=options) as pipeline:  # fmt: skip
        pipeline.start(frames[0], clip.labels[0])
        results = [pipeline.step(frame) for frame in frames[1:]]
    assert results[0].labels[:, 52:].max() == 0
    assert least <= iou(results[-1].labels == 3, clip.labels[-1] == 3) <= most


def test_lost_object_is_redetected_by_target_model() -> None:
    clip = squares_clip([Square(3, (10, 14), 24, (0, 0))], size_hw=(65, 97), frames=6)
    empty = squares_clip([], size_hw=(65, 97), frames=1)
    moved = squares_clip([Square(3, (66, 34), 24, (0, 0))], size_hw=(65, 97), frames=1)

    def gone(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        rgb = inputs["rgb_prob_score"][:, :1]
        return {"prob": np.clip((rgb - 0.7) / 0.1, 0, 1)}

    for one_shot, is_found in (("target", True), ("off", False)):
        options = {"one_shot": one_shot, "redetect.colour_min": -2.0}
        still = np.zeros((2, 65, 97), np.float32)
        with make(
            flows=(still,) * 6,
            features=pooled_colours,
            takes_score=True,
            propagation=gone,
            options=options,
        ) as pipeline:
            pipeline.start(clip.frames[0], clip.labels[0])
            assert pipeline.step(empty.frames[0]).tracks[0].state == "lost"
            result = pipeline.step(moved.frames[0])
        assert (iou(result.labels == 3, moved.labels[0] == 3) > 0.8) == is_found
        assert ("redetected" in result.tracks[0].events) == is_found


@pytest.mark.parametrize(("least", "is_checked"), [(0.6, True), (0.0, False)])
def test_mask_that_left_its_object_moves_or_is_lost(least: float, is_checked: bool) -> None:
    """The flow keeps the mask in its place; the object jumps away, or is gone."""
    clip = squares_clip([Square(3, (10, 14), 24, (0, 0))], size_hw=(65, 97), frames=2)
    moved = squares_clip([Square(3, (66, 34), 24, (0, 0))], size_hw=(65, 97), frames=1)
    empty = squares_clip([], size_hw=(65, 97), frames=1)
    options = {"target.every": 1, "target.agreement_min": least, "redetect.colour_min": -2.0}
    still = np.zeros((2, 65, 97), np.float32)
    with make(flows=(still,) * 6, features=pooled_colours, takes_score=True,
              propagation=prior_of_five, options=options) as pipeline:  # fmt: skip
        pipeline.start(clip.frames[0], clip.labels[0])
        result = pipeline.step(moved.frames[0])
        assert (iou(result.labels == 3, moved.labels[0] == 3) > 0.7) == is_checked
        assert (result.tracks[0].events == ("lost", "redetected")) == is_checked
        result = pipeline.step(empty.frames[0])
        assert (result.tracks[0].state == "lost") == is_checked
        assert (result.tracks[0].events == ("lost",)) == is_checked
        result = pipeline.step(moved.frames[0])
        assert (iou(result.labels == 3, moved.labels[0] == 3) > 0.7) == is_checked


def test_small_objects_are_not_lost_by_their_score() -> None:
    clip = squares_clip([Square(3, (40, 24), 4, (0, 0))], size_hw=(129, 193), frames=2)
    empty = squares_clip([], size_hw=(129, 193), frames=1)
    flows = (np.zeros((2, 129, 193), np.float32),) * 3
    with make(flows=flows, features=pooled_colours, takes_score=True,
              propagation=prior_of_five, options={"target.every": 1}) as pipeline:  # fmt: skip
        pipeline.start(clip.frames[0], clip.labels[0])
        assert pipeline.step(empty.frames[0]).tracks[0].state == "tracked"


def test_without_score_input_the_score_is_blended() -> None:
    def probs(options: Mapping[str, Any]) -> np.ndarray:
        with make(PAN, features=pooled_colours, options=options) as pipeline:
            results = run(pipeline, PAN)
        branches = {track.branch for result in results[1:] for track in result.tracks}
        assert branches == {"propagation" if options["one_shot"] == "off" else "blended"}
        return results[-1].probs

    alone = probs({"one_shot": "off"})
    without = probs({"one_shot": "target", "target.every": 1, "target.blend_weight": 0.0})
    with_half = probs({"one_shot": "target", "target.every": 1, "target.blend_weight": 0.5})
    assert np.array_equal(without, alone)
    assert np.abs(with_half - alone).max() > 0.05


def test_one_shot_chooses_models() -> None:
    cases = {"auto": (1, 0), "target": (1, 0), "osvos": (0, 1), "both": (1, 1), "off": (0, 0)}
    for one_shot, expected in cases.items():
        options = {"one_shot": one_shot, "osvos.mode": "blend"}
        with make(PAN, features=pooled_colours, osvos=nothing_found, options=options) as pipeline:
            run(pipeline, PAN)
            ran = tuple(bool(calls(pipeline, role)) for role in ("features", "osvos"))
        assert ran == tuple(map(bool, expected)), one_shot


def test_one_shot_without_engine_raises() -> None:
    with pytest.raises(EngineError, match="no features engine"):
        make(PAN, options={"one_shot": "target"})
    with pytest.raises(EngineError, match="no OSVOS engine is open"):
        make(PAN, features=pooled_colours, options={"one_shot": "both"})


def test_score_channel_is_lowered_at_the_other_object() -> None:
    with make(TWO, features=pooled_colours, takes_score=True, propagation=score_channel,
              options={"roi_margin_frac": 3.0, "target.roi_growth": 0.0}) as pipe:  # fmt: skip
        pipe.start(TWO.frames[0], np.where(TWO.labels[0], 2, 0).astype(np.uint8))
        pipe.step(TWO.frames[1])
        both = calls(pipe, "propagation")[-1]["rgb_prob_score"]
        pipe.start(TWO.frames[0], TWO.labels[0])
        pipe.step(TWO.frames[1])
        first, second = calls(pipe, "propagation")[-1]["rgb_prob_score"]
    assert both.shape[0] == 1
    for own in (first, second):
        elsewhere = (own[3] < 0.1) & (own[4] > 0.5)
        assert elsewhere.mean() < 0.05


def test_two_objects_get_scores_in_their_order() -> None:
    with make(TWO, features=pooled_colours, takes_score=True, propagation=score_channel) as pipe:
        results = run(pipe, TWO)
    for object_id in (2, 7):
        # Before they meet.
        assert iou(results[4].labels == object_id, TWO.labels[4] == object_id) > 0.6


def test_correction_and_added_object_are_learned() -> None:
    with make(TWO, features=pooled_colours, takes_score=True, propagation=score_channel) as pipe:
        pipe.start(TWO.frames[0], np.where(TWO.labels[0] == 2, 2, 0).astype(np.uint8))
        pipe.step(TWO.frames[1])
        pipe.add_objects(np.where(TWO.labels[1] == 7, 7, 0).astype(np.uint8))
        pipe.correct(np.where(TWO.labels[1] == 2, 2, 0).astype(np.uint8))
        memory = pipe._backend.snapshot()
        assert memory.targets is not None
        assert [sorted(frame.shares) for frame in memory.targets.given] == [[2], [7], [2]]
        result = pipe.step(TWO.frames[2])
    assert iou(result.labels == 7, TWO.labels[2] == 7) > 0.6


def test_failed_features_leave_pipeline_as_it_was() -> None:
    fails = False

    def features(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = pooled_colours(inputs)
        return {"features": np.full_like(found["features"], np.nan)} if fails else found

    def segmented(breaks: bool) -> list[np.ndarray]:
        nonlocal fails
        with make(features=features, takes_score=True, propagation=score_channel) as pipe:
            labels = [pipe.start(SCORED.frames[0], SCORED.labels[0]).labels]
            for n, frame in enumerate(SCORED.frames[1:], 1):
                if breaks and n in (2, 4):
                    fails = True
                    with pytest.raises(EngineError, match="features engine returned"):
                        pipe.step(frame)
                    fails = False
                labels.append(pipe.step(frame).labels)
        return labels

    for expected, got in zip(segmented(False), segmented(True), strict=True):
        assert np.array_equal(expected, got)


def test_resumed_run_learns_from_found_masks() -> None:
    with scored() as pipeline:
        pipeline.start(SCORED.frames[0], SCORED.labels[0])
        pipeline.resume_at(SCORED.frames[4], SCORED.labels[4])
        memory = pipeline._backend.snapshot()
        assert memory.targets is not None
        assert len(memory.targets.recent) == 1
        result = pipeline.step(SCORED.frames[5])
    assert iou(result.labels == 3, SCORED.labels[5] == 3) > 0.7
