from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mpn.engines.directory.manifest import Preprocessing, PropagationPreprocessing
from mpn.errors import MaskError
from mpn.runtime.finetune.augment.clip import LucidRange
from mpn.runtime.finetune.augment.motion import MotionRange
from mpn.runtime.finetune.augment.propagation import PropagationSampler, SamplerOptions
from mpn.runtime.host.flow import flow_estimator_from
from mpn.runtime.options import ResolvedOptions
from mpn.types import Float32Array
from tests.builders.clips import Square, iou, squares_clip
from tests.emulation.engines import FakeEngine, fake_engine_set, fourth_channel, pooled_colours

PLAIN = Preprocessing(propagation=PropagationPreprocessing((0, 0, 0), (1, 1, 1)))
CLIP = squares_clip(
    [Square(1, (40, 40), 40, (0, 0)), Square(2, (84, 50), 30, (0, 0), channel=2)],
    size_hw=(120, 140),
    frames=1,
)
OPTIONS = ResolvedOptions(flow_check_px=10, colour_weight=0.75, roi_margin_frac=0.05)
STILL = MotionRange(0, 0, 0, 0, 0, 0, 0, 0, 0)
AS_GIVEN = SamplerOptions(
    clips=LucidRange(
        STILL, STILL, background_swap_prob=0, distractor_prob=0, light=0, blur_share=0
    ),
    damage_share=0,
    roi_jitter_frac=(0, 0),
)


def sampler(
    *,
    prediction: Any = fourth_channel,
    sampler_options: SamplerOptions | None = None,
    options: ResolvedOptions = OPTIONS,
    size_px: int = 65,
    batch: int = 3,
    seed: int = 0,
    object_id: int = 1,
    **given: Any,
) -> tuple[PropagationSampler, FakeEngine]:
    engines = fake_engine_set(propagation=prediction, roi_size=81, preprocessing=PLAIN, **given)
    engine = engines.propagation
    assert isinstance(engine, FakeEngine)
    source = PropagationSampler(
        CLIP.frames[0],
        CLIP.labels[0],
        object_id,
        engines=engines,
        flow=flow_estimator_from(engines),
        options=options,
        size_px=size_px,
        batch=batch,
        seed=[seed],
        sampler_options=sampler_options,
    )
    return source, engine


def overlap(inputs: Float32Array, target: Float32Array) -> float:
    """Return the mean IoU of the input probability and the target."""
    found = [iou(a[3] > 0.5, b[0] > 0.5) for a, b in zip(inputs, target, strict=True)]
    return float(np.mean(found))


def test_batch_matches_the_network_input() -> None:
    source, _ = sampler()
    for _ in range(3):
        inputs, target = source.batch()
        assert (inputs.shape, target.shape) == ((3, 4, 65, 65), (3, 1, 65, 65))
        assert inputs.dtype == target.dtype == np.float32
        for array in (inputs, target):
            assert array.min() >= 0
            assert array.max() <= 1
            assert array.flags.c_contiguous


@pytest.mark.parametrize("one_shot", ["auto", "off"])
def test_batch_has_the_score_for_networks_that_take_it(one_shot: str) -> None:
    source, engine = sampler(
        options=ResolvedOptions(one_shot=one_shot),
        sampler_options=AS_GIVEN,
        prediction=lambda inputs: {"prob": inputs["rgb_prob_score"][:, 3:4]},
        features=pooled_colours,
        takes_score=True,
    )
    for _ in range(4):
        inputs, target = source.batch()
    assert inputs.shape == (3, 5, 65, 65)
    assert engine.calls[-1]["rgb_prob_score"].shape[1:] == (5, 81, 81)
    score = inputs[:, 4:]
    if one_shot == "off":
        assert (score == 0.5).all()
    else:
        is_object = target > 0.5
        assert score[is_object].mean() > 0.6 > 0.3 > score[~is_object].mean()


def test_same_seed_gives_same_batches_with_different_rows() -> None:
    first, again, other = sampler(seed=1)[0], sampler(seed=1)[0], sampler(seed=2)[0]
    for _ in range(4):
        inputs, target = first.batch()
        same_inputs, same_target = again.batch()
        np.testing.assert_array_equal(inputs, same_inputs)
        np.testing.assert_array_equal(target, same_target)
        assert np.any(inputs[0] != inputs[1])
    assert np.any(other.batch()[0] != first.batch()[0])


def test_unchanged_sample_equals_pipeline_crop() -> None:
    source, _ = sampler(
        sampler_options=AS_GIVEN, batch=8, options=replace(OPTIONS, colour_weight=0)
    )
    inputs, target = source.batch()
    # The object and the smallest margin, 16 px a side: 40 of 72 px, or 36 of 65 in the crop.
    expected = np.zeros((65, 65), bool)
    expected[14:51, 14:51] = True
    for crop, share in zip(inputs, target, strict=True):
        assert iou(share[0] > 0.5, expected) > 0.9
        assert iou(crop[3] > 0.5, expected) > 0.9
        red = crop[0] - crop[1] > 0.2
        assert iou(red, expected) > 0.9


def test_another_object_is_background() -> None:
    source, _ = sampler(
        sampler_options=replace(AS_GIVEN, clips=LucidRange(distractor_prob=0)), batch=16
    )
    blue_px = red_px = 0
    for _ in range(4):
        inputs, target = source.batch()
        blue = (inputs[:, 2] - inputs[:, 0] > 0.25) & (inputs[:, 2] - inputs[:, 1] > 0.25)
        red = (inputs[:, 0] - inputs[:, 2] > 0.25) & (inputs[:, 0] - inputs[:, 1] > 0.25)
        blue_px += blue.sum()
        red_px += red.sum()
        assert (blue & (target[:, 0] > 0.5)).sum() <= 0.02 * max(blue.sum(), 1)
        assert (red & (target[:, 0] > 0.5)).sum() > 0.9 * red.sum()
    assert blue_px > 0.01 * red_px  # control: the other object is in some crops


def test_most_clips_start_with_a_corrupted_mask() -> None:
    clean = replace(SamplerOptions(), damage_share=0.0, longest=1)
    corrupted = replace(SamplerOptions(), damage_share=1.0, longest=1)
    found = [
        np.mean(
            [overlap(*sampler(sampler_options=o, seed=s, batch=8)[0].batch()) for s in range(4)]
        )
        for o in (clean, corrupted)
    ]
    assert found[0] > found[1] + 0.1


def test_clips_continue_with_the_network_output() -> None:
    """A network that drops the left half gets its own error as the next input."""

    def left_half_missing(inputs: Mapping[str, Float32Array]) -> dict[str, Any]:
        prediction = inputs["rgb_prob"][:, 3:4].copy()
        prediction[..., : prediction.shape[3] // 2] = 0
        return {"prob": prediction}

    on = replace(AS_GIVEN, longest=2, feedback_share=1.0, stop_iou=0.2)
    shown = {}
    for share in (0.0, 1.0):
        source, engine = sampler(
            prediction=left_half_missing, sampler_options=replace(on, feedback_share=share), batch=8
        )
        source.batch()
        shown[share] = overlap(*source.batch())
        assert bool(engine.calls) == bool(share)
    assert shown[0.0] > 0.85
    assert shown[1.0] < shown[0.0] - 0.08  # half of the clips are new


def test_network_input_has_network_size_of_same_crop() -> None:
    source, engine = sampler(sampler_options=replace(AS_GIVEN, longest=4), batch=4)
    inputs, _ = source.batch()
    source.batch()
    network_inputs = engine.calls[0]["rgb_prob"]
    assert network_inputs.shape[1:] == (4, 81, 81)
    means = inputs[:, :3].mean(axis=(2, 3))
    for crop in network_inputs:
        distance = np.abs(means - crop[:3].mean(axis=(1, 2))).max(axis=1)
        assert distance.min() < 0.02


def test_clip_with_a_lost_object_ends() -> None:
    nothing, _ = sampler(
        prediction=lambda inputs: {"prob": np.zeros_like(inputs["rgb_prob"][:, 3:4])},
        sampler_options=replace(AS_GIVEN, longest=4),
    )
    for _ in range(4):
        assert overlap(*nothing.batch()) > 0.85  # a new clip each time


def test_large_object_is_scaled_to_the_size_of_the_crop() -> None:
    """Options in pixels of the frame are scaled with the clip."""
    source, _ = sampler(options=replace(OPTIONS, roi_margin_px_min=16), size_px=65, batch=1)
    assert source._pipeline.scene.scale == 1
    tiny, _ = sampler(size_px=33, batch=1)
    scale = tiny._pipeline.scene.scale
    assert scale == pytest.approx(0.93 * 33 / 40)
    assert tiny._pipeline.options.flow_check_px == pytest.approx(10 * scale)
    assert tiny._pipeline.options.roi_margin_px_min == round(16 * scale)


def test_too_small_object_raises() -> None:
    with pytest.raises(MaskError, match="object 3 has 0 pixels"):
        sampler(object_id=3)


def test_object_that_is_lost_in_each_clip_raises() -> None:
    """The object always starts far outside the window."""
    away = replace(STILL, shift_frac=1e4)
    gone = replace(AS_GIVEN, clips=LucidRange(away, STILL, static_prob=0, distractor_prob=0))
    source, _ = sampler(sampler_options=gone, batch=1)
    with pytest.raises(MaskError, match="lost in every clip"):
        source.batch()
