"""OSVOS in the pipeline: schedule, re-detection and blend."""

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
from tests.runtime.pipelines import PAN, finetuner_of, make, run
from tests.tolerances import PASTED_IOU

STILL = squares_clip([Square(1, (20, 15), 24, (0, 0))], size_hw=(64, 96))
STILL_TWO = squares_clip(
    [Square(1, (5, 15), 24, (0, 0)), Square(2, (60, 15), 24, (0, 0), channel=1)], size_hw=(64, 96)
)


def blind(
    clip: Clip | None = None, *, options: dict[str, Any] | None = None, **rest: Any
) -> Pipeline:
    """Build a pipeline that accepts any colours, since fake networks ignore them."""
    return make(clip, options={"redetect.colour_min": -2, **(options or {})}, **rest)


def osvos_from(labels: np.ndarray, prob: float = 0.8) -> Callable[..., dict[str, np.ndarray]]:
    """Make an OSVOS network that finds the objects of labels."""
    return lambda inputs: {"prob": ((labels > 0) * np.float32(prob))[None, None]}


def test_osvos_is_averaged_inside_the_roi_of_a_single_object() -> None:
    everywhere = np.ones((64, 96), np.uint8)
    pipeline = blind(
        STILL,
        osvos=osvos_from(everywhere),
        options={"osvos.mode": "blend", "osvos.blend_weight": 0.25},
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
    pipeline = blind(clip, osvos=osvos_from(clip.labels[0]), options={"osvos.mode": mode})
    pipeline.start(clip.frames[0], clip.labels[0])
    result = pipeline.step(clip.frames[1])
    assert len(pipeline.engines.osvos.calls) == calls  # type: ignore[union-attr]
    assert result.tracks[0].branch == ("blended" if calls else "propagation")
    assert np.array_equal(result.labels, clip.labels[0])


def gone_after_a_step(clip: Clip) -> list[np.ndarray]:
    """Make flows that move object 1 of a still clip out of frame 1."""
    flows = [np.zeros((2, 64, 96), np.float32) for _ in clip.frames]
    flows[1][0, clip.labels[0] == 1] = 1000
    return flows


@pytest.mark.parametrize("mode", ["auto", "blend", "redetect-only"])
def test_lost_object_is_redetected_at_osvos_component(mode: str) -> None:
    elsewhere = np.zeros((64, 96), np.uint8)
    elsewhere[30:50, 10:40] = 1
    pipeline = blind(
        STILL_TWO,
        flows=gone_after_a_step(STILL_TWO),
        osvos=osvos_from(np.maximum(elsewhere, STILL_TWO.labels[0] == 2)),
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
def test_lost_object_without_component_stays_lost(options: dict[str, Any], reason: str) -> None:
    speck = np.zeros((64, 96), np.uint8)
    speck[40:60, 10:30] = 1  # 400 px; the object had 576
    pipeline = blind(
        STILL_TWO, flows=gone_after_a_step(STILL_TWO), osvos=osvos_from(speck), options=options
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


# --- schedule -------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "frames"), [(1, [1, 2, 3, 4]), (2, [2, 4]), (3, [3]), (9, [])])
def test_the_schedule_decides_which_frames_are_blended(every: int, frames: list[int]) -> None:
    pipeline = blind(
        STILL,
        osvos=osvos_from(STILL.labels[0]),
        options={"osvos.mode": "blend", "osvos.every": every},
    )
    results = run(pipeline, STILL)
    assert [r.index for r in results if r.tracks[0].branch == "blended"] == frames
    assert [r.index for r in results if "blended" in r.tracks[0].events] == frames
    assert [r.index for r in results if "osvos" in r.timings] == frames


def unsure(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"prob": 0.6 * (inputs["rgb_prob"][:, 3:4] > 0.5)}


def test_uncertain_object_runs_osvos_out_of_schedule() -> None:
    options = {"osvos.mode": "blend", "osvos.every": 100, "osvos.blend_weight": 0.1}
    pipeline = blind(STILL, propagation=unsure, osvos=osvos_from(STILL.labels[0]), options=options)
    results = run(pipeline, STILL)
    # The confidence is too low in frame 1, so OSVOS runs from frame 2 on.
    assert [r.tracks[0].branch for r in results[1:]] == ["propagation"] + ["blended"] * 3
    calm = {**options, "osvos.confidence_min": 0.5}
    pipeline = blind(STILL, propagation=unsure, osvos=osvos_from(STILL.labels[0]), options=calm)
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
    # OSVOS runs for the lost object only, so the other is not blended.
    assert all(result.tracks[1].branch == "propagation" for result in results[1:])


def test_common_osvos_runs_once_per_frame() -> None:
    pipeline = blind(
        STILL_TWO, osvos=osvos_from(STILL_TWO.labels[0]), options={"osvos.mode": "blend"}
    )
    run(pipeline, STILL_TWO)
    assert len(osvos_of(pipeline).calls) == 4


# --- one OSVOS per object -------------------------------------------------------------------


def osvos_per_object(clip: Clip, prob: float = 0.8) -> dict[str, Any]:
    """Make networks that find each object at its position in frame 0."""
    return {"osvos": lambda k: osvos_from(clip.labels[0] == k, prob)}


def test_object_osvos_maps_are_blended_per_object() -> None:
    pipeline = blind(STILL_TWO, osvos=nothing_found, adapts=osvos_per_object(STILL_TWO, 0.8))
    result = run(pipeline, STILL_TWO)[1]
    assert [track.branch for track in result.tracks] == ["blended"] * 2
    assert [track.events for track in result.tracks] == [("blended",)] * 2
    for k, object_id in enumerate((1, 2)):
        inside = STILL_TWO.labels[0] == object_id
        assert np.allclose(np.median(result.probs[k][inside]), 0.9, atol=1e-5)
    assert osvos_of(pipeline).calls == []
    assert [len(engine.calls) for engine in finetuner_of(pipeline).engines] == [4, 4]


def test_objects_without_own_osvos_are_not_blended() -> None:
    own = {"osvos": lambda k: osvos_from(STILL_TWO.labels[0] == k) if k == 1 else None}
    pipeline = blind(
        STILL_TWO, osvos=nothing_found, adapts=own, options={"redetect.agreement_min": 0}
    )
    run(pipeline, STILL_TWO)
    assert osvos_of(pipeline).calls == finetuner_of(pipeline).engines[0].calls == []


def test_osvos_map_excludes_other_objects_share() -> None:
    close = squares_clip(
        [Square(1, (20, 15), 24, (0, 0)), Square(2, (44, 15), 24, (0, 0), channel=1)],
        size_hw=(64, 96),
    )
    both = osvos_from(close.labels[0] > 0, 1.0)  # each finds the other object
    pipeline = blind(close, osvos=nothing_found, adapts={"osvos": lambda k: both})
    result = run(pipeline, close)[-1]
    for object_id in (1, 2):
        found = iou(result.labels == object_id, close.labels[0] == object_id)
        assert found > PASTED_IOU
    assert result.probs[0][20:36, 50:60].max() < 0.05
    assert result.probs[1][20:36, 50:60].min() > 0.95


def wanders_off(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return full confidence for all inputs above a threshold."""
    return {"prob": (inputs["rgb_prob"][:, 3:4] > 0.4).astype(np.float32)}


MOVED = np.zeros((64, 96), np.uint8)
MOVED[35:59, 60:84] = 1


@pytest.mark.parametrize("mode", ["blend", "redetect-only"])
def test_drifted_mask_moves_to_osvos_candidate(mode: str) -> None:
    pipeline = blind(
        STILL,
        propagation=wanders_off,
        osvos=nothing_found,
        adapts={"osvos": lambda k: osvos_from(MOVED)},
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
    ("network", "options", "reason"),
    [
        (osvos_from(MOVED), {"redetect.agreement_min": 0}, "the check is off"),
        (osvos_from(np.maximum(MOVED, STILL.labels[0])), {}, "it agrees"),
        (
            osvos_from(MOVED * (np.arange(96) < 64)),
            {"redetect.area_frac_min": 0.2},
            "what it sees is small",
        ),
        (nothing_found, {}, "it proposes nothing"),
    ],
)
def test_mask_moves_only_if_rejected_with_candidate(
    network: Callable[..., Any], options: dict[str, Any], reason: str
) -> None:
    pipeline = blind(
        STILL,
        propagation=wanders_off,
        osvos=osvos_from(MOVED),
        adapts={"osvos": lambda k: network},
        options={"osvos.mode": "redetect-only", **options},
    )
    results = run(pipeline, STILL)
    for result in results[1:]:
        assert iou(result.labels > 0, STILL.labels[0] > 0) > PASTED_IOU, reason
        assert result.tracks[0].branch == "propagation"


def test_the_common_osvos_moves_no_tracked_object() -> None:
    pipeline = blind(
        STILL,
        propagation=wanders_off,
        osvos=osvos_from(MOVED),
        options={"osvos.mode": "redetect-only"},
    )
    results = run(pipeline, STILL)
    assert osvos_of(pipeline).calls == []
    assert iou(results[-1].labels > 0, STILL.labels[0] > 0) > PASTED_IOU


def test_component_covered_by_other_object_is_refused() -> None:
    sees_two = osvos_from(STILL_TWO.labels[0] == 2)
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
        STILL_TWO, flows=flows, osvos=osvos_from(MOVED), options={"osvos.mode": "redetect-only"}
    )
    pipeline.start(STILL_TWO.frames[0], STILL_TWO.labels[0])
    tracks = pipeline.step(STILL_TWO.frames[1]).tracks
    assert [track.events for track in tracks] == [("redetected",), ("lost",)]


def test_osvos_nan_raises_and_frame_can_be_retried() -> None:
    values = [np.nan, 0.8]
    pipeline = blind(
        STILL,
        osvos=lambda x: {"prob": np.full_like(x["image"][:, :1], values.pop(0))},
        options={"osvos.mode": "blend"},
    )
    pipeline.start(STILL.frames[0], STILL.labels[0])
    with pytest.raises(EngineError, match=r"OSVOS engine .* not finite"):
        pipeline.step(STILL.frames[1])
    pipeline._flow._prepared = 1  # type: ignore[attr-defined]  # the clip counts frames
    assert pipeline.step(STILL.frames[1]).index == 1


# --- colours of a component, and uncertain objects ------------------------------------


@pytest.mark.parametrize(
    ("colour_min", "is_found"), [(-2, True), (0.4, False)], ids=["any", "its own"]
)
def test_a_place_of_other_colours_is_not_taken_for_the_object(
    colour_min: float, is_found: bool
) -> None:
    background = np.zeros((64, 96), np.uint8)
    background[40:64, 30:56] = 1
    pipeline = make(
        STILL_TWO,
        flows=gone_after_a_step(STILL_TWO),
        osvos=osvos_from(background),
        options={"osvos.mode": "redetect-only", "redetect.colour_min": colour_min},
    )
    pipeline.start(STILL_TWO.frames[0], STILL_TWO.labels[0])
    track = pipeline.step(STILL_TWO.frames[1]).tracks[0]
    assert (track.events == ("redetected",)) == is_found


def test_its_own_colours_are_taken_for_the_object() -> None:
    pipeline = make(
        STILL_TWO,
        flows=gone_after_a_step(STILL_TWO),
        osvos=osvos_from(STILL_TWO.labels[0] == 1),
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
        adapts={"osvos": lambda k: osvos_from(both)},
        options={"osvos.mode": "redetect-only"},
    )
    pipeline.start(clip.frames[0], clip.labels[0])
    assert pipeline.step(clip.frames[1]).tracks[0].events == ()
    moved = pipeline.step(away.frames[0])  # the mask stays on the background
    assert moved.tracks[0].events == ("lost", "redetected")
    assert iou(moved.labels > 0, away.labels[0] > 0) > PASTED_IOU


def test_object_found_at_its_candidate_is_not_moved() -> None:
    # Its colours are now those of the background; OSVOS still finds it.
    bare = squares_clip([], size_hw=(64, 96), frames=1)
    pipeline = blind(
        STILL,
        propagation=wanders_off,
        osvos=nothing_found,
        adapts={"osvos": lambda k: osvos_from(STILL.labels[0], 0.6)},
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
    by_frame = dict.fromkeys(range(3, 6), nothing_found)
    called: list[int] = []

    def osvos(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        t = 3 + len(called)
        called.append(t)
        return dict(by_frame.get(t, osvos_from(MOVED))(inputs))

    clip = squares_clip([Square(1, (20, 15), 24, (0, 0))], size_hw=(64, 96), frames=11)
    pipeline = blind(
        clip,
        propagation=wanders_off,
        osvos=nothing_found,
        adapts={"osvos": lambda k: osvos},
        options={"osvos.mode": "redetect-only", "osvos.every": 3},
    )
    results = run(pipeline, clip)
    # By schedule in frames 3, 6 and 9; rejected in 3, so it runs in 4 and 5 too.
    assert [r.index for r in results if "osvos" in r.timings] == [3, 4, 5, 6, 9]
    assert [r.index for r in results if "redetected" in r.tracks[0].events] == [6]


def test_redetection_takes_recalibrated_probabilities() -> None:
    for threshold, is_lost in ((0.5, False), (0.9, True)):
        pipeline = blind(
            STILL_TWO,
            flows=gone_after_a_step(STILL_TWO),
            osvos=osvos_from(MOVED, 0.85),
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
    """Return frames and labels: object, ten frames of background, object elsewhere."""
    frames = []
    for t in range(len(VANISHING.frames)):
        clip = VANISHING if t < GONE.start else EMPTY if t in GONE else RETURNED
        frames.append((clip.frames[0], clip.labels[0]))
    return frames


def osvos_of_red(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Find bright red: OSVOS that was trained on the object (BGR minus a mean)."""
    red = inputs["image"][:, 2:] + np.float32(122.67892)
    return {"prob": np.clip((red - 180) / 30, 0, 0.9).astype(np.float32)}


def follow(pipeline: Pipeline) -> list[tuple[StepResult, np.ndarray]]:
    results = []
    for t, (rgb, truth) in enumerate(vanishing_frames()):
        result = pipeline.step(rgb) if t else pipeline.start(rgb, truth)
        results.append((result, truth))
    return results


def by_red(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Find bright red: a propagation network that was trained on the object."""
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
        adapts={"osvos": lambda k: osvos_of_red},
        options=options,
    )
    results = follow(pipeline)
    for result, truth in results[GONE.stop + 2 :]:
        assert iou(result.labels > 0, truth > 0) > PASTED_IOU
    (back,) = (r for r, _ in results[GONE.stop :] if "redetected" in r.tracks[0].events)
    assert GONE.stop <= back.index <= GONE.stop + 2
    # Without OSVOS the object is not found.
    results = follow(make(VANISHING, flows=flows, propagation=network))
    assert max(iou(r.labels > 0, truth > 0) for r, truth in results[GONE.stop :]) < 0.1


def test_lost_event_is_reported_once_with_empty_masks() -> None:
    flows = [np.zeros((2, 64, 96), np.float32)] * len(VANISHING.frames)
    pipeline = make(
        VANISHING, flows=flows, propagation=by_red, osvos=nothing_found,
        adapts={"osvos": lambda k: osvos_of_red},
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
        pipeline = make(STILL, osvos=osvos_from(everywhere), options=options)
        pipeline.start(STILL.frames[0], STILL.labels[0])
        found[threshold] = float(pipeline.step(STILL.frames[1]).probs[0, 0, 10])
    assert found[0.5] == pytest.approx(0.5 * 0.8, abs=1e-5)
    assert found[0.8] == pytest.approx(0.5 * 0.5, abs=1e-5)


def test_without_propagation_nothing_is_left_outside_the_roi() -> None:
    """A faint warped probability outside the margin is outside the bounds."""
    pipeline = make(
        STILL,
        osvos=osvos_from(np.ones((64, 96), np.uint8)),
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
