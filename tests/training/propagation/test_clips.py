from __future__ import annotations

import cv2
import numpy as np
import pytest

from mpn.errors import TrainingError
from mpn.training.propagation.clips import (
    ClipMix,
    ClipSources,
    CompositeClip,
    DavisClip,
    DuplicateClip,
    ShapeClip,
    StillClip,
    VanishingClip,
    sample_clip,
)

MIXES = {
    "davis": ClipMix(1, 0, 0),
    "still": ClipMix(0, 1, 0),
    "composite": ClipMix(0, 0, 1),
    "vanishing": ClipMix(0, 0, 0, 1),
    "three": ClipMix(0, 0, 1, third_object=1.0),
    "duplicate": ClipMix(0, 0, 1, duplicate=1.0),
}


@pytest.mark.parametrize("kind", MIXES)
def test_a_clip_is_a_function_of_its_seed(material: ClipSources, kind: str) -> None:
    first, again = (sample_clip(material, MIXES[kind], 5) for _ in range(2))
    other = sample_clip(material, MIXES[kind], 6)
    rgb, mask = first.frame(2)
    np.testing.assert_array_equal(rgb, again.frame(2)[0])
    np.testing.assert_array_equal(mask, again.frame(2)[1])
    assert rgb.shape != other.frame(2)[0].shape or (rgb != other.frame(2)[0]).any()


@pytest.mark.parametrize("kind", MIXES)
def test_frames_and_masks_have_one_size_and_type(material: ClipSources, kind: str) -> None:
    for seed in range(6):
        clip = sample_clip(material, MIXES[kind], seed)
        assert len(clip) >= 2
        rgb, mask = clip.frame(1)
        assert rgb.dtype == np.uint8
        assert mask.dtype == np.bool_
        assert rgb.shape == (*mask.shape, 3)


def test_a_negative_stride_plays_backwards(material: ClipSources) -> None:
    sequence = material.sequences[0]
    clip = DavisClip(sequence, 1, start=6, stride=-2)
    assert len(clip) == 4
    np.testing.assert_array_equal(clip.frame(1)[0], sequence.rgb(4))


def test_a_still_clip_moves_its_object(material: ClipSources) -> None:
    clip = StillClip(material.stills[0], seed=3)
    centres = [np.argwhere(clip.frame(t)[1]).mean(axis=0) for t in (0, 20)]
    assert np.linalg.norm(centres[0] - centres[1]) > 2


def test_the_pasted_object_occludes_the_base_object(material: ClipSources) -> None:
    base = DavisClip(material.sequences[0], 1, 0, 1)
    over = DavisClip(material.sequences[1], 1, 0, 1)
    on_top = CompositeClip(base, over, target_over=True, seed=2)
    below = CompositeClip(base, over, target_over=False, seed=2)
    for t in range(3):
        np.testing.assert_array_equal(on_top.frame(t)[0], below.frame(t)[0])
        assert not (on_top.frame(t)[1] & below.frame(t)[1]).any()
        np.testing.assert_array_equal(below.frame(t)[1], base.frame(t)[1] & ~on_top.frame(t)[1])


def test_without_stills_every_kind_is_still_drawn(material: ClipSources) -> None:
    alone = ClipSources(material.sequences)
    for seed in range(10):
        clip = sample_clip(alone, ClipMix(0.4, 0.3, 0.3), seed)
        assert not isinstance(clip, StillClip)


def test_shape_clip_mask_is_connected_and_independent(
    material: ClipSources,
) -> None:
    pair = material.stills[0]
    shapes = [ShapeClip(pair, seed).mask > 127 for seed in range(8)]
    for shape in shapes:
        assert 0.01 < shape.mean() < 0.9
        assert cv2.connectedComponents(shape.astype(np.uint8))[0] == 2
    assert len({shape.tobytes() for shape in shapes}) == 8
    np.testing.assert_array_equal(ShapeClip(pair, 3).mask, ShapeClip(pair, 3).mask)


def _composite(material: ClipSources, kind: type[CompositeClip], **kw: bool) -> CompositeClip:
    base = DavisClip(material.sequences[0], 1, 0, 1)
    return kind(base, StillClip(material.stills[0], seed=1), seed=2, **kw)


def test_vanishing_clip_removes_object_and_mask(material: ClipSources) -> None:
    clip = _composite(material, VanishingClip)
    stays = _composite(material, CompositeClip, target_over=True)
    for t in range(len(clip)):
        rgb, mask = clip.frame(t)
        if t < clip.visible_frames:
            np.testing.assert_array_equal(rgb, stays.frame(t)[0])
            np.testing.assert_array_equal(mask, stays.frame(t)[1])
        else:
            np.testing.assert_array_equal(rgb, clip.base.frame(t)[0])
            assert not mask.any()
    assert 2 <= clip.visible_frames < len(clip)
    # control: what stays is still there at the end
    assert stays.frame(len(clip) - 1)[1].any()


def test_twin_is_the_same_object_of_its_size_close_to_it(material: ClipSources) -> None:
    for seed in range(8):
        clip = sample_clip(material, MIXES["duplicate"], seed)
        assert isinstance(clip, DuplicateClip)
        if isinstance(clip.base, DavisClip):
            assert isinstance(clip.over, DavisClip)
            assert clip.over.sequence is clip.base.sequence
            assert clip.over.object_id == clip.base.object_id
        else:
            assert isinstance(clip.base, StillClip)
            assert isinstance(clip.over, StillClip)
            assert clip.over.rgb is clip.base.rgb
            assert (clip.over.frame(3)[0] != clip.base.frame(3)[0]).any()
        own, other = clip.base.frame(0)[1], clip.over.frame(0)[1]
        ratio = clip.scale**2 * other.sum() / own.sum()
        assert 0.59 < ratio < 1.41 or clip.scale in (0.3, 2.0)
        centre_xy = np.argwhere(own).mean(axis=0)[::-1]
        box_wh = np.ptp(np.argwhere(own), axis=0)[::-1] + 1
        assert (np.abs(clip.centre_xy - centre_xy) <= 1.61 * box_wh).all()


def test_a_third_object_occludes_the_target_of_a_composite(material: ClipSources) -> None:
    two = sample_clip(material, ClipMix(0, 0, 1), 5)
    three = sample_clip(material, ClipMix(0, 0, 1, third_object=1.0), 5)
    assert isinstance(three, CompositeClip)
    occluded = 0
    for t in range(min(len(two), len(three))):
        np.testing.assert_array_equal(three.base.frame(t)[0], two.frame(t)[0])
        mask = three.frame(t)[1]
        assert not (mask & ~two.frame(t)[1]).any()
        occluded += np.count_nonzero(two.frame(t)[1] & ~mask)
        changed = (three.frame(t)[0] != two.frame(t)[0]).any(axis=2)
        assert changed[two.frame(t)[1] & ~mask].mean() > 0.5 if occluded else True
    assert not isinstance(two.base, CompositeClip)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"davis": 0, "still": 0, "composite": 0}, "not all 0"),
        ({"vanishing": -0.1}, "at least 0"),
        ({"third_object": 1.5}, r"of 0\.\.1, got 1\.5"),
        ({"duplicate": -0.5}, r"of 0\.\.1, got -0\.5"),
    ],
)
def test_shares_that_make_no_mix_are_refused(mix: dict[str, float], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        ClipMix(**mix)
