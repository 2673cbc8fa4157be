import json
from pathlib import Path

import numpy as np
import pytest

from mpn.errors import EvaluationError
from mpn.evaluation.region import region_similarity
from tests.reference import scoring as plain
from tests.tolerances import MEASURE_ABSOLUTE


def golden_cases(golden: Path) -> list[dict]:
    return json.loads((golden / "mask_cases.json").read_text())


def masks_from_case(case: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    void = None if case["void"] is None else np.array(case["void"], bool)
    return np.array(case["gt"], bool), np.array(case["pred"], bool), void


def test_region_similarity_matches_every_golden_mask(golden: Path) -> None:
    for case in golden_cases(golden):
        gt_mask, pred_mask, void_mask = masks_from_case(case)
        value = region_similarity(gt_mask, pred_mask, void_mask=void_mask)
        assert value == pytest.approx(case["J"], abs=MEASURE_ABSOLUTE), case["name"]


def test_one_wrong_pixel_is_found_in_every_golden_mask(golden: Path) -> None:
    """Positive control: one flipped pixel moves J past the tolerance."""
    for case in golden_cases(golden):
        gt_mask, pred_mask, void_mask = masks_from_case(case)
        visible = np.ones_like(gt_mask) if void_mask is None else ~void_mask
        if not (gt_mask & visible).any():
            continue  # J is 0 or 1 whatever one pixel does
        at = tuple(np.argwhere(gt_mask & visible)[0])
        pred_mask[at] = not pred_mask[at]
        value = region_similarity(gt_mask, pred_mask, void_mask=void_mask)
        assert abs(value - case["J"]) > MEASURE_ABSOLUTE, case["name"]


@pytest.mark.parametrize(
    ("gt", "pred", "expected"),
    [
        ([[0, 0]], [[0, 0]], 1.0),
        ([[0, 1]], [[0, 0]], 0.0),
        ([[0, 0]], [[1, 0]], 0.0),
        ([[1, 1]], [[1, 0]], 0.5),
    ],
    ids=["both-empty", "prediction-empty", "ground-truth-empty", "half"],
)
def test_small_cases_by_hand(gt: list, pred: list, expected: float) -> None:
    assert region_similarity(np.array(gt, bool), np.array(pred, bool)) == expected


def test_a_cropped_view_gives_the_value_of_its_copy() -> None:
    rng = np.random.default_rng(0)
    gt_mask, pred_mask = rng.random((2, 40, 50)) < 0.4
    window = (slice(3, 30), slice(7, 41))
    expected = plain.region(gt_mask[window].copy(), pred_mask[window].copy())
    assert region_similarity(gt_mask[window], pred_mask[window]) == expected


@pytest.mark.parametrize(
    ("gt", "pred", "void", "message"),
    [
        (np.zeros((3, 4), bool), np.zeros((4, 3), bool), None, r"prediction mask is \(4, 3\)"),
        (np.zeros((3, 4), bool), np.zeros((3, 4), bool), np.zeros((1, 4), bool), "void mask is"),
        (np.zeros((3, 4), np.uint8), np.zeros((3, 4), bool), None, "must be .* bool"),
        (np.zeros((3, 4, 1), bool), np.zeros((3, 4, 1), bool), None, "must be .* bool"),
        (np.zeros((0, 4), bool), np.zeros((0, 4), bool), None, "at least one pixel"),
    ],
)
def test_other_arrays_are_refused(gt, pred, void, message) -> None:
    with pytest.raises(EvaluationError, match=message):
        region_similarity(gt, pred, void_mask=void)
