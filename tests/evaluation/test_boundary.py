import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpn.errors import EvaluationError
from mpn.evaluation.boundary import (
    boundary_map,
    boundary_measure,
    boundary_measures,
    radius_px_from_tolerance,
    union_window,
)
from tests.evaluation.scenes import blob_labels
from tests.evaluation.test_region import golden_cases, masks_from_case
from tests.reference import scoring as plain
from tests.tolerances import MEASURE_ABSOLUTE


def test_boundary_map_matches_every_golden_mask(golden: Path) -> None:
    for case in golden_cases(golden):
        expected = np.array(case["boundary_gt"], bool)
        np.testing.assert_array_equal(boundary_map(np.array(case["gt"], bool)), expected)


def test_boundary_measure_matches_every_golden_mask(golden: Path) -> None:
    for case in golden_cases(golden):
        gt_mask, pred_mask, void_mask = masks_from_case(case)
        value = boundary_measure(
            gt_mask, pred_mask, tolerance=case["bound_th"], void_mask=void_mask
        )
        assert value == pytest.approx(case["F"], abs=MEASURE_ABSOLUTE), case["name"]


def test_a_wrong_border_rule_fails_the_golden_masks(golden: Path) -> None:
    """Positive control: with background outside, golden contours differ."""
    differing = [
        case["name"]
        for case in golden_cases(golden)
        if not np.array_equal(
            plain.contour_against_nothing(np.array(case["gt"], bool)), case["boundary_gt"]
        )
    ]
    assert "full_vs_full" in differing
    assert "corner_br" in differing


def test_a_wrong_tolerance_fails_a_golden_mask(golden: Path) -> None:
    """Positive control for the disc: a tolerance two pixels too large is not hidden."""
    (case,) = (case for case in golden_cases(golden) if case["name"] == "shift3_th2px")
    gt_mask, pred_mask, _ = masks_from_case(case)
    wrong = boundary_measure(gt_mask, pred_mask, tolerance=case["bound_th"] + 2)
    assert abs(wrong - case["F"]) > MEASURE_ABSOLUTE


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 40),  # one to three bands of rows
    width=st.integers(1, 24),
    density=st.floats(0, 1),
    radius_px=st.integers(1, 12),
)
def test_any_masks_give_exactly_the_plain_value(
    seed: int, height: int, width: int, density: float, radius_px: int
) -> None:
    rng = np.random.default_rng(seed)
    gt_mask, pred_mask, void_mask = rng.random((3, height, width)) < np.array(
        [density, density * 0.7, 0.1]
    ).reshape(3, 1, 1)
    value = boundary_measure(gt_mask, pred_mask, tolerance=radius_px, void_mask=void_mask)
    assert value == plain.boundary(gt_mask, pred_mask, radius_px, void_mask)


@pytest.mark.parametrize("num_objects", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("size_hw", [(120, 160), (97, 131)])
def test_objects_measured_together_equal_objects_measured_alone(
    num_objects: int, size_hw: tuple[int, int]
) -> None:
    gt_labels = blob_labels(1, size_hw, num_objects)
    pred_labels = blob_labels(1, size_hw, num_objects, shift_px=(3, -2))
    window = union_window(gt_labels, pred_labels)
    pairs = [(gt_labels[window] == k, pred_labels[window] == k) for k in range(1, num_objects + 1)]
    together = boundary_measures(pairs, radius_px_from_tolerance(0.008, size_hw))
    assert together == plain.boundary_of_labels(gt_labels, pred_labels, num_objects)
    assert min(together) < 1  # the shift shows


@pytest.mark.parametrize(
    ("points_yx", "rows", "columns"),
    [
        (((20, 10), (22, 12)), slice(15, 33), slice(9, 14)),  # rows in bands of 16
        (((0, 0), (1, 1)), slice(0, 17), slice(0, 3)),
        (((15, 5), (16, 5)), slice(0, 33), slice(4, 7)),
        (((49, 29), (49, 28)), slice(47, 65), slice(27, 31)),  # the last band has two rows
    ],
)
def test_the_window_holds_everything_and_one_pixel_more(
    points_yx: tuple[tuple[int, int], ...], rows: slice, columns: slice
) -> None:
    labels, other = np.zeros((2, 50, 30), np.uint8)
    labels[points_yx[0]], other[points_yx[1]] = 1, 3
    assert union_window(labels, other) == (rows, columns)


def test_empty_labels_have_a_window_of_one_pixel() -> None:
    empty = np.zeros((50, 30), np.uint8)
    assert empty[union_window(empty, empty)].shape == (1, 1)


def test_a_window_without_the_extra_pixel_would_change_f() -> None:
    mask = np.zeros((50, 30), bool)
    mask[20:30, 10:20] = True
    other = np.roll(mask, 3, axis=1)
    rows, columns = union_window(mask.view(np.uint8), other.view(np.uint8))
    tight = (slice(20, 30), slice(columns.start + 1, columns.stop - 1))
    whole = boundary_measures([(mask, other)], 1)
    assert boundary_measures([(mask[rows, columns], other[rows, columns])], 1) == whole
    assert boundary_measures([(mask[tight], other[tight])], 1) != whole


def test_the_window_stays_in_the_frame() -> None:
    labels = np.zeros((20, 30), np.uint8)
    labels[0, 0] = labels[19, 29] = 1
    rows, columns = union_window(labels, np.zeros_like(labels))
    assert labels[rows, columns].shape == labels.shape


def test_two_empty_masks_score_one() -> None:
    empty = np.zeros((6, 7), bool)
    assert boundary_measure(empty, empty) == 1.0


def test_masks_that_fill_the_frame_have_no_contour() -> None:
    full = np.ones((6, 7), bool)
    assert not boundary_map(full).any()
    assert boundary_measure(full, np.zeros_like(full)) == 1.0  # as the official tool has it


@pytest.mark.parametrize(
    ("tolerance", "size_hw", "radius_px"),
    [
        (0.008, (480, 854), 8),
        (0.008, (480, 910), 9),
        (0.008, (120, 160), 2),
        (0.008, (300, 400), 4),
        (0.008, (1, 1), 1),
        (3, (480, 854), 3),
        (1.0, (480, 854), 1),
    ],
)
def test_tolerance_in_pixels(tolerance: float, size_hw: tuple[int, int], radius_px: int) -> None:
    assert radius_px_from_tolerance(tolerance, size_hw) == radius_px


@pytest.mark.parametrize("tolerance", [0.0, -1.0, 1.5, math.nan, math.inf])
def test_other_tolerances_are_refused(tolerance: float) -> None:
    with pytest.raises(EvaluationError, match="tolerance must be"):
        radius_px_from_tolerance(tolerance, (480, 854))


def test_golden_covers_void_and_several_tolerances(golden: Path) -> None:
    cases = json.loads((golden / "mask_cases.json").read_text())
    assert {case["bound_th"] for case in cases} >= {0.008, 0.05, 2, 3}
    assert any(case["void"] is not None for case in cases)
