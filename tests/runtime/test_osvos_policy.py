from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpn.runtime.osvos_policy import Redetection, candidate_components
from mpn.types import Roi


def foreground_of(*rectangles: tuple[int, int, int, int], value: float = 0.9) -> np.ndarray:
    foreground = np.zeros((40, 60), np.float32)
    for x0, y0, x1, y1 in rectangles:
        foreground[y0:y1, x0:x1] = value
    return foreground


def find(foreground: np.ndarray, *others: np.ndarray, **options: Any) -> Redetection | None:
    rules: dict[str, Any] = {"threshold": 0.5, "min_area_px": 20, "iou_max": 0.3, **options}
    return next(candidate_components(foreground, others, **rules), None)


def test_redetect_takes_largest_component() -> None:
    foreground = foreground_of((2, 3, 10, 9), (20, 10, 40, 30), (22, 32, 30, 36))
    foreground[31, 35] = 0.3  # soft surroundings inside no box: not kept
    foreground[28, 39] = 0.3  # inside the box, part of no component: kept
    found = find(foreground)
    assert found is not None
    assert found.box == Roi(20, 10, 40, 30)
    assert found.mask.sum() == 20 * 20 - 1
    expected = np.zeros_like(foreground)
    expected[10:30, 20:40] = foreground[10:30, 20:40]
    assert np.array_equal(found.prob, expected)


def test_another_component_inside_the_box_is_left_out() -> None:
    foreground = foreground_of((10, 10, 40, 12), (10, 12, 12, 30), (20, 20, 25, 24))
    found = find(foreground)
    assert found is not None
    assert found.box == Roi(10, 10, 40, 30)
    assert not found.prob[20:24, 20:25].any()
    assert found.prob[10, 39] == np.float32(0.9)


def test_pixels_that_touch_at_a_corner_are_one_component() -> None:
    found = find(foreground_of((5, 5, 10, 10), (10, 10, 15, 15)))
    assert found is not None
    assert found.box == Roi(5, 5, 15, 15)


@pytest.mark.parametrize(
    ("min_area_px", "is_found"), [(0.0, True), (48, True), (48.5, False), (1000, False)]
)
def test_a_component_must_be_large_enough(min_area_px: float, is_found: bool) -> None:
    found = find(foreground_of((2, 3, 10, 9)), min_area_px=min_area_px)
    assert (found is not None) == is_found


def test_nothing_at_the_threshold_is_foreground() -> None:
    assert find(foreground_of((2, 3, 10, 9), value=0.5)) is None
    assert find(np.zeros((40, 60), np.float32)) is None
    assert find(np.zeros((40, 60), np.float32), min_area_px=0.0) is None


def test_redetect_skips_component_of_other_object() -> None:
    foreground = foreground_of((2, 3, 22, 23), (40, 10, 50, 20))
    other = foreground_of((2, 3, 22, 13)) > 0  # half of the large component: IoU .5
    found = find(foreground, other)
    assert found is not None
    assert found.box == Roi(40, 10, 50, 20)
    found = find(foreground, other, iou_max=0.5)
    assert found is not None
    assert found.box == Roi(2, 3, 22, 23)


def test_redetect_takes_largest_with_matching_colours() -> None:
    foreground = foreground_of((2, 3, 22, 23), (40, 10, 50, 20), (40, 30, 46, 36))
    seen: list[tuple[int, Roi]] = []

    def is_like(mask: np.ndarray, box: Roi) -> bool:
        seen.append((int(mask.sum()), box))
        return box.x0 == 40

    found = find(foreground, is_like=is_like)
    assert found is not None
    assert found.box == Roi(40, 10, 50, 20)
    assert seen == [(400, Roi(2, 3, 22, 23)), (100, Roi(40, 10, 50, 20))]
    assert find(foreground, is_like=lambda mask, box: False) is None


def test_components_are_sorted_by_area() -> None:
    foreground = foreground_of((2, 3, 22, 23), (40, 10, 50, 20), (40, 30, 44, 34))
    boxes = [
        found.box
        for found in candidate_components(
            foreground, (), threshold=0.5, min_area_px=20, iou_max=0.3
        )
    ]
    assert boxes == [Roi(2, 3, 22, 23), Roi(40, 10, 50, 20)]
