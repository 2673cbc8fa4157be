from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mpn.runtime.finetune.augment.clip import LucidClip, LucidRange
from mpn.runtime.finetune.augment.motion import MotionRange
from mpn.runtime.finetune.augment.scene import LucidScene
from tests.builders.clips import Square, iou, squares_clip

STILL = MotionRange(0, 0, 0, 0, 0, 0, 0, 0, 0)
AS_GIVEN = LucidRange(
    STILL, STILL, background_swap_prob=0, distractor_prob=0, light=0, blur_share=0
)


CLIP = squares_clip(
    [Square(1, (40, 40), 40, (0, 0)), Square(2, (84, 50), 30, (0, 0), channel=2)],
    size_hw=(120, 240),
    frames=1,
)


@pytest.fixture(scope="module")
def scene() -> LucidScene:
    return LucidScene.from_frame(CLIP.frames[0], CLIP.labels[0], 1, side_px=200)


def lucid_clip(scene: LucidScene, lucid_range: LucidRange, seed: int = 0) -> LucidClip:
    return LucidClip(scene, lucid_range, np.random.default_rng(seed))


def test_clip_without_motion_and_light_equals_the_frame(scene: LucidScene) -> None:
    given = CLIP.frames[0][:, :120]  # the window
    rgb, target = lucid_clip(scene, AS_GIVEN).frame(2)
    np.testing.assert_array_equal(target, scene.target.alpha > 0)
    inner = np.zeros_like(target)
    inner[45:75, 45:75] = True  # the outline is feathered
    assert np.abs(rgb[inner].astype(int) - given[inner]).max() <= 1
    assert np.abs(rgb[:25].astype(int) - given[:25]).max() <= 1


def test_same_seed_gives_the_same_clip(scene: LucidScene) -> None:
    first, again, other = (lucid_clip(scene, LucidRange(), seed).frame(3) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert np.any(first[0] != other[0])


def test_frame_does_not_depend_on_earlier_calls(scene: LucidScene) -> None:
    clip = lucid_clip(scene, LucidRange(), 7)
    late = clip.frame(3)
    clip.frame(0)
    np.testing.assert_array_equal(clip.frame(3)[0], late[0])


def test_objects_and_background_move_independently(scene: LucidScene) -> None:
    moving = replace(AS_GIVEN, objects=replace(STILL, speed_px=200), static_prob=0)
    clip = lucid_clip(scene, moving, 3)
    rgb0, target0 = clip.frame(0)
    rgb1, target1 = clip.frame(1)
    assert iou(target0, target1) < 0.95
    uncovered = target0 & ~target1
    assert rgb0[uncovered][:, 0].mean() > 200  # the object is bright red
    assert rgb1[uncovered][:, 0].mean() < 180  # and what it uncovers is not
    np.testing.assert_array_equal(rgb0[:20], rgb1[:20])  # the background does not move


def test_target_is_the_visible_part_of_the_object(scene: LucidScene) -> None:
    """An object or distractor in front removes pixels from the target."""
    hidden = 0
    for seed in range(30):
        clip = lucid_clip(
            scene, replace(LucidRange(), light=0, blur_share=0, distractor_prob=1), seed
        )
        rgb, target = clip.frame(1)
        assert target.any()
        red = rgb[..., 0].astype(int) - rgb[..., 1] > 60
        hidden += int(target.sum() < 0.8 * (scene.target.alpha > 0).sum())
        blue = rgb[..., 2].astype(int) - rgb[..., 0] > 100
        assert not (target & blue).sum() > 0.02 * target.sum()  # the blue object is not the target
        assert (target & red).sum() > 0.5 * target.sum()
    assert hidden > 3


def test_clip_swaps_the_background_behind_the_object(scene: LucidScene) -> None:
    swapped = replace(AS_GIVEN, background_swap_prob=1.0)
    shown = [lucid_clip(scene, swapped, seed).frame(0) for seed in range(6)]
    original, target = lucid_clip(scene, AS_GIVEN).frame(0)
    assert all(np.array_equal(target, other) for _, other in shown)
    far = ~target
    far[30:90, 30:120] = False
    difference = [np.abs(rgb[far].astype(int) - original[far]).mean() for rgb, _ in shown]
    assert np.median(difference) > 10
    for rgb, _ in shown:
        np.testing.assert_array_equal(rgb[50:70, 50:70], original[50:70, 50:70])


def test_light_and_focus_change(scene: LucidScene) -> None:
    plain = lucid_clip(scene, AS_GIVEN, 1).frame(0)[0]
    lit = lucid_clip(scene, replace(AS_GIVEN, light=1.0), 1).frame(0)[0]
    blurred = lucid_clip(scene, replace(AS_GIVEN, blur_share=1.0), 1).frame(0)[0]
    assert np.abs(plain.astype(int) - lit).mean() > 3
    assert np.abs(np.diff(blurred[:20].astype(int), axis=1)).mean() < (
        np.abs(np.diff(plain[:20].astype(int), axis=1)).mean()
    )
