from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mpn.engines.directory.manifest import FlowSource
from mpn.engines.onnxruntime.engine import OrtEngine
from mpn.engines.open import EngineSet, open_engines
from mpn.errors import EngineError, InputError, ManifestError, MaskError, MpnWarning
from mpn.runtime.host.flow import DisFlow
from mpn.runtime.options import OsvosOptions
from mpn.runtime.pipeline import Pipeline, PipelineOptions
from tests.builders.clips import Clip, KnownFlow, Square, by_colour, iou, squares_clip
from tests.builders.engine_dirs import make_engine_dir
from tests.emulation.engines import fake_engine_set
from tests.runtime.pipelines import (
    PAN,
    PLAIN,
    TWO,
    make,
    pan_engine,
    propagation_calls,
    run,
)
from tests.tolerances import FLOAT32_RESIZE, PASTED_IOU, PROBS_SUM, RESIZED_IOU

# --- results -----------------------------------------------------------------------------


def test_first_frame_is_the_given_mask_without_network() -> None:
    pipeline = make(TWO)
    result = pipeline.start(TWO.frames[0], TWO.labels[0])
    assert result.index == 0
    assert result.object_ids == pipeline.object_ids == (2, 7)
    assert np.array_equal(result.labels, TWO.labels[0])
    assert np.array_equal(result.probs, np.stack([TWO.labels[0] == 2, TWO.labels[0] == 7]))
    assert propagation_calls(pipeline) == []
    for track in result.tracks:
        mask = TWO.labels[0] == track.object_id
        rows, columns = np.nonzero(mask)
        assert (track.state, track.branch, track.confidence) == ("given", "given", 1)
        assert track.area_px == mask.sum()
        assert track.box_xyxy == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def test_mask_without_network_moves_exactly_with_flow() -> None:
    pipeline = make(PAN, options={"use_propagation": False})
    for t, result in enumerate(run(pipeline, PAN)):
        assert result.index == t
        assert np.array_equal(result.labels, PAN.labels[t])
        assert result.tracks[0].confidence == 1
    assert propagation_calls(pipeline) == []


def test_identity_network_moves_mask_with_flow() -> None:
    for t, result in enumerate(run(make(PAN), PAN)):
        assert iou(result.labels > 0, PAN.labels[t] > 0) > PASTED_IOU
        assert result.tracks[0].state == ("tracked" if t else "given")
        assert result.tracks[0].branch == ("propagation" if t else "given")


def test_flow_of_the_wrong_sign_would_be_noticed() -> None:
    results = run(make(PAN, flows=[-flow for flow in PAN.flows_to_prev_px]), PAN)
    assert iou(results[-1].labels > 0, PAN.labels[-1] > 0) < 0.5


@pytest.mark.parametrize("step_xy", [(0.5, 0.25), (-1.3, 0.7)])
def test_sub_pixel_motion_adds_up(step_xy: tuple[float, float]) -> None:
    clip = squares_clip([Square(1, (30, 20), 24, step_xy)], pan_xy=step_xy, frames=9)
    results = run(make(clip, options={"use_propagation": False}), clip)
    assert iou(results[-1].labels > 0, clip.labels[-1] > 0) > 0.9
    assert iou(results[-1].labels > 0, clip.labels[0] > 0) < 0.75


def test_two_objects_pass_each_other_and_keep_their_ids() -> None:
    # Object 7 passes in front of object 2 and covers most of it in frame 7.
    results = run(make(TWO, propagation=by_colour), TWO)
    assert (TWO.labels[7] == 2).sum() < 0.3 * (TWO.labels[0] == 2).sum()
    for t, result in enumerate(results):
        for object_id in (2, 7):
            found = iou(result.labels == object_id, TWO.labels[t] == object_id)
            assert found > PASTED_IOU, (t, object_id)
        assert np.abs(result.probs.sum(axis=0)).max() <= 1 + PROBS_SUM


def test_propagation_batches_all_objects() -> None:
    pipeline = make(TWO)
    run(pipeline, TWO)
    assert [len(call) for call in propagation_calls(pipeline)] == [2] * 12


def test_propagation_splits_batches_above_max_objects() -> None:
    squares = [Square(i + 1, (2 + 17 * i, 20), 12, (0, 0)) for i in range(5)]
    clip = squares_clip(squares, frames=3)
    pipeline = make(clip, max_objects=2)
    results = run(pipeline, clip)
    assert [len(call) for call in propagation_calls(pipeline)] == [2, 2, 1] * 2
    whole = run(make(clip, max_objects=5), clip)
    assert np.array_equal(results[-1].probs, whole[-1].probs)


def test_network_input_is_current_frame_and_warped_mask() -> None:
    pipeline = make(PAN)
    pipeline.start(PAN.frames[0], PAN.labels[0])
    pipeline.step(PAN.frames[1])
    (packed,) = propagation_calls(pipeline)
    # The square is at (23..46, 17..40) in frame 1; the margin is 16 px, clipped at the top.
    rows, columns = slice(1, 57), slice(7, 63)
    expected = cv2.resize(PAN.frames[1][rows, columns].astype(np.float32), (65, 65)) / 255
    assert np.allclose(packed[0, :3], expected.transpose(2, 0, 1), atol=1e-5)
    mask = (PAN.labels[1][rows, columns] > 0).astype(np.float32)
    assert np.allclose(packed[0, 3], cv2.resize(mask, (65, 65)), atol=1e-5)
    before = cv2.resize(PAN.frames[0][rows, columns].astype(np.float32), (65, 65)) / 255
    assert not np.allclose(packed[0, :3], before.transpose(2, 0, 1), atol=0.05)


def test_soft_probability_is_propagated_not_the_labels() -> None:
    still = squares_clip([Square(1, (20, 15), 24, (0, 0))])
    pipeline = make(
        still, propagation=lambda x: {"prob": 0.9 * x["rgb_prob"][:, 3:4]}, options={"size": -1}
    )
    peaks = [result.probs.max() for result in run(pipeline, still)]
    assert np.allclose(peaks, [1, 0.9, 0.81, 0.729, 0.6561], atol=1e-6)


def test_propagation_weight_mixes_in_warped_mask() -> None:
    still = squares_clip([Square(1, (20, 15), 24, (0, 0))])
    pipeline = make(
        still,
        propagation=lambda x: {"prob": np.full_like(x["rgb_prob"][:, :1], 0.6)},
        options={"propagation_weight": 0.25},
    )
    pipeline.start(still.frames[0], still.labels[0])
    result = pipeline.step(still.frames[1])
    assert np.allclose(result.probs[0][still.labels[0] == 1], 0.25 * 0.6 + 0.75, atol=1e-6)
    assert np.allclose(result.probs[0, 1, 20], 0.25 * 0.6, atol=1e-6)  # margin of the ROI
    assert result.probs[0, 0, 89] == 0  # outside it


# --- lost and new objects ------------------------------------------------------


def test_object_leaving_the_frame_is_lost_alone() -> None:
    squares = [Square(1, (66, 20), 20, (8, 0)), Square(2, (10, 20), 20, (0, 0), channel=1)]
    clip = squares_clip(squares, frames=6)
    pipeline = make(clip, propagation=by_colour)
    results = run(pipeline, clip)
    assert [r.tracks[0].state for r in results] == ["given", *["tracked"] * 2, *["lost"] * 3]
    gone = results[-1].tracks[0]
    assert (gone.branch, gone.area_px, gone.box_xyxy, gone.confidence) == ("none", 0, None, 0)
    assert not results[-1].probs[0].any()
    assert iou(results[-1].labels == 2, clip.labels[-1] == 2) > PASTED_IOU
    assert len(propagation_calls(pipeline)[-1]) == 1


def test_all_objects_lost_runs_no_network() -> None:
    clip = squares_clip([Square(1, (66, 20), 20, (15, 0))], frames=5, pan_xy=(15, 0))
    pipeline = make(clip)
    results = run(pipeline, clip)
    assert not results[-1].labels.any()
    assert results[-1].probs.shape == (1, 60, 90)
    assert len(propagation_calls(pipeline)) == 1


@pytest.mark.parametrize(("lost_area_frac", "state"), [(0.0, "tracked"), (0.3, "lost")])
def test_shrinking_object_is_kept_without_min_area(lost_area_frac: float, state: str) -> None:
    # Half of the object leaves the frame with each of two steps of its half width.
    clip = squares_clip([Square(1, (70, 20), 20, (8, 0))], frames=3, pan_xy=(8, 0))
    for use_propagation in (True, False):
        options = {"lost_area_frac": lost_area_frac, "use_propagation": use_propagation}
        results = run(make(clip, options=options), clip)
        assert results[1].tracks[0].state == "tracked"
        assert results[2].tracks[0].state == state
        assert results[2].probs.any() == (state == "tracked")


def test_correct_updates_given_objects_only() -> None:
    pipeline = make(TWO, propagation=by_colour)
    pipeline.start(TWO.frames[0], TWO.labels[0])
    before = pipeline.step(TWO.frames[1])
    labels = np.zeros((60, 90), np.uint8)
    labels[30:34, 40:50] = 2
    corrected = pipeline.correct(labels)
    assert corrected.index == 1
    assert np.array_equal(corrected.labels == 2, labels == 2)
    assert np.array_equal(corrected.labels == 7, before.labels == 7)
    assert np.array_equal(corrected.probs[1], before.probs[1])
    assert [track.state for track in corrected.tracks] == ["given", "tracked"]
    pipeline.step(TWO.frames[2])
    prob = propagation_calls(pipeline)[-1][0, 3]
    # 4 x 10 px with 16 px around it in a crop of 36 x 42 px: the input is the new region.
    assert 0.5 < prob.mean() / (4 * 10 / (36 * 42)) < 2


def test_a_correction_takes_its_pixels_from_the_other_objects() -> None:
    pipeline = make(TWO)
    pipeline.start(TWO.frames[0], TWO.labels[0])
    labels = np.where(TWO.labels[0] == 2, 7, 0).astype(np.uint8)
    corrected = pipeline.correct(labels)
    assert np.array_equal(corrected.labels, labels)
    assert [track.area_px for track in corrected.tracks] == [0, 22 * 22]


def test_a_lost_object_comes_back_by_correction() -> None:
    clip = squares_clip([Square(1, (66, 20), 20, (15, 0))], frames=5, pan_xy=(15, 0))
    pipeline = make(clip)
    run(pipeline, clip)
    labels = np.zeros((60, 90), np.uint8)
    labels[5:25, 5:25] = 1
    assert pipeline.correct(labels).tracks[0].state == "given"


def test_added_objects_take_their_place_in_the_order_of_ids() -> None:
    pipeline = make(TWO, propagation=by_colour)
    only_7 = np.where(TWO.labels[0] == 7, 7, 0).astype(np.uint8)
    pipeline.start(TWO.frames[0], only_7)
    before = pipeline.step(TWO.frames[1])
    added = pipeline.add_objects(np.where(TWO.labels[1] == 2, 2, 0).astype(np.uint8))
    assert added.object_ids == pipeline.object_ids == (2, 7)
    assert added.index == 1
    assert np.array_equal(added.labels == 7, before.labels == 7)
    assert np.array_equal(added.labels == 2, TWO.labels[1] == 2)
    result = pipeline.step(TWO.frames[2])
    for object_id in (2, 7):
        assert iou(result.labels == object_id, TWO.labels[2] == object_id) > PASTED_IOU


def test_start_resets_even_with_another_size() -> None:
    pipeline = make(PAN)
    run(pipeline, PAN)
    small = squares_clip([Square(3, (5, 5), 9, (0, 0))], size_hw=(31, 33))
    assert pipeline.start(small.frames[0], small.labels[0]).index == 0
    assert pipeline.object_ids == (3,)
    assert sum(pipeline.timings.values()) < 60


# --- errors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: p.step(PAN.frames[0][:-1]), InputError, "90x59 but the video began with 90x60"),
        (lambda p: p.step(PAN.frames[0][..., 0]), InputError, r"\(H, W, 3\) uint8"),
        (lambda p: p.step(PAN.frames[0] / 255), InputError, "float64"),
        (lambda p: p.correct(PAN.labels[0][:-1]), InputError, "the mask is 90x59"),
        (lambda p: p.correct(PAN.labels[0] * 0), MaskError, "holds no object"),
        (lambda p: p.correct(PAN.labels[0] * 4), MaskError, r"object 4 does not exist .*are 1\)"),
        (lambda p: p.add_objects(PAN.labels[0]), MaskError, "object 1 exists already"),
        (lambda p: p.add_objects(PAN.labels[0] * 0), MaskError, "holds no object"),
    ],
)
def test_invalid_input_is_refused_and_state_unchanged(
    call: Callable[[Pipeline], object], error: type[Exception], message: str
) -> None:
    pipeline = make(PAN, options={"use_propagation": False})
    pipeline.start(PAN.frames[0], PAN.labels[0])
    with pytest.raises(error, match=message) as caught:
        call(pipeline)
    assert "\n" not in str(caught.value)
    assert np.array_equal(pipeline.step(PAN.frames[1]).labels, PAN.labels[1])


@pytest.mark.parametrize(
    ("rgb", "labels", "error", "message"),
    [
        (PAN.frames[0], PAN.labels[0] * 255, MaskError, "value 255"),
        (PAN.frames[0], PAN.labels[0] * 0, MaskError, "holds no object"),
        (PAN.frames[0], PAN.labels[0][:, 1:], InputError, "mask is 89x60"),
        (PAN.frames[0], PAN.labels[0] * 1.0, InputError, "float64"),
        (np.zeros((0, 4, 3), np.uint8), PAN.labels[0], InputError, "no pixels"),
    ],
)
def test_failed_start_ends_the_earlier_video(
    rgb: np.ndarray, labels: np.ndarray, error: type[Exception], message: str
) -> None:
    pipeline = make(PAN, options={"use_propagation": False})
    pipeline.start(PAN.frames[0], PAN.labels[0])
    with pytest.raises(error, match=message) as caught:
        pipeline.start(rgb, labels)
    assert "\n" not in str(caught.value)
    for call in (pipeline.step, pipeline.correct):
        with pytest.raises(InputError, match="call start"):
            call(PAN.frames[1])
    pipeline.start(PAN.frames[0], PAN.labels[0])
    assert np.array_equal(pipeline.step(PAN.frames[1]).labels, PAN.labels[1])


def test_everything_before_start_and_after_close_is_refused() -> None:
    pipeline = make(PAN)
    for call in (pipeline.step, pipeline.correct, pipeline.add_objects):
        with pytest.raises(InputError, match="call start"):
            call(PAN.labels[0] if call != pipeline.step else PAN.frames[0])
    with pipeline:
        run(pipeline, PAN)
    assert pipeline.engines.propagation.is_closed  # type: ignore[attr-defined]
    pipeline.close()
    with pytest.raises(InputError, match="closed"):
        pipeline.step(PAN.frames[0])
    with pytest.raises(InputError, match="closed"):
        pipeline.start(PAN.frames[0], PAN.labels[0])


def test_propagation_nan_raises_and_frame_can_be_retried() -> None:
    factors = [np.nan, 1.0]

    def network(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"prob": inputs["rgb_prob"][:, 3:4] * np.float32(factors.pop(0))}

    pipeline = make(propagation=network, flow=pan_engine)
    pipeline.start(PAN.frames[0], PAN.labels[0])
    with pytest.raises(EngineError, match=r"propagation engine .* not finite"):
        pipeline.step(PAN.frames[1])
    result = pipeline.step(PAN.frames[1])
    assert result.index == 1
    assert iou(result.labels > 0, PAN.labels[1] > 0) > PASTED_IOU


def test_pixels_with_nonfinite_flow_become_background() -> None:
    flows = [flow.copy() for flow in PAN.flows_to_prev_px]
    flows[1][0, :, :30] = np.nan
    pipeline = make(PAN, flows=flows, options={"use_propagation": False})
    pipeline.start(PAN.frames[0], PAN.labels[0])
    expected = PAN.labels[1].copy()
    expected[:, :30] = 0
    assert np.array_equal(pipeline.step(PAN.frames[1]).labels, expected)


def test_nan_flow_loses_objects() -> None:
    flows = [np.full_like(flow, np.nan) for flow in PAN.flows_to_prev_px]
    results = run(make(PAN, flows=flows), PAN)
    assert [result.tracks[0].state for result in results[1:]] == ["lost"] * 4


def test_a_flow_of_another_size_is_refused() -> None:
    pipeline = make(PAN, flows=[flow[:, :-1] for flow in PAN.flows_to_prev_px])
    pipeline.start(PAN.frames[0], PAN.labels[0])
    with pytest.raises(EngineError, match=r"\(2, 60, 90\) like the frame, got \(2, 59, 90\)"):
        pipeline.step(PAN.frames[1])


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 50), (50, 1), (2, 3), (33, 7), (37, 101)])
def test_frames_of_any_size_run_with_dis(size_hw: tuple[int, int]) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    labels = np.zeros(size_hw, np.uint8)
    labels[size_hw[0] // 2, size_hw[1] // 2] = 9
    with make() as pipeline:
        pipeline.start(rgb, labels)
        for _ in range(3):
            result = pipeline.step(rgb)
            assert result.labels.shape == size_hw
            assert np.array_equal(result.labels, labels)


@pytest.mark.parametrize("size", [50, 33])
def test_large_frames_keep_input_size_in_results(size: int) -> None:
    step = (4, 2)
    clip = squares_clip(
        [Square(1, (40, 20), 60, step), Square(4, (110, 30), 40, step, channel=1)],
        size_hw=(100, 181),
        pan_xy=step,
    )
    working_hw = (size, round(181 * size / 100))
    scale = np.array([working_hw[1] / 181, working_hw[0] / 100], np.float32)
    flows = [
        np.broadcast_to((flow[:, 0, 0] * scale)[:, None, None], (2, *working_hw)).copy()
        for flow in clip.flows_to_prev_px
    ]
    pipeline = make(clip, flows=flows, options={"size": size})
    results = run(pipeline, clip)
    assert np.array_equal(results[0].labels, clip.labels[0])
    for t, result in enumerate(results):
        assert result.labels.shape == (100, 181)
        assert result.probs.shape == (2, 100, 181)
        for object_id in (1, 4):
            found = iou(result.labels == object_id, clip.labels[t] == object_id)
            assert found > RESIZED_IOU, (t, object_id)


def test_a_correction_of_a_large_frame_is_kept_to_the_pixel() -> None:
    pipeline = make(PAN, flows=[np.zeros((2, 30, 45), np.float32)] * 9, options={"size": 30})
    pipeline.start(PAN.frames[0], PAN.labels[0])
    pipeline.step(PAN.frames[0])
    assert np.array_equal(pipeline.correct(PAN.labels[2]).labels, PAN.labels[2])
    result = pipeline.step(PAN.frames[2])
    assert iou(result.labels > 0, PAN.labels[2] > 0) > RESIZED_IOU


def test_frame_at_working_size_is_not_copied_or_changed() -> None:
    pipeline = make(PAN)
    frames = [frame.copy() for frame in PAN.frames]
    run(pipeline, PAN)
    assert all(np.array_equal(a, b) for a, b in zip(frames, PAN.frames, strict=True))


def test_results_do_not_change_in_later_steps() -> None:
    pipeline = make(PAN)
    pipeline.start(PAN.frames[0], PAN.labels[0])
    result = pipeline.step(PAN.frames[1])
    labels, probs = result.labels.copy(), result.probs.copy()
    pipeline.step(PAN.frames[2])
    pipeline.correct(PAN.labels[3])
    assert np.array_equal(result.labels, labels)
    assert np.array_equal(result.probs, probs)
    with pytest.raises(ValueError, match="read-only"):
        result.probs[0] = 0  # the next frame starts from it


# --- engines, options, times ---------------------------------------------------------------------


def test_flow_engine_is_used_if_set_in_manifest() -> None:
    pipeline = make(flow=pan_engine, options={"use_propagation": False})
    for t, result in enumerate(run(pipeline, PAN)):
        assert iou(result.labels > 0, PAN.labels[t] > 0) > PASTED_IOU
    calls = pipeline.engines.flow.calls  # type: ignore[union-attr]
    assert len(calls) == 4
    assert np.array_equal(calls[1]["frame1"], calls[0]["frame0"])  # current -> previous


def test_dis_follows_the_picture() -> None:
    clip = squares_clip(
        [Square(1, (40, 30), 50, (2, 1))], size_hw=(120, 160), pan_xy=(2, 1), frames=6
    )
    pipeline = make(flow_source=FlowSource("opencv-dis", "medium"))
    results = run(pipeline, clip)
    assert iou(results[-1].labels > 0, clip.labels[-1] > 0) > 0.9
    assert iou(results[-1].labels > 0, clip.labels[0] > 0) < 0.75


def test_the_manifests_advice_holds_unless_an_option_is_given() -> None:
    advice = {"threshold": 0.4, "size": 40}
    pipeline = make(PAN, runtime_defaults=advice, options={"size": 480})
    assert (pipeline.options.threshold, pipeline.options.size) == (0.4, 480)
    with pytest.raises(ManifestError, match=r"runtime_defaults\.tresh"):
        make(PAN, runtime_defaults={"tresh": 0.4})


def test_times_of_the_stages_add_up_over_frames() -> None:
    pipeline = make(PAN)
    results = run(pipeline, PAN)
    stages = {"flow", "warp", "crop", "propagation", "paste", "merge", "output"}
    assert set(results[-1].timings) == stages
    assert set(pipeline.timings) == {"input", *stages}  # "input" is of the first frame
    for stage in pipeline.timings:
        total = sum(result.timings.get(stage, 0) for result in results)
        assert pipeline.timings[stage] == pytest.approx(total)


@pytest.mark.parametrize("with_osvos", [False, True])
def test_a_directory_of_real_engines_runs_the_same(tmp_path: Path, with_osvos: bool) -> None:
    directory = make_engine_dir(
        tmp_path / "engines",
        with_flow=True,
        with_osvos=with_osvos,
        frame_size_hw=(60, 90),
        flow_px=(-3 * 128 / 90, -2 * 64 / 60),
    )
    options = PipelineOptions(osvos=OsvosOptions(mode="off"))
    with Pipeline.from_engines(directory, backend="cpu", options=options) as pipeline:
        assert pipeline.backend == "cpu"
        assert pipeline.engines.osvos is None  # off: not loaded
        results = run(pipeline, PAN)
    fake = run(make(flow=pan_engine), PAN)
    for real, known in zip(results, fake, strict=True):
        assert np.array_equal(real.labels, known.labels)
        assert np.abs(real.probs - known.probs).max() < FLOAT32_RESIZE


def test_osvos_of_a_directory_is_opened_and_runs(tmp_path: Path) -> None:
    directory = make_engine_dir(tmp_path / "engines", with_osvos=True)
    for mode, branch in (("blend", "blended"), ("auto", "propagation")):
        options = PipelineOptions(osvos=OsvosOptions(mode=mode))  # type: ignore[arg-type]
        with Pipeline.from_engines(directory, backend="cpu", options=options) as pipeline:
            assert run(pipeline, PAN)[-1].tracks[0].branch == branch


def test_threads_of_opencv_are_set_while_the_pipeline_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_engine_dir(tmp_path / "engines")
    before = cv2.getNumThreads()
    monkeypatch.setattr("mpn._common.concurrency.usable_cores", lambda: before + 1)
    with Pipeline.from_engines(directory, backend="cpu"):
        assert cv2.getNumThreads() == before
    with Pipeline.from_engines(directory, backend="cpu", threads=before + 1):
        assert cv2.getNumThreads() == before + 1
    assert cv2.getNumThreads() == before
    with (
        pytest.warns(MpnWarning, match=f"{before + 1} is used"),
        Pipeline.from_engines(directory, backend="cpu", threads=1000),
    ):
        assert cv2.getNumThreads() == before + 1


def test_closed_pipeline_returns_freed_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 8 pipelines of the shipped engines: 166 MB stay, not 543 MB."""
    events: list[str] = []
    monkeypatch.setattr("mpn.runtime.pipeline.return_freed_memory", lambda: events.append("freed"))
    close = OrtEngine.close
    monkeypatch.setattr(OrtEngine, "close", lambda e: (events.append("close"), close(e))[1])
    Pipeline.from_engines(make_engine_dir(tmp_path / "engines"), backend="cpu").close()
    assert set(events[:-1]) == {"close"}
    assert events[-1] == "freed"


def test_a_pipeline_that_cannot_be_made_leaves_no_engine_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_engine_dir(tmp_path / "engines")
    opened: list[EngineSet] = []

    def noted(*args: Any, **kwargs: Any) -> EngineSet:
        opened.append(open_engines(*args, **kwargs))
        return opened[-1]

    def fails(engines: EngineSet) -> None:
        raise InputError("no flow today")

    monkeypatch.setattr("mpn.runtime.pipeline.open_engines", noted)
    monkeypatch.setattr("mpn.runtime.pipeline.flow_estimator_from", fails)
    with pytest.raises(InputError, match="no flow today"):
        Pipeline.from_engines(directory, backend="cpu")
    with pytest.raises(EngineError, match="closed"):
        opened[0].propagation.run({"rgb_prob": np.zeros((1, 4, 65, 65), np.float32)})


class _TwoWayFlow:
    """Flow from the uncovered background to the object; the flow back is exact."""

    def __init__(self, clip: Clip) -> None:
        self._known = KnownFlow(clip.flows_to_prev_px)
        self._clip = clip
        self.calls = 0

    def prepare(self, rgb: np.ndarray) -> Any:
        return self._known.prepare(rgb)

    def estimate(self, frame0: Any, frame1: Any) -> np.ndarray:
        self.calls += 1
        if self.calls % 2:
            # The step (4, 0) of the square back, in a band up to 8 px behind it.
            flow = np.zeros((2, *frame0.size_hw), np.float32)
            flow[0, 10:34, 0:60] = -4
            return flow
        back = np.zeros((2, *frame0.size_hw), np.float32)
        back[0][self._clip.labels[0] == 1] = 4
        return back


def test_flow_check_excludes_uncovered_background() -> None:
    clip = squares_clip([Square(1, (20, 10), 24, (4, 0))], frames=2)
    areas = {}
    for flow_check_px in (0.0, 0.5):
        flow = _TwoWayFlow(clip)
        # the labels are 8 px wider than the square, which are warped too
        labels = clip.labels[0].copy()
        labels[10:34, 12:20] = 1
        pipeline = Pipeline(
            fake_engine_set(preprocessing=PLAIN),
            options=PipelineOptions(flow_check_px=flow_check_px, use_propagation=False),
            flow=flow,
        )
        with pipeline:
            pipeline.start(clip.frames[0], labels)
            areas[flow_check_px] = int((pipeline.step(clip.frames[1]).labels == 1).sum())
        assert flow.calls == (2 if flow_check_px else 1)
    assert areas[0.0] == 24 * 32
    # Only pixels that the flow back confirms stay (4 px of flow tolerate 2 px more).
    assert areas[0.5] == 24 * 24


def test_colour_weight_removes_leak_to_background() -> None:
    clip = squares_clip([Square(1, (30, 15), 24, (0, 0), channel=0)], frames=4)
    still = [np.zeros_like(flow) for flow in clip.flows_to_prev_px]

    def leaking(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        prob = inputs["rgb_prob"][:, 3:4].copy()
        leaking_into = prob[..., : prob.shape[-1] // 4]
        np.maximum(leaking_into, 0.6, out=leaking_into)
        return {"prob": prob}

    overlap = {}
    for colour_weight in (0.0, 1.0):
        options = {"colour_weight": colour_weight, "roi_margin_px_min": 12}
        with make(clip, options=options, flows=still, propagation=leaking) as pipeline:
            pipeline.start(clip.frames[0], clip.labels[0])
            pipeline.step(clip.frames[1])
            pipeline.engines.propagation._function = lambda i: {"prob": i["rgb_prob"][:, 3:4]}
            result = [pipeline.step(frame) for frame in clip.frames[2:]][-1]
        overlap[colour_weight] = iou(result.labels == 1, clip.labels[-1] == 1)
    assert overlap[0.0] < 0.8
    assert overlap[1.0] > 0.95


def test_correct_rebuilds_colour_table_of_object() -> None:
    with make(TWO, options={"colour_weight": 0.5}) as pipeline:
        pipeline.start(TWO.frames[0], TWO.labels[0])
        state = pipeline._state
        assert state is not None
        first, second = state.colour_tables
        assert not np.array_equal(first, second)
        pipeline.step(TWO.frames[1])
        labels = np.zeros_like(TWO.labels[1])
        labels[40:50, 40:60] = 2  # background, given as object 2
        pipeline.correct(labels)
        assert pipeline._state is not None
        corrected, untouched = pipeline._state.colour_tables
        assert not np.array_equal(corrected, first)
        np.testing.assert_array_equal(untouched, second)


def test_resume_at_keeps_colour_tables() -> None:
    with make(TWO, options={"colour_weight": 0.5}) as unbroken:
        expected = run(unbroken, TWO)
    at = 4
    with make(TWO, options={"colour_weight": 0.5}) as pipeline:
        pipeline.start(TWO.frames[0], TWO.labels[0])
        before = pipeline._state
        assert before is not None
        found = pipeline.resume_at(TWO.frames[at], expected[at].labels)
        np.testing.assert_array_equal(found.labels, expected[at].labels)
        after = pipeline._state
        assert after is not None
        assert after.colour_tables is before.colour_tables
        assert after.first_areas_px == before.first_areas_px
        # The flow of the clip identifies frames by the order of prepare().
        pipeline._flow._prepared = at + 1
        flow_frame = pipeline._backend.snapshot().flow_frame
        object.__setattr__(flow_frame, "data", np.array(at))
        for truth in (5, 6):
            result = pipeline.step(TWO.frames[truth])
            for k in (2, 7):
                assert iou(result.labels == k, expected[truth].labels == k) > RESIZED_IOU


def test_an_object_that_the_labels_lack_is_lost_when_resuming() -> None:
    with make(TWO) as pipeline:
        pipeline.start(TWO.frames[0], TWO.labels[0])
        labels = np.where(TWO.labels[1] == 2, 2, 0).astype(np.uint8)
        result = pipeline.resume_at(TWO.frames[1], labels)
    assert [(track.object_id, track.state) for track in result.tracks] == [
        (2, "tracked"),
        (7, "lost"),
    ]


def test_resuming_needs_a_start_and_a_frame_of_the_same_size() -> None:
    with make(TWO) as pipeline:
        with pytest.raises(InputError, match="no first frame yet"):
            pipeline.resume_at(TWO.frames[1], TWO.labels[1])
        pipeline.start(TWO.frames[0], TWO.labels[0])
        with pytest.raises(InputError, match="the video began with"):
            pipeline.resume_at(TWO.frames[1][:, :-2], TWO.labels[1][:, :-2])


# --- arrays of the caller, videos after each other, threads and forks -----------------------------


def test_step_keeps_no_array_of_the_caller() -> None:
    """The caller draws on a frame after step, or fills one array again and again."""
    results = []
    for is_reused in (False, True):
        with make() as pipeline:
            rgb, labels = TWO.frames[0].copy(), TWO.labels[0].copy()
            pipeline.start(rgb, np.where(labels == 2, labels, 0).astype(np.uint8))
            for t in (1, 2):
                if is_reused:
                    rgb[:], labels[:] = TWO.frames[t], TWO.labels[t]
                else:
                    rgb, labels = TWO.frames[t].copy(), TWO.labels[t].copy()
                pipeline.step(rgb)
            if is_reused:
                rgb[:] = 0
            new = np.where(labels == 7, labels, 0).astype(np.uint8)
            added = pipeline.add_objects(new)
            if is_reused:
                new[:] = 0
            assert pipeline._state is not None
            tables = pipeline._state.colour_tables
            last = pipeline.step(TWO.frames[3])
            results.append((added.labels, last.probs, *tables))
    for plain, reused in zip(*results, strict=True):
        np.testing.assert_array_equal(plain, reused)


def test_resume_at_keeps_no_array_of_the_caller() -> None:
    with make() as pipeline:
        pipeline.start(TWO.frames[0], TWO.labels[0])
        rgb, labels = TWO.frames[1].copy(), TWO.labels[1].copy()
        pipeline.resume_at(rgb, labels)
        rgb[:], labels[:] = 0, 0
        memory = pipeline._backend.snapshot()
        np.testing.assert_array_equal(memory.frame, TWO.frames[1])
        assert not np.shares_memory(memory.frame, rgb)


def test_videos_of_one_pipeline_equal_those_of_two() -> None:
    """In any order and size: OpenCV's DIS keeps the settings of a small image."""
    square = Square(1, (20, 15), 24, (3, 2))
    clips = [
        squares_clip([square], size_hw=size_hw, frames=4)
        for size_hw in ((60, 90), (120, 200), (50, 80))
    ]

    def make_with_dis() -> Pipeline:
        flow = DisFlow(FlowSource("opencv-dis", "ultrafast"))
        return Pipeline(fake_engine_set(preprocessing=PLAIN), flow=flow)

    alone = []
    for clip in clips:
        with make_with_dis() as pipeline:
            alone.append([result.probs for result in run(pipeline, clip)])
    for order in ((0, 1, 2), (2, 1, 0), (1, 1, 0)):
        with make_with_dis() as pipeline:
            for n in order:
                for result, expected in zip(run(pipeline, clips[n]), alone[n], strict=True):
                    np.testing.assert_array_equal(result.probs, expected)


def test_finetune_report_is_of_the_current_video() -> None:
    with make(adapts={"propagation": lambda _: None}) as pipeline:
        for _ in range(2):
            pipeline.start(TWO.frames[0], TWO.labels[0])
            assert [entry["object_id"] for entry in pipeline.finetune_report()] == [2, 7]


def test_call_during_a_call_of_another_thread_raises() -> None:
    entered, may_go = threading.Event(), threading.Event()

    def network(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        entered.set()
        assert may_go.wait(10)
        return {"prob": inputs["rgb_prob"][:, 3:4]}

    with make(propagation=network) as pipeline:
        pipeline.start(PAN.frames[0], PAN.labels[0])
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(pipeline.step(PAN.frames[1])))
        thread.start()
        assert entered.wait(10)
        calls: list[Callable[[], object]] = [
            lambda: pipeline.step(PAN.frames[2]),
            lambda: pipeline.start(PAN.frames[0], PAN.labels[0]),
            lambda: pipeline.correct(PAN.labels[0]),
            lambda: pipeline.resume_at(PAN.frames[0], PAN.labels[0]),
        ]
        try:
            for call in calls:
                with pytest.raises(InputError, match="one thread at a time") as caught:
                    call()
                assert "\n" not in str(caught.value)
        finally:
            may_go.set()
            thread.join()
        assert results[0].index == 1
        assert pipeline.step(PAN.frames[2]).index == 2


def test_close_waits_for_the_call_of_another_thread() -> None:
    """The error of the block is raised; a close within a call is refused."""
    entered, may_go = threading.Event(), threading.Event()
    own_close: list[str] = []

    def network(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with pytest.raises(InputError, match="in use") as caught:
            pipeline.close()
        own_close.append(str(caught.value))
        entered.set()
        assert may_go.wait(10)
        return {"prob": inputs["rgb_prob"][:, 3:4]}

    results: list[Any] = []
    pipeline = make(propagation=network)
    thread = threading.Thread(target=lambda: results.append(pipeline.step(PAN.frames[1])))

    def block_that_fails() -> None:
        with pipeline:
            pipeline.start(PAN.frames[0], PAN.labels[0])
            thread.start()
            assert entered.wait(10)
            threading.Timer(0.05, may_go.set).start()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block_that_fails()
    thread.join()
    assert results[0].index == 1
    assert len(own_close) == 1
    with pytest.raises(InputError, match="closed"):
        pipeline.step(PAN.frames[2])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_pipeline_in_a_fork_raises_and_ends(tmp_path: Path) -> None:
    """Use, close, delete, and the exit of the interpreter: none of them hangs."""
    directory = make_engine_dir(tmp_path / "engines")
    script = """
import os, signal, sys
import numpy as np
from mpn import Pipeline
from mpn._common.concurrency import Prefetch
from mpn.errors import InputError
frame, labels = np.zeros((60, 90, 3), np.uint8), np.ones((60, 90), np.uint8)
pipeline = Pipeline.from_engines(sys.argv[1], backend="cpu", threads=2)
pipeline.start(frame, labels)
reader = Prefetch(iter(lambda: 1, 2), depth=1)
if os.fork() == 0:
    signal.alarm(20)
    for call in (lambda: pipeline.step(frame), lambda: next(reader)):
        try:
            call()
        except InputError as error:
            print(error)
    reader.close()
    pipeline.close()
    del pipeline
    with Pipeline.from_engines(sys.argv[1], backend="cpu", threads=2) as another:
        another.start(frame, labels)
        print(another.step(frame).index)
    sys.exit(0)
print(os.waitstatus_to_exitcode(os.wait()[1]), pipeline.step(frame).index)
reader.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(directory)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    of_pipeline, of_reader, *numbers = done.stdout.splitlines()
    assert "fork of it, without its threads" in of_pipeline
    assert "fork of it, without its threads" in of_reader
    assert numbers == ["1", "0 1"]
