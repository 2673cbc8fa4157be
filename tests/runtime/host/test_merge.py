from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpn.runtime.host.merge import blend, labels_from_merged, merge
from mpn.types import Roi
from tests.tolerances import PROBS_SUM


def boxed_prob(objects: int, seed: int) -> tuple[np.ndarray, list[Roi | None]]:
    """Draw probabilities of K objects, 0 outside a random box, some without a box."""
    rng = np.random.default_rng(seed)
    prob = np.zeros((objects, 20, 30), np.float32)
    boxes: list[Roi | None] = []
    for plane in prob:
        if rng.random() < 0.2:
            boxes.append(None)
            continue
        x0, y0 = int(rng.integers(0, 29)), int(rng.integers(0, 19))
        box = Roi(x0, y0, int(rng.integers(x0 + 1, 31)), int(rng.integers(y0 + 1, 21)))
        values = rng.random(box.size_hw, dtype=np.float32)
        values[rng.random(box.size_hw) < 0.2] = rng.integers(0, 2)  # exact 0 and 1 too
        plane[box.y0 : box.y1, box.x0 : box.x1] = values
        boxes.append(box)
    return prob, boxes


def merged_by_definition(prob: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute objects and background in float64."""
    p = prob.astype(np.float64)
    background = np.prod(1 - p, axis=0)
    total = background + p.sum(axis=0)
    return p / total, background / total


@settings(max_examples=60, deadline=None)
@given(objects=st.integers(1, 8), seed=st.integers(0, 10_000))
def test_merge_is_normalised_and_the_same_in_boxes(objects: int, seed: int) -> None:
    prob, boxes = boxed_prob(objects, seed)
    merged = merge(prob, boxes)
    expected, background = merged_by_definition(prob)
    assert np.abs(merged - expected).max() <= PROBS_SUM
    assert np.abs(merged.sum(axis=0) + background - 1).max() <= PROBS_SUM
    assert np.array_equal(merged, merge(prob))
    if objects > 1 and prob.any():  # without normalisation, overlapping objects exceed 1
        assert merged.max() <= 1


@settings(max_examples=60, deadline=None)
@given(objects=st.integers(1, 8), seed=st.integers(0, 10_000))
def test_labels_are_the_argmax_with_background(objects: int, seed: int) -> None:
    prob, boxes = boxed_prob(objects, seed)
    object_ids = [3 * k + 2 for k in range(objects)]
    merged = merge(prob, boxes)
    labels = labels_from_merged(merged, object_ids, boxes)
    everything = np.concatenate([1 - merged.sum(axis=0, keepdims=True), merged])
    runner_up, best = np.sort(everything, axis=0)[-2:] if objects else (0, 0)
    clear = best - runner_up > 1e-5  # elsewhere float32 rounding may decide
    expected = np.array([0, *object_ids], np.uint8)[everything.argmax(axis=0)]
    assert np.array_equal(labels[clear], expected[clear])
    assert np.array_equal(labels, labels_from_merged(merged, object_ids))


def test_merge_of_one_object_is_the_array_itself() -> None:
    prob = np.random.default_rng(0).random((1, 4, 5), dtype=np.float32)
    assert merge(prob) is prob


@pytest.mark.parametrize(
    ("probs", "label"),
    [
        ((0.5, 0.0), 0),  # a tie with the background
        ((0.51, 0.0), 4),
        ((0.6, 0.7), 9),
        ((0.7, 0.7), 4),  # a tie of objects: the first
        ((1.0, 1.0), 4),
        ((0.4, 0.4), 4),  # background .36, less than the objects together: the first wins
        ((0.3, 0.3), 0),
        ((0.0, 0.0), 0),
    ],
)
def test_who_wins_a_pixel(probs: tuple[float, float], label: int) -> None:
    prob = np.array(probs, np.float32)[:, None, None]
    assert labels_from_merged(merge(prob), (4, 9))[0, 0] == label


def test_a_single_object_wins_above_one_half_only() -> None:
    prob = np.array([[[0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.0, 1.0]]], np.float32)
    assert labels_from_merged(prob, (200,)).tolist() == [[0, 200, 0, 200]]


def test_labels_of_no_object_are_background() -> None:
    assert not labels_from_merged(np.zeros((0, 3, 4), np.float32), ()).any()


def test_blend_is_weighted_mean_inside_boxes() -> None:
    prob = np.full((3, 4, 6), 0.8, np.float32)
    other = np.full((1, 4, 6), 0.2, np.float32)
    blended = blend(prob, other, [Roi(0, 0, 6, 4), None, Roi(2, 1, 4, 3)], other_weight=0.25)
    assert np.allclose(blended[0], 0.75 * 0.8 + 0.25 * 0.2)
    assert not blended[1].any()
    assert np.allclose(blended[2, 1:3, 2:4], 0.65)
    assert np.count_nonzero(blended[2]) == 4


def test_blend_takes_each_objects_own_other() -> None:
    prob = np.zeros((2, 2, 2), np.float32)
    other = np.stack([np.full((2, 2), 0.4, np.float32), np.full((2, 2), 0.8, np.float32)])
    blended = blend(prob, other, [Roi(0, 0, 2, 2)] * 2, other_weight=0.5)
    assert np.allclose(blended[:, 0, 0], [0.2, 0.4])
