"""OSVOS in the pipeline: when it runs, what it retrieves, how it is averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from mpn.errors import EngineError
from mpn.runtime.host.osvos import recalibrate
from mpn.runtime.pipeline import Pipeline
from mpn.types import Roi, StepResult
from tests.builders.clips import Clip, Square, iou, squares_clip
from tests.emulation.engines import FakeEngine, nothing_found
from tests.runtime.pipelines import PAN, adapter_of, make, run
from tests.tolerances import PASTED_IOU

STILL = squares_clip([Square(1, (20, 15), 24, (0, 0))], size_hw=(64, 96))
STILL_TWO = squares_clip(
    [Square(1, (5, 15), 24, (0, 0)), Square(2, (60, 15), 24, (0, 0), channel=1)], size_hw=(64, 96)
)


def blind(
    clip: Clip | None = None, *, options: dict[str, Any] | None = None, **rest: Any
) -> Pipeline:
    """A pipeline that takes what OSVOS proposes whatever its colours: fakes point anywhere."""
    return make(clip, options={"redetect.colour_min": -2, **(options or {})}, **rest)


def says(labels: np.ndarray, prob: float = 0.8) -> Callable[..., dict[str, np.ndarray]]:
    """An OSVOS network that finds whatever is marked in labels."""
    return lambda inputs: {"prob": ((labels > 0) * np.float32(prob))[None, None]}


def test_osvos_is_averaged_inside_the_roi_of_a_single_object() -> None:
    everywhere = np.ones((64, 96), np.uint8)
    pipeline = blind(
        STILL, osvos=says(everywhere), options={"osvos.mode": "blend", "osvos.blend_weight": 0.25}
    )
    pipeline.start(STILL.frames[0], STILL.labels[0])
    result = pipeline.step(STILL.frames[1])
    inside = STILL.labels[0] == 1
    assert np.allclose(result.probs[0][inside].max(), 0.75 + 0.25 * 0.8, atol=1e-5)
    assert np.allclose(result.probs[0, 0, 10], 0.25 * 0.8, atol=1e-5)  # in the margin
    assert result.probs[0, 0, 95] == 0
    assert result.tracks[0].branch == "blended"
    assert "osvos" in result.timings


@pytest.mark.parametrize(
    ("clip", "mode", "calls"),
    [
        (STILL, "auto", 0),
        (STILL, "blend", 1),
        (STILL, "redetect-only", 0),
        (STILL, "off", 0),
        (STILL_TWO, "auto", 0),
        (STILL_TWO, "blend", 1),
    ],
)
def test_osvos_runs_only_if_its_output_is_used(clip: Clip, mode: str, calls: int) -> None:
    pipeline = blind(clip, osvos=says(clip.labels[0]), options={"osvos.mode": mode})
    pipeline.start(clip.frames[0], clip.labels[0])
    result = pipeline.step(clip.frames[1])
    assert len(pipeline.engines.osvos.calls) == calls  # type: ignore[union-attr]
    assert result.tracks[0].branch == ("blended" if calls else "propagation")
    assert np.array_equal(result.labels, clip.labels[0])


def gone_after_a_step(clip: Clip) -> list[np.ndarray]:
    """Flows that carry object 1 of a still clip out of the frame in frame 1."""
    flows = [np.zeros((2, 64, 96), np.float32) for _ in clip.frames]
    flows[1][0, clip.labels[0] == 1] = 1000
    return flows


@pytest.mark.parametrize("mode", ["auto", "blend", "redetect-only"])
def test_a_lost_object_is_retrieved_where_osvos_finds_it(mode: str) -> None:
    elsewhere = np.zeros((64, 96), np.uint8)
    elsewhere[30:50, 10:40] = 1
    pipeline = blind(
        STILL_TWO,
        flows=gone_after_a_step(STILL_TWO),
        osvos=says(np.maximum(elsewhere, STILL_TWO.labels[0] == 2)),
        options={"osvos.mode": mode},
    )
    pipeline.start(STILL_TWO.frames[0], STILL_TWO.labels[0])
    result = pipeline.step(STILL_TWO.frames[1])
    track = result.tracks[0]
    assert (track.object_id, track.state, track.branch) == (1, "tracked", "osvos")
    assert iou(result.labels == 1, elsewhere > 0) > PASTED_IOU
    assert iou(result.labels == 2, STILL_TWO.labels[0] == 2) > PASTED_IOU
    again = pipeline.step(STILL_TWO.frames[2])
    assert again.tracks[0].branch == ("blended" if mode == "blend" else "propagation")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"osvos.mode": "off"}, "off"),
        ({"redetect.area_frac_min": 0.9}, "too small"),
        ({"threshold": 0.85}, "not sure enough"),
    ],
)
def test_a_lost_object_stays_lost_where_nothing_fits(options: dict[str, Any], reason: str) -> None:
    speck = np.zeros((64, 96), np.uint8)
    speck[40:60, 10:30] = 1  # 400 px; the object had 576
    pipeline = blind(
        STILL_TWO, flows=gone_after_a_step(STILL_TWO), osvos=says(speck), options=options
    )
    results = run(pipeline, STILL_TWO)
    assert [result.tracks[0].state for result in results[1:]] == ["lost"] * 4, reason


def test_osvos_map_has_working_size() -> None:
    pipeline = blind(
        PAN,
        osvos=lambda inputs: {"prob": inputs["image"][:, 2:] / 255 + 0.45},
        options={"osvos.mode": "blend"},
    )
    pipeline.start(PAN.frames[0], PAN.labels[0])
    result = pipeline.step(PAN.frames[1])
    image = pipeline.engines.osvos.calls[0]["image"]  # type: ignore[union-attr]
    assert image.shape == (1, 3, 64, 96)
    red = cv2.resize(PAN.frames[1][..., 0], (96, 64)) - np.float32(122.67892)  # BGR: red is last
    assert np.allclose(image[0, 2], red, atol=1e-3)
    assert iou(result.labels > 0, PAN.labels[1] > 0) > 0.9


@pytest.mark.parametrize("mode", ["blend", "redetect-only"])
def test_osvos_requested_but_missing_raises(mode: str) -> None:
    with pytest.raises(EngineError, match="no OSVOS engine is open"):
        blind(PAN, options={"osvos.mode": mode})


def osvos_of(pipeline: Pipeline) -> FakeEngine:
    engine = pipeline.engines.osvos
    assert isinstance(engine, FakeEngine)
    return engine


# --- when it runs -------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "frames"), [(1, [1, 2, 3, 4]), (2, [2, 4]), (3, [3]), (9, [])])
def test_the_schedule_decides_which_frames_are_blended(every: int, frames: list[int]) -> None:
    pipeline = blind(
        STILL, osvos=says(STILL.labels[0]), options={"osvos.mode": "blend", "osvos.every": every}
    )
    results = run(pipeline, STILL)
    assert [r.index for r in results if r.tracks[0].branch == "blended"] == frames
    assert [r.index for r in results if "blended" in r.tracks[0].events] == frames
    assert [r.index for r in results if "osvos" in r.timings] == frames


def unsure(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"prob": 0.6 * (inputs["rgb_prob"][:, 3:4] > 0.5)}


def test_uncertain_object_runs_osvos_out_of_schedule() -> None:
    options = {"osvos.mode": "blend", "osvos.every": 100, "osvos.blend_weight": 0.1}
    pipeline = blind(STILL, propagation=unsure, osvos=says(STILL.labels[0]), options=options)
    results = run(pipeline, STILL)
    # Frame 1 finds out that the network is not sure; OSVOS is asked from frame 2 on.
    assert [r.tracks[0].branch for r in results[1:]] == ["propagation"] + ["blended"] * 3
    calm = {**options, "osvos.confidence_min": 0.5}
    pipeline = blind(STILL, propagation=unsure, osvos=says(STILL.labels[0]), options=calm)
    run(pipeline, STILL)
    assert osvos_of(pipeline).calls == []


def test_lost_object_runs_osvos_in_every_frame() -> None:
    pipeline = blind(
        STILL_TWO,
        flows=gone_after_a_step(STILL_TWO),
        osvos=nothing_found,
        options={"osvos.every": 100},
    )
    results = run(pipeline, STILL_TWO)
    assert ["osvos" in result.timings for result in results] == [False] + [True] * 4
    # Only the lost one asks: the other is not blended with an answer that nobody wanted.
    assert all(result.tracks[1].branch == "propagation" for result in results[1:])


def test_common_osvos_runs_once_per_frame() -> None:
    pipeline = blind(STILL_TWO, osvos=says(STILL_TWO.labels[0]), options={"osvos.mode": "blend"})
    run(pipeline, STILL_TWO)
    assert len(osvos_of(pipeline).calls) == 4


# --- an OSVOS for each object -------------------------------------------------------------------


def sees_own(clip: Clip, prob: float = 0.8) -> dict[str, Any]:
    """Adapters whose OSVOS sees its own object where it is in frame 0."""
    return {"osvos": lambda k: says(clip.labels[0] == k, prob)}


def test_object_osvos_maps_are_blended_per_object() -> None:
    pipeline = blind(STILL_TWO, osvos=nothing_found, adapts=sees_own(STILL_TWO, 0.8))
    result = run(pipeline, STILL_TWO)[1]
    assert [track.branch for track in result.tracks] == ["blended"] * 2
    assert [track.events for track in result.tracks] == [("blended",)] * 2
    for k, object_id in enumerate((1, 2)):
        inside = STILL_TWO.labels[0] == object_id
        assert np.allclose(np.median(result.probs[k][inside]), 0.9, atol=1e-5)
    assert osvos_of(pipeline).calls == []
    assert [len(engine.calls) for engine in adapter_of(pipeline).engines] == [4, 4]


def test_objects_without_own_osvos_are_not_blended() -> None:
    own = {"osvos": lambda k: says(STILL_TWO.labels[0] == k) if k == 1 else None}
    pipeline = blind(
        STILL_TWO, osvos=nothing_found, adapts=own, options={"redetect.agreement_min": 0}
    )
    run(pipeline, STILL_TWO)
    assert osvos_of(pipeline).calls == adapter_of(pipeline).engines[0].calls == []


def test_osvos_map_excludes_other_objects_share() -> None:
    close = squares_clip(
        [Square(1, (20, 15), 24, (0, 0)), Square(2, (44, 15), 24, (0, 0), channel=1)],
        size_hw=(64, 96),
    )
    both = says(close.labels[0] > 0, 1.0)  # each takes the other object for its own
    pipeline = blind(close, osvos=nothing_found, adapts={"osvos": lambda k: both})
    result = run(pipeline, close)[-1]
    for object_id in (1, 2):
        found = iou(result.labels == object_id, close.labels[0] == object_id)
        assert found > PASTED_IOU
    assert result.probs[0][20:36, 50:60].max() < 0.05
    assert result.probs[1][20:36, 50:60].min() > 0.95


def wanders_off(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A propagation network that is sure of whatever it is given."""
    return {"prob": (inputs["rgb_prob"][:, 3:4] > 0.4).astype(np.float32)}


MOVED = np.zeros((64, 96), np.uint8)
MOVED[35:59, 60:84] = 1


@pytest.mark.parametrize("mode", ["blend", "redetect-only"])
def test_drifted_mask_moves_to_osvos_candidate(mode: str) -> None:
    pipeline = blind(
        STILL,
        propagation=wanders_off,
        osvos=nothing_found,
        adapts={"osvos": lambda k: says(MOVED)},
        options={"osvos.mode": mode},
    )
    results = run(pipeline, STILL)
    track = results[1].tracks[0]
    assert (track.state, track.branch) == ("tracked", "osvos")
    assert track.events[:2] == ("lost", "redetected")
    assert iou(results[1].labels > 0, MOVED > 0) > PASTED_IOU
    assert iou(results[-1].labels > 0, MOVED > 0) > PASTED_IOU
    assert "redetected" not in results[2].tracks[0].events


@pytest.mark.parametrize(
    ("answer", "options", "reason"),
    [
        (says(MOVED), {"redetect.agreement_min": 0}, "it is not asked whether"),
        (says(np.maximum(MOVED, STILL.labels[0])), {}, "it agrees"),
        (
            says(MOVED * (np.arange(96) < 64)),
            {"redetect.area_frac_min": 0.2},
            "what it sees is small",
        ),
        (nothing_found, {}, "it proposes nothing"),
    ],
)
def test_mask_moves_only_if_rejected_with_candidate(
    answer: Callable[..., Any], options: dict[str, Any], reason: str
) -> None:
    pipeline = blind(
        STILL,
        propagation=wanders_off,
        osvos=says(MOVED),
        adapts={"osvos": lambda k: answer},
        options={"osvos.mode": "redetect-only", **options},
    )
    results = run(pipeline, STILL)
    for result in results[1:]:
        assert iou(result.labels > 0, STILL.labels[0] > 0) > PASTED_IOU, reason
        assert result.tracks[0].branch == "propagation"


def test_the_common_osvos_moves_no_tracked_object() -> None:
    pipeline = blind(
        STILL, propagation=wanders_off, osvos=says(MOVED), options={"osvos.mode": "redetect-only"}
    )
    results = run(pipeline, STILL)
    assert osvos_of(pipeline).calls == []
    assert iou(results[-1].labels > 0, STILL.labels[0] > 0) > PASTED_IOU


def test_an_object_is_not_retrieved_where_another_one_is() -> None:
    sees_two = says(STILL_TWO.labels[0] == 2)
    pipeline = blind(
        STILL_TWO,
        flows=gone_after_a_step(STILL_TWO),
        osvos=nothing_found,
        adapts={"osvos": lambda k: sees_two},
    )
    results = run(pipeline, STILL_TWO)
    assert [result.tracks[0].state for result in results[1:]] == ["lost"] * 4
    assert [result.tracks[0].events for result in results[1:]] == [("lost",), (), (), ()]
    assert iou(results[-1].labels == 2, STILL_TWO.labels[0] == 2) > PASTED_IOU


def test_two_lost_objects_do_not_take_the_same_component() -> None:
    flows = [np.full((2, 64, 96), 1000, np.float32)] * 5
    pipeline = blind(
        STILL_TWO, flows=flows, osvos=says(MOVED), options={"osvos.mode": "redetect-only"}
    )
    pipeline.start(STILL_TWO.frames[0], STILL_TWO.labels[0])
    tracks = pipeline.step(STILL_TWO.frames[1]).tracks
    assert [track.events for track in tracks] == [("redetected",), ("lost",)]


def test_osvos_nan_raises_and_frame_can_be_retried() -> None:
    answers = [np.nan, 0.8]
    pipeline = blind(
        STILL,
        osvos=lambda x: {"prob": np.full_like(x["image"][:, :1], answers.pop(0))},
        options={"osvos.mode": "blend"},
    )
    pipeline.start(STILL.frames[0], STILL.labels[0])
    with pytest.raises(EngineError, match=r"OSVOS engine .* not finite"):
        pipeline.step(STILL.frames[1])
    pipeline._flow._prepared = 1  # type: ignore[attr-defined]  # the clip counts frames
    assert pipeline.step(STILL.frames[1]).index == 1


# --- what a found object must look like, and what doubt does ------------------------------------


@pytest.mark.parametrize(
    ("retrieve_colour", "is_found"), [(-2, True), (0.4, False)], ids=["any", "its own"]
)
def test_a_place_of_other_colours_is_not_taken_for_the_object(
    retrieve_colour: float, is_found: bool
) -> None:
    background = np.zeros((64, 96), np.uint8)
    background[40:64, 30:56] = 1
    pipeline = make(
        STILL_TWO,
        flows=gone_after_a_step(STILL_TWO),
        osvos=says(background),
        options={"osvos.mode": "redetect-only", "redetect.colour_min": retrieve_colour},
    )
    pipeline.start(STILL_TWO.frames[0], STILL_TWO.labels[0])
    track = pipeline.step(STILL_TWO.frames[1]).tracks[0]
    assert (track.events == ("redetected",)) == is_found


def test_its_own_colours_are_taken_for_the_object() -> None:
    pipeline = make(
        STILL_TWO,
        flows=gone_after_a_step(STILL_TWO),
        osvos=says(STILL_TWO.labels[0] == 1),
        options={"osvos.mode": "redetect-only", "redetect.colour_min": 0.4},
    )
    pipeline.start(STILL_TWO.frames[0], STILL_TWO.labels[0])
    track = pipeline.step(STILL_TWO.frames[1]).tracks[0]
    assert track.events == ("redetected",)


def test_mask_on_other_colours_moves_without_rejection() -> None:
    clip = squares_clip([Square(1, (20, 15), 24, (0, 0))], size_hw=(64, 96), frames=4)
    away = squares_clip([Square(1, (64, 30), 24, (0, 0))], size_hw=(64, 96), frames=1)
    both = np.maximum(clip.labels[0], away.labels[0])
    pipeline = make(
        clip,
        propagation=wanders_off,
        osvos=nothing_found,
        adapts={"osvos": lambda k: says(both)},
        options={"osvos.mode": "redetect-only"},
    )
    pipeline.start(clip.frames[0], clip.labels[0])
    assert pipeline.step(clip.frames[1]).tracks[0].events == ()
    moved = pipeline.step(away.frames[0])  # the mask stays, on the bare background
    assert moved.tracks[0].events == ("lost", "redetected")
    assert iou(moved.labels > 0, away.labels[0] > 0) > PASTED_IOU


def test_an_object_that_osvos_finds_where_it_is_stays_there() -> None:
    # Its colours have changed for those of the background; OSVOS knows it nevertheless.
    bare = squares_clip([], size_hw=(64, 96), frames=1)
    pipeline = blind(
        STILL,
        propagation=wanders_off,
        osvos=nothing_found,
        adapts={"osvos": lambda k: says(STILL.labels[0], 0.6)},
        options={"osvos.mode": "redetect-only", "redetect.agreement_min": 0.9},
    )
    pipeline.start(STILL.frames[0], STILL.labels[0])
    for frame in (STILL.frames[1], bare.frames[0]):
        track = pipeline.step(frame).tracks[0]
        assert (track.events, track.branch) == ((), "propagation")
    state = pipeline._state
    assert state is not None
    assert not state.track_memory[1].is_uncertain


def test_rejected_object_runs_osvos_until_redetected() -> None:
    answers = dict.fromkeys(range(3, 6), nothing_found)
    asked: list[int] = []

    def osvos(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        t = 3 + len(asked)
        asked.append(t)
        return dict(answers.get(t, says(MOVED))(inputs))

    clip = squares_clip([Square(1, (20, 15), 24, (0, 0))], size_hw=(64, 96), frames=11)
    pipeline = blind(
        clip,
        propagation=wanders_off,
        osvos=nothing_found,
        adapts={"osvos": lambda k: osvos},
        options={"osvos.mode": "redetect-only", "osvos.every": 3},
    )
    results = run(pipeline, clip)
    # By schedule in frames 3, 6 and 9; denied in 3, it is asked again in 4 and 5.
    assert [r.index for r in results if "osvos" in r.timings] == [3, 4, 5, 6, 9]
    assert [r.index for r in results if "redetected" in r.tracks[0].events] == [6]


def test_redetection_takes_recalibrated_probabilities() -> None:
    for threshold, is_lost in ((0.5, False), (0.9, True)):
        pipeline = blind(
            STILL_TWO,
            flows=gone_after_a_step(STILL_TWO),
            osvos=says(MOVED, 0.85),
            options={"osvos.mode": "redetect-only", "osvos.threshold": threshold},
        )
        pipeline.start(STILL_TWO.frames[0], STILL_TWO.labels[0])
        track = pipeline.step(STILL_TWO.frames[1]).tracks[0]
        assert (track.state == "lost") == is_lost


# --- a clip in which the object vanishes and returns ---------------------------------------------

GONE = range(4, 14)
VANISHING = squares_clip([Square(1, (8, 10), 24, (0, 0))], size_hw=(64, 96), frames=22)
RETURNED = squares_clip([Square(1, (60, 30), 24, (0, 0))], size_hw=(64, 96), frames=1)
EMPTY = squares_clip([], size_hw=(64, 96), frames=1)


def vanishing_frames() -> list[tuple[np.ndarray, np.ndarray]]:
    """Frame and truth: an object, ten frames of background, the object at another place."""
    frames = []
    for t in range(len(VANISHING.frames)):
        clip = VANISHING if t < GONE.start else EMPTY if t in GONE else RETURNED
        frames.append((clip.frames[0], clip.labels[0]))
    return frames


def sees_red(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An OSVOS that learnt what the object looks like: red is bright in it (BGR minus a mean)."""
    red = inputs["image"][:, 2:] + np.float32(122.67892)
    return {"prob": np.clip((red - 180) / 30, 0, 0.9).astype(np.float32)}


def follow(pipeline: Pipeline) -> list[tuple[StepResult, np.ndarray]]:
    results = []
    for t, (rgb, truth) in enumerate(vanishing_frames()):
        result = pipeline.step(rgb) if t else pipeline.start(rgb, truth)
        results.append((result, truth))
    return results


def by_red(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A propagation network that knows its object: red is bright in it."""
    red = inputs["rgb_prob"][:, :1]
    return {"prob": np.clip((red - 0.7) / 0.1, 0, 1).astype(np.float32)}


@pytest.mark.parametrize("network", [by_red, wanders_off])
@pytest.mark.parametrize("options", [{}, {"osvos.mode": "redetect-only"}, {"osvos.every": 3}])
def test_lost_object_is_redetected_within_three_frames(
    network: Callable[..., Any], options: dict[str, Any]
) -> None:
    flows = [np.zeros((2, 64, 96), np.float32)] * len(VANISHING.frames)
    pipeline = make(
        VANISHING,
        flows=flows,
        propagation=network,
        osvos=nothing_found,
        adapts={"osvos": lambda k: sees_red},
        options=options,
    )
    results = follow(pipeline)
    for result, truth in results[GONE.stop + 2 :]:
        assert iou(result.labels > 0, truth > 0) > PASTED_IOU
    (back,) = (r for r, _ in results[GONE.stop :] if "redetected" in r.tracks[0].events)
    assert GONE.stop <= back.index <= GONE.stop + 2
    # Without OSVOS it is not.
    results = follow(make(VANISHING, flows=flows, propagation=network))
    assert max(iou(r.labels > 0, truth > 0) for r, truth in results[GONE.stop :]) < 0.1


def test_lost_event_is_reported_once_with_empty_masks() -> None:
    flows = [np.zeros((2, 64, 96), np.float32)] * len(VANISHING.frames)
    pipeline = make(
        VANISHING, flows=flows, propagation=by_red, osvos=nothing_found,
        adapts={"osvos": lambda k: sees_red},
    )  # fmt: skip
    results = [result for result, _ in follow(pipeline)]
    assert [r.index for r in results if "lost" in r.tracks[0].events] == [GONE.start]
    assert not any(results[t].labels.any() for t in GONE)


def test_osvos_threshold_maps_to_even_odds() -> None:
    prob = np.float32([0.0, 0.5, 0.9, 0.95, 1.0])
    shifted = recalibrate(prob, threshold=0.9)
    assert np.allclose(shifted, [0.0, 0.1, 0.5, 19 / 28, 1.0], atol=1e-6)
    assert np.all(np.diff(shifted) > 0)
    assert recalibrate(prob, threshold=0.5) is prob


def test_blend_takes_recalibrated_probabilities() -> None:
    everywhere = np.ones((64, 96), np.uint8)
    found = {}
    for threshold in (0.5, 0.8):
        options = {"osvos.mode": "blend", "osvos.blend_weight": 0.5, "osvos.threshold": threshold}
        pipeline = make(STILL, osvos=says(everywhere), options=options)
        pipeline.start(STILL.frames[0], STILL.labels[0])
        found[threshold] = float(pipeline.step(STILL.frames[1]).probs[0, 0, 10])
    assert found[0.5] == pytest.approx(0.5 * 0.8, abs=1e-5)
    assert found[0.8] == pytest.approx(0.5 * 0.5, abs=1e-5)


def test_without_propagation_nothing_is_left_outside_the_roi() -> None:
    """A faint warped probability beyond the margin would lie outside the boxes that are kept."""
    pipeline = make(
        STILL,
        osvos=says(np.ones((64, 96), np.uint8)),
        options={"osvos.mode": "blend", "use_propagation": False},
    )
    labels = STILL.labels[0]
    pipeline.start(STILL.frames[0], labels)
    memory, state = pipeline._backend.snapshot(), pipeline._state
    assert state is not None
    faint = memory.prob.copy()
    faint[0, 0, 95] = 0.25
    pipeline._backend.load(replace(state, bounds=(Roi(0, 0, 96, 64),)), replace(memory, prob=faint))
    result = pipeline.step(STILL.frames[1])
    assert result.tracks[0].branch == "blended"
    assert result.probs[0, 0, 95] == 0
