from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from mpn.runtime.host.roi import (
    box_from_prob,
    expand_box,
    reachable_boxes,
    roi_from_prob,
    scaled_boxes,
)
from mpn.types import Roi

GOLDEN_MAPS = [
    "blob",
    "empty",
    "full",
    "single_pixel",
    "two_corners",
    "diagonal_touch",
    "border_two_and_speck",
    "exactly_threshold",
    "noise",
    "with_nan",
    "equal_area_pair",
]


def rectangle(x0: int, y0: int, x1: int, y1: int, size_hw: tuple[int, int]) -> np.ndarray:
    prob = np.zeros(size_hw, np.float32)
    prob[y0:y1, x0:x1] = 1
    return prob


@pytest.mark.parametrize("name", GOLDEN_MAPS)
def test_boxes_match_the_golden_cases(golden: Path, name: str) -> None:
    prob = np.load(golden / "boxes" / "maps.npz")[name]
    cases = json.loads((golden / "boxes" / "expected.json").read_text())[name]
    assert cases
    for case in cases:
        box = box_from_prob(prob, case["threshold_gt"])
        if case["tight_xyxy"] is None:
            assert box is None
            continue
        assert box is not None
        assert list(box.box_xyxy) == case["tight_xyxy"]
        grown = expand_box(box, case["margin_frac"], case["margin_px"], prob.shape)
        assert list(grown.box_xyxy) == case["margin_xyxy_clipped"]


def test_a_pixel_at_the_threshold_and_nan_are_background() -> None:
    prob = np.full((5, 6), 0.5, np.float32)
    prob[0, 0] = np.nan
    assert box_from_prob(prob, 0.5) is None
    prob[3, 4] = np.nextafter(np.float32(0.5), np.float32(1))
    assert box_from_prob(prob, 0.5) == Roi(4, 3, 5, 4)


def test_box_within_uses_frame_pixels_inside_bounds() -> None:
    prob = rectangle(10, 12, 20, 15, (30, 40))
    prob[0, 0] = 1
    assert box_from_prob(prob, 0.5, within=Roi(5, 5, 35, 25)) == Roi(10, 12, 20, 15)
    assert box_from_prob(prob, 0.5, within=Roi(15, 13, 35, 25)) == Roi(15, 13, 20, 15)
    assert box_from_prob(prob, 0.5, within=Roi(21, 16, 35, 25)) is None


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((200, 200, 210, 210), (184, 184, 226, 226)),  # 15 % of 10 is 1: the minimum of 16 rules
        ((200, 200, 400, 300), (170, 184, 430, 316)),  # 30 left and right, 16 (not 15) above
        ((100, 100, 307, 307), (69, 69, 338, 338)),  # floor(31.05)
        ((0, 5, 100, 40), (0, 0, 116, 56)),  # clipped
        ((600, 400, 640, 480), (584, 384, 640, 480)),
    ],
)
def test_roi_margin_is_15_percent_at_least_16_px(
    box: tuple[int, int, int, int], expected: tuple[int, int, int, int]
) -> None:
    roi = roi_from_prob(
        rectangle(*box, (480, 640)), threshold=0.5, margin_frac=0.15, margin_px_min=16
    )
    assert roi is not None
    assert roi.box_xyxy == expected


def test_no_pixel_above_the_threshold_gives_no_roi() -> None:
    prob = np.full((9, 9), 0.4, np.float32)
    assert roi_from_prob(prob, threshold=0.5, margin_frac=0.15, margin_px_min=16) is None


def test_reachable_box_follows_the_flow_backwards() -> None:
    # The flow points from the current frame to the previous one: the content moves against it.
    flow = np.zeros((2, 100, 100), np.float32)
    flow[0], flow[1] = 10, -5
    (box,) = reachable_boxes([Roi(40, 40, 50, 50)], flow)
    assert box is not None
    assert box.x0 <= 30 <= 40 <= box.x1 <= 43
    assert box.y0 <= 45 <= 55 <= box.y1 <= 58


def test_warp_bounds_of_empty_or_left_mask_is_none() -> None:
    flow = np.full((2, 20, 20), 100, np.float32)
    assert reachable_boxes([None, Roi(2, 2, 8, 8)], flow) == [None, None]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_warp_bounds_of_non_finite_flow_is_frame(value: float) -> None:
    flow = np.zeros((2, 20, 30), np.float32)
    flow[1, 3, 3] = value
    assert reachable_boxes([None, Roi(2, 2, 8, 8)], flow) == [None, Roi(0, 0, 30, 20)]


@pytest.mark.parametrize("to_hw", [(480, 854), (1080, 1920), (97, 41), (240, 427)])
@pytest.mark.parametrize("box", [Roi(0, 0, 3, 3), Roi(100, 57, 131, 200), Roi(426, 239, 427, 240)])
def test_scaled_box_holds_all_that_a_resize_spreads(box: Roi, to_hw: tuple[int, int]) -> None:
    prob = rectangle(*box.box_xyxy, (240, 427))
    resized = cv2.resize(prob, to_hw[::-1], interpolation=cv2.INTER_LINEAR)
    (scaled,) = scaled_boxes([box], (240, 427), to_hw)
    assert scaled is not None
    inside = resized[scaled.y0 : scaled.y1, scaled.x0 : scaled.x1]
    assert inside.sum(dtype=np.float64) == resized.sum(dtype=np.float64)
    assert max(scaled.x1, scaled.y1) <= max(to_hw)
