"""Polygons of labelme as labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpn._common.labelme import is_labelme, labels_from_labelme

CORNER = [[8, 1], [10, 1], [10, 3]]
SQUARE = [[2, 1], [5, 1], [5, 4], [2, 4]]


def shape(label: str, points: list[list[float]], **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": "polygon", "group_id": None, **more}


def document(*shapes: dict[str, Any]) -> dict[str, Any]:
    return {"version": "5.4.1", "shapes": list(shapes), "imageHeight": 8, "imageWidth": 12}


def test_shapes_are_drawn_in_their_order() -> None:
    value = document(
        shape("dog", SQUARE),
        shape("ball", [[8, 3], [8, 5]], shape_type="circle"),
        shape("box", [[6, 7], [4, 3]], shape_type="rectangle"),
    )
    assert is_labelme(value)
    labels, names = labels_from_labelme(value, None)
    assert names == {1: "dog", 2: "ball", 3: "box"}
    assert labels.shape == (8, 12)
    assert labels.dtype == np.uint8
    assert labels[2, 3] == 1
    assert labels[3, 8] == 2
    assert labels[4, 5] == 3  # over the dog
    assert labels[7, 11] == 0
    assert (labels == 1).sum() == 4 * 4 - 2 * 2


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (shape("dog", SQUARE, group_id=7), shape("dog", CORNER, group_id=7), {1}),
        (shape("dog", SQUARE, group_id=7), shape("dog", CORNER, group_id=8), {1, 2}),
        (shape("9", SQUARE), shape("9", CORNER), {9}),
        (shape("9", SQUARE), shape("4", CORNER), {4, 9}),
        (shape("9", SQUARE), shape("dog", CORNER), {1, 2}),
    ],
)  # fmt: skip
def test_group_ids_and_numbers_decide_the_ids(
    first: dict[str, Any], second: dict[str, Any], expected: set[int]
) -> None:
    labels, _ = labels_from_labelme(document(first, second), None)
    assert set(np.unique(labels).tolist()) == expected | {0}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (document(shape("dog", SQUARE), shape("dog", SQUARE)), "2 shapes have the label 'dog'"),
        (document(shape("dog", SQUARE[:2])), "no valid points of a polygon"),
        (document(shape("dog", [[0, 1e9]] * 3)), "no valid points"),
        (document(shape("dog", SQUARE, shape_type="line")), "of type 'line'"),
        (document(shape("dog", SQUARE, shape_type=[])), "of type"),
        (document({"points": SQUARE}), "shape 1 has no label"),
        (document() | {"imageHeight": None}, "no imageHeight"),
        (document() | {"imageHeight": 1 << 20, "imageWidth": 1 << 20}, "pixels"),
    ],
)
def test_what_cannot_be_drawn_is_named(value: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        labels_from_labelme(value, (8, 12))


def test_size_of_the_video_stands_for_a_missing_one() -> None:
    value = document(shape("dog", SQUARE)) | {"imageHeight": None, "imageWidth": None}
    assert labels_from_labelme(value, (6, 7))[0].shape == (6, 7)
