"""Shapes of labelme as masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpn.errors import MaskError
from mpn.formats import ObjectIds, VideoFacts, read_masks
from mpn.formats.annotated import AnnotatedFrame, VideoInfo
from mpn.formats.labelme import annotations_from_labelme, is_labelme, write_labelme
from mpn.formats.regions import GivenMasks, masks_from_annotations
from mpn.types import UInt8Array

SIZE_HW = (8, 12)
CORNER = [[8, 1], [10, 1], [10, 3]]
SQUARE = [[2, 1], [5, 1], [5, 4], [2, 4]]


def shape(label: str, points: list[list[float]], **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": "polygon", "group_id": None, **more}


def document(*shapes: dict[str, Any]) -> dict[str, Any]:
    return {"version": "5.4.1", "shapes": list(shapes), "imageHeight": 8, "imageWidth": 12}


def masks(value: dict[str, Any], size_hw: tuple[int, int] = SIZE_HW) -> GivenMasks:
    found = annotations_from_labelme(value, size_hw)
    return masks_from_annotations(found, VideoFacts(size_hw), None, ObjectIds(), "the mask x")


def labels(value: dict[str, Any]) -> UInt8Array:
    return masks(value).labels[None]


def test_shapes_are_drawn_in_their_order() -> None:
    value = document(
        shape("dog", SQUARE),
        shape("ball", [[8, 3], [8, 5]], shape_type="circle"),
        shape("box", [[6, 7], [4, 3]], shape_type="rectangle"),
    )
    assert is_labelme(value)
    given = masks(value)
    assert given.names == {1: "dog", 2: "ball", 3: "box"}
    drawn = given.labels[None]
    assert drawn.shape == SIZE_HW
    assert drawn.dtype == np.uint8
    assert drawn[2, 3] == 1
    assert drawn[3, 8] == 2
    assert drawn[4, 5] == 3  # over the dog
    assert drawn[7, 11] == 0
    assert (drawn == 1).sum() == 4 * 4 - 2 * 2


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (shape("dog", SQUARE, group_id=7), shape("dog", CORNER, group_id=7), {7}),
        (shape("dog", SQUARE, group_id=7), shape("dog", CORNER, group_id=8), {7, 8}),
        (shape("dog", SQUARE, group_id=7), shape("cat", CORNER, group_id=7), {1, 2}),
        (shape("dog", SQUARE, group_id=7), shape("cat", CORNER), {1, 2}),
        (shape("9", SQUARE), shape("9", CORNER, group_id=1), {9}),
        (shape("9", SQUARE), shape("4", CORNER), {4, 9}),
        (shape("9", SQUARE), shape("dog", CORNER), {1, 2}),
    ],
)  # fmt: skip
def test_group_ids_and_numbers_decide_the_ids(
    first: dict[str, Any], second: dict[str, Any], expected: set[int]
) -> None:
    assert set(np.unique(labels(document(first, second))).tolist()) == expected | {0}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (document(shape("dog", SQUARE), shape("dog", SQUARE)), "2 shapes have the label 'dog'"),
        (document(shape("dog", SQUARE[:2])), "no valid points of a polygon"),
        (document(shape("dog", [[0, 1e9]] * 3)), "no valid points"),
        (document(shape("dog", SQUARE, shape_type="line")), "of type 'line'"),
        (document(shape("dog", SQUARE, shape_type=[])), "of type"),
        (document({"points": SQUARE}), "shape 1 has no label"),
        (document(), "without a mask"),
        (document(shape("dog", SQUARE)) | {"imageHeight": None}, "no imageHeight"),
        (document(shape("dog", SQUARE)) | {"imageHeight": 9}, "is 12x9 but the video is 12x8"),
        (document(shape("dog", [[0, 0], [3, 3]], shape_type="mask", mask="AAAA")), "no PNG"),
        (document(shape("dog", [[0, 0], [3, 8]], shape_type="mask", mask="")), "outside of"),
    ],
)
def test_what_cannot_be_drawn_is_named(value: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        masks(value)


def test_size_of_the_video_stands_for_a_missing_one() -> None:
    value = document(shape("dog", SQUARE)) | {"imageHeight": None, "imageWidth": None}
    assert masks(value, (6, 7)).labels[None].shape == (6, 7)


@pytest.mark.parametrize("field", ["label", "group_id", "shape_type"])
def test_message_about_a_long_text_is_short(tmp_path: Path, field: str) -> None:
    path = tmp_path / "a.json"
    value = document({**shape("dog", [[0, 0]], group_id=1), field: "x" * 10_000})
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(MaskError, match=r"a\.json cannot be used: shape 1") as caught:
        read_masks(path, VideoFacts(SIZE_HW))
    assert len(str(caught.value)) < 1500


def test_part_that_is_not_drawn_exactly_becomes_a_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = labels(document(shape("dog", SQUARE)))
    drawn[2, 3] = 0
    info = VideoInfo("clip", SIZE_HW, (1,))

    def written(folder: Path) -> dict[str, Any]:
        write_labelme(folder, [AnnotatedFrame(0, "00000", drawn)], info)
        value: dict[str, Any] = json.loads((folder / "00000.json").read_text())
        np.testing.assert_array_equal(labels(value), drawn)
        return value

    assert [s["shape_type"] for s in written(tmp_path / "a")["shapes"]] == ["polygon"]  # control
    monkeypatch.setattr("mpn.formats.labelme._is_drawn_exactly", lambda *_: False)
    (only,) = written(tmp_path / "b")["shapes"]
    assert only["shape_type"] == "mask"
    assert only["points"] == [[2, 1], [5, 4]]
