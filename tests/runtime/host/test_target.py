from __future__ import annotations

import numpy as np
import pytest

from mpn.runtime.host.target import (
    crop_scores,
    exclusive_scores,
    grown_rois,
    scores_at_frame,
    warp_scores,
)
from mpn.types import Roi

SIZE_HW, FRAME_HW = (65, 97), (130, 194)


def ramp() -> np.ndarray:
    """Return scores that are linear in the position."""
    y, x = np.mgrid[:9, :13].astype(np.float32)
    return (0.05 * x + 0.03 * y)[None]


def ramp_at(x_px: np.ndarray, y_px: np.ndarray) -> np.ndarray:
    """Evaluate the ramp at pixels of the frame, twice as large as the input."""
    x, y = ((x_px + 0.5) / 2 - 0.5) / 8, ((y_px + 0.5) / 2 - 0.5) / 8
    value: np.ndarray = 0.05 * x + 0.03 * y
    return value


def test_scores_at_frame_evaluate_ramp() -> None:
    (plane,) = scores_at_frame(ramp(), FRAME_HW, SIZE_HW)
    y, x = np.mgrid[:130, :194]
    inner = (slice(4, -4), slice(4, -4))
    assert plane.shape == FRAME_HW
    assert np.abs(plane - ramp_at(x, y))[inner].max() < 1e-5
    assert np.abs(plane - ramp_at(x + 1, y))[inner].max() > 1e-3


def test_crop_scores_evaluates_ramp_at_crop_pixels() -> None:
    roi = Roi(40, 20, 104, 84)
    crops = crop_scores(
        np.concatenate((ramp(), ramp())),
        [None, roi],
        frame_hw=FRAME_HW,
        size_hw=SIZE_HW,
        side=33,
    )
    centres = (np.arange(33) + 0.5) * 64 / 33 - 0.5
    expected = ramp_at(40 + centres[None, :], 20 + centres[:, None])
    assert crops.shape == (1, 33, 33)
    assert np.abs(crops[0] - expected).max() < 1e-5


def test_scores_are_lowered_at_the_other_objects() -> None:
    scores = np.full((3, 9, 13), 0.8, np.float32)
    prob = np.zeros((3, *FRAME_HW), np.float32)
    prob[0, :, :64], prob[1, :, 64:] = 1.0, 0.5
    exclusive = exclusive_scores(scores, prob, SIZE_HW)
    assert np.array_equal(exclusive[0, :, :4], scores[0, :, :4])
    assert np.allclose(exclusive[0, :, 4:], 0.4)
    assert not exclusive[1:, :, :4].any()
    assert np.allclose(exclusive[2, :, 4:], 0.4)
    assert np.array_equal(exclusive_scores(scores[:1], prob[:1], SIZE_HW), scores[:1])


def test_rois_grow_to_near_points_of_the_object() -> None:
    """The grid step is 16 px of the frame; points are at 16 i + 0.5."""
    scores = np.zeros((3, 9, 13), np.float32)
    scores[:, 2, 5:8] = 0.6  # up to x = 112.5, y = 32.5
    scores[:, 8, 12] = 1.0
    roi = Roi(40, 20, 80, 60)
    rois = [roi, None, Roi(20, 100, 60, 130)]
    grown = grown_rois(scores, rois, frame_hw=FRAME_HW, size_hw=SIZE_HW, growth=0.5)
    # x = 112.5 is out of reach of 80 + 20; 96.5 is in reach.
    assert grown == (Roi(40, 16, 113, 60), None, rois[2])
    further = grown_rois(scores, rois, frame_hw=FRAME_HW, size_hw=SIZE_HW, growth=1)
    assert further[0] == Roi(40, 16, 129, 60)


def test_warp_scores_without_motion_keeps_them() -> None:
    scores = np.random.default_rng(0).random((2, 9, 13)).astype(np.float32)
    still = np.zeros((2, *FRAME_HW), np.float32)
    assert np.array_equal(warp_scores(scores, still, SIZE_HW), scores)


@pytest.mark.parametrize("axis", [0, 1])
def test_warp_scores_moves_by_one_grid_step(axis: int) -> None:
    scores = np.random.default_rng(0).random((1, 9, 13)).astype(np.float32)
    flow = np.zeros((2, *FRAME_HW), np.float32)
    flow[axis] = -16  # the object moved by 16 px of the frame, 8 of the input
    warped = warp_scores(scores, flow, SIZE_HW)[0]
    now, before = (warped, scores[0]) if axis == 1 else (warped.T, scores[0].T)
    assert np.abs(now[1:] - before[:-1]).max() < 1e-5
    assert np.abs(now - before).max() > 0.1
