from __future__ import annotations

import numpy as np
import pytest

from mpn.errors import InputError, MaskError
from mpn.runtime.finetune.augment.scene import LucidScene
from mpn.runtime.host.reliability import colour_table
from tests.builders.clips import Clip, Square, squares_clip
from tests.tolerances import INPAINTED_LEVELS

SIZE_HW = (120, 120)


def scene_clip(side: int = 40, **square: object) -> Clip:
    return squares_clip(
        [Square(1, (40, 40), side, (0, 0), channel=0)], size_hw=SIZE_HW, frames=1, **square
    )


def test_the_object_is_painted_over_in_the_colours_around_it() -> None:
    clip = scene_clip()
    inside = clip.labels[0] == 1
    scene = LucidScene.from_frame(clip.frames[0], clip.labels[0], 1, side_px=100)
    assert scene.size_hw == SIZE_HW  # the surroundings reach beyond the frame
    painted = scene.background[inside].mean(axis=0)
    around = clip.frames[0][~inside].mean(axis=0)
    given = clip.frames[0][inside].mean(axis=0)
    np.testing.assert_allclose(painted, around, atol=INPAINTED_LEVELS)
    assert abs(given - around).max() > 3 * INPAINTED_LEVELS  # the control: it was another colour


def test_the_background_away_from_the_object_is_the_frame() -> None:
    clip = scene_clip()
    scene = LucidScene.from_frame(clip.frames[0], clip.labels[0], 1, side_px=100)
    np.testing.assert_array_equal(scene.background[:20], clip.frames[0][:20])


def test_the_painted_part_has_detail() -> None:
    clip = scene_clip()
    scene = LucidScene.from_frame(clip.frames[0], clip.labels[0], 1, side_px=100)
    inside = clip.labels[0] == 1
    grey = scene.background.mean(axis=2)
    assert grey[inside].std() > 0.4 * grey[~inside].std()


def test_scene_layer_keeps_object_and_extends_colours() -> None:
    clip = scene_clip()
    scene = LucidScene.from_frame(clip.frames[0], clip.labels[0], 1, side_px=100)
    layer = scene.target
    np.testing.assert_array_equal(layer.alpha == 255, clip.labels[0] == 1)
    assert layer.box.box_xyxy == (40, 40, 80, 80)
    np.testing.assert_array_equal(layer.rgb[42:78, 42:78], clip.frames[0][42:78, 42:78])
    just_outside = layer.rgb[60, 81:83].mean(axis=0)
    assert just_outside[0] > 180  # bright red continues outside
    assert clip.frames[0][60, 81:83].mean(axis=0)[0] < 180  # the frame has other colours there


def test_every_object_is_a_layer_and_none_is_in_the_background() -> None:
    clip = squares_clip(
        [Square(1, (40, 40), 30, (0, 0)), Square(7, (84, 50), 24, (0, 0), channel=2)],
        size_hw=SIZE_HW,
        frames=1,
    )
    scene = LucidScene.from_frame(clip.frames[0], clip.labels[0], 7, side_px=100)
    assert sorted(scene.layers) == [1, 7]
    assert scene.target is scene.layers[7]
    assert scene.background[..., 0].max() < 200
    assert scene.background[..., 2].max() < 200


def test_a_large_object_is_averaged_down_and_a_small_one_is_left() -> None:
    clip = scene_clip()
    small = LucidScene.from_frame(clip.frames[0], clip.labels[0], 1, side_px=20)
    assert small.scale == pytest.approx(0.5)
    assert small.target.side_px == pytest.approx(20, abs=1)
    assert small.background.shape == (60, 60, 3)
    assert small.px_per_px == pytest.approx(0.5 * 120 / 480)
    assert LucidScene.from_frame(clip.frames[0], clip.labels[0], 1, side_px=80).scale == 1


def test_colour_tables_use_the_original_frame() -> None:
    clip = scene_clip()
    scene = LucidScene.from_frame(clip.frames[0], clip.labels[0], 1, side_px=20)
    expected = colour_table(clip.frames[0], clip.labels[0] == 1)
    np.testing.assert_array_equal(scene.colour_table, expected)


def test_scene_of_object_filling_the_frame_is_built() -> None:
    rgb = np.full((40, 50, 3), 90, np.uint8)
    scene = LucidScene.from_frame(rgb, np.ones((40, 50), np.uint8), 1, side_px=30)
    assert scene.background.shape[2] == 3


@pytest.mark.parametrize(("side", "side_px"), [(7, 100), (40, 5)])
def test_an_object_of_too_few_pixels_is_refused(side: int, side_px: float) -> None:
    clip = scene_clip(side)
    with pytest.raises(MaskError, match="at least 64 are needed"):
        LucidScene.from_frame(clip.frames[0], clip.labels[0], 1, side_px=side_px)


def test_arrays_that_do_not_fit_are_refused() -> None:
    clip = scene_clip()
    with pytest.raises(InputError, match="the mask is"):
        LucidScene.from_frame(clip.frames[0], clip.labels[0][:-1], 1, side_px=50)
