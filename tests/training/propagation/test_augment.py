from __future__ import annotations

import cv2
import numpy as np

from mpn.training.propagation.augment import ColourShift, deform_mask, degrade_prob


def _disk(radius: int = 30) -> np.ndarray:
    mask = np.zeros((120, 160), np.uint8)
    cv2.circle(mask, (80, 60), radius, 1, -1)
    return mask > 0


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


def test_a_deformed_mask_is_wrong_but_not_lost() -> None:
    mask = _disk()
    overlaps = [_iou(mask, deform_mask(mask, np.random.default_rng(seed))) for seed in range(40)]
    # 10 % of the box of shift, jitter and 5 % of scale: MaskTrack's own range.
    assert 0.6 < np.mean(overlaps) < 0.92
    assert min(overlaps) > 0.4
    assert max(overlaps) < 1


def test_deform_mask_is_seeded_and_keeps_empty_mask() -> None:
    mask = _disk()
    first, again = (deform_mask(mask, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    empty = np.zeros((20, 20), np.bool_)
    assert not deform_mask(empty, np.random.default_rng(0)).any()


def test_a_mask_at_the_border_stays_inside_the_frame() -> None:
    mask = np.zeros((60, 60), np.bool_)
    mask[:20, :30] = True
    for seed in range(10):
        assert deform_mask(mask, np.random.default_rng(seed)).shape == mask.shape


def test_degrade_prob_stays_in_range_for_given_share() -> None:
    prob = np.zeros((65, 65), np.float32)
    prob[20:45, 20:45] = 1
    outcomes = [degrade_prob(prob, np.random.default_rng(seed)) for seed in range(200)]
    for out in outcomes:
        assert out.dtype == np.float32
        assert out.min() >= 0
        assert out.max() <= 1 + 1e-6
    unchanged = np.mean([np.array_equal(out, prob) for out in outcomes])
    # Half by the first draw, and a twelfth of the rest draw no damage at all.
    assert 0.4 < unchanged < 0.75
    assert prob[30, 30] == 1, "the input is not written to"


def test_colour_shift_changes_colours_the_same_way_each_time() -> None:
    rgb = np.random.default_rng(0).uniform(0, 255, (3, 16, 16)).astype(np.float32)
    shift = ColourShift(np.random.default_rng(1))
    out = shift(rgb)
    np.testing.assert_array_equal(out, shift(rgb))
    assert out.dtype == np.float32
    assert out.min() >= 0
    assert out.max() <= 255
    assert np.abs(out - rgb).mean() > 1


def test_every_kind_of_damage_happens_to_a_probability() -> None:
    prob = np.zeros((65, 65), np.float32)
    cv2.circle(prob, (32, 32), 16, 1.0, -1)
    inside, far = prob > 0, cv2.dilate(prob, np.ones((21, 21))) == 0
    grid = np.mgrid[:65, :65]
    seen = dict.fromkeys(("part lost", "leak", "smaller", "larger", "soft", "shifted"), 0)
    for seed in range(300):
        out = degrade_prob(prob, np.random.default_rng(seed), share=1.0)
        area = out.sum() / prob.sum()
        centre = (grid * out).sum(axis=(1, 2)) / max(out.sum(), 1e-6)
        seen["part lost"] += bool((out[28:37, 28:37] < 0.1).any() and area > 0.3)
        seen["leak"] += bool(out[far].max() > 0.3)
        seen["smaller"] += bool(0.6 < area < 0.95)
        seen["larger"] += bool(1.05 < area < 1.6)
        seen["soft"] += bool(((out > 0.05) & (out < 0.95)).sum() > 0.3 * inside.sum())
        seen["shifted"] += bool(np.linalg.norm(centre - 32) > 1.5)
    assert min(seen.values()) >= 10, seen
    # control: with a share of 0 none of it does
    assert degrade_prob(prob, np.random.default_rng(0), share=0.0) is prob
