from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from mpn.runtime.finetune.augment.motion import Light, Motion, MotionRange, smooth_field
from mpn.types import Roi
from tests.tolerances import COARSE_GRID_PX

STILL = MotionRange(0, 0, 0, 0, 0, 0, 0, 0, 0)
LIVELY = MotionRange(0.2, 0.4, 0.3, 0.1, 0.05, 8, 0.05, 0.05, 0.02)
SIZE_HW = (61, 90)


def motion(motion_range: MotionRange, seed: int = 0) -> Motion:
    return Motion(
        np.random.default_rng(seed),
        motion_range,
        centre_xy=(40.0, 30.0),
        side_px=30.0,
        px_per_px=1.0,
        size_hw=SIZE_HW,
    )


def test_no_motion_samples_every_pixel_where_it_is() -> None:
    map_x, map_y = motion(STILL).sampling(3).maps()
    expected_y, expected_x = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    np.testing.assert_allclose(map_x, expected_x, atol=COARSE_GRID_PX)
    np.testing.assert_allclose(map_y, expected_y, atol=COARSE_GRID_PX)


def test_an_affine_motion_is_exact_on_the_coarse_grid() -> None:
    """Linear interpolation between cells is exact for a linear map."""
    affine = replace(LIVELY, bend_frac=0, bend_speed=0)
    map_x, map_y = motion(affine).sampling(2).maps()
    for plane in (map_x, map_y):
        height, width = plane.shape
        rows, columns = np.mgrid[:height, :width]
        corner = plane[0, 0]
        slope_x = (plane[0, -1] - corner) / (width - 1)
        slope_y = (plane[-1, 0] - corner) / (height - 1)
        linear = corner + slope_x * columns + slope_y * rows
        np.testing.assert_allclose(plane, linear, atol=COARSE_GRID_PX)
    bent, _ = motion(LIVELY).sampling(2).maps()  # the control: a bend is not linear
    assert np.abs(np.diff(bent, n=2, axis=1)).max() > 10 * COARSE_GRID_PX


def test_a_pure_shift_moves_the_picture_by_it() -> None:
    shift = replace(STILL, shift_frac=0.2)
    map_x, map_y = motion(shift, seed=1).sampling(0).maps()
    rng = np.random.default_rng(1)
    shift_x, shift_y = (rng.uniform(-1, 1, 7) * 0.2 * 30)[:2]
    assert map_x[10, 20] == pytest.approx(20 - shift_x, abs=COARSE_GRID_PX)
    assert map_y[10, 20] == pytest.approx(10 - shift_y, abs=COARSE_GRID_PX)


def test_speed_adds_up_and_can_be_inherited() -> None:
    fast = replace(STILL, speed_px=10)
    one, other = motion(fast, seed=2), motion(fast, seed=3)
    step_x = one.sampling(0).maps()[0] - one.sampling(1).maps()[0]
    np.testing.assert_allclose(
        one.sampling(0).maps()[0] - one.sampling(3).maps()[0], 3 * step_x, atol=1e-2
    )
    theirs_x = other.sampling(0).maps()[0] - other.sampling(1).maps()[0]
    one.carried_by(other)
    together_x = one.sampling(0).maps()[0] - one.sampling(1).maps()[0]
    np.testing.assert_allclose(together_x, step_x + theirs_x, atol=1e-2)


@pytest.mark.parametrize("seed", range(12))
def test_box_is_not_visible_outside_its_region(seed: int) -> None:
    layer = np.zeros(SIZE_HW, np.uint8)
    box = Roi(30, 20, 55, 41)
    layer[20:41, 30:55] = 255
    sampling = motion(LIVELY, seed).sampling(4)
    visible = cv2.remap(layer, *sampling.maps(), cv2.INTER_LINEAR)
    region = sampling.region_of(box)
    if region is None:
        assert not visible.any()
        return
    window = (slice(region.y0, region.y1), slice(region.x0, region.x1))
    part = cv2.remap(layer, *sampling.maps(region), cv2.INTER_LINEAR)
    np.testing.assert_allclose(part, visible[window], atol=1)  # remap rounds by the tile it is in
    visible[window] = 0
    assert not visible.any()


def test_a_box_that_left_the_frame_has_no_region() -> None:
    away = replace(STILL, speed_px=1000)
    assert motion(away).sampling(5).region_of(Roi(30, 20, 40, 30)) is None


def test_light_of_no_strength_changes_nothing() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    np.testing.assert_array_equal(Light(np.random.default_rng(1), 0.0)(rgb), rgb)
    assert np.any(Light(np.random.default_rng(1), 1.0)(rgb) != rgb)


def test_strong_light_stays_a_picture() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    for seed in range(20):
        lit = Light(np.random.default_rng(seed), 3.0)(rgb)
        assert (lit.dtype, lit.shape) == (np.uint8, rgb.shape)


def test_smooth_fields_are_smooth_and_differ() -> None:
    fields = smooth_field(np.random.default_rng(0), (64, 80), 5, 2)
    assert fields.shape == (2, 64, 80)
    assert np.abs(np.diff(fields, axis=2)).max() < 0.25
    assert np.abs(fields).max() < 2
    assert np.abs(fields[0] - fields[1]).max() > 0.5
