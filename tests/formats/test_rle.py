from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mpn.formats.rle import (
    counts_by_row,
    counts_from_mask,
    counts_from_string,
    mask_from_counts,
    mask_from_counts_by_row,
    string_from_counts,
)


def disk(size_hw: tuple[int, int], centre_yx: tuple[int, int], radius: int) -> np.ndarray:
    y, x = np.mgrid[: size_hw[0], : size_hw[1]]
    return (y - centre_yx[0]) ** 2 + (x - centre_yx[1]) ** 2 <= radius * radius


# Encoded by pycocotools 2.0 (mask.encode of the same arrays).
@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (np.zeros((2, 3), bool), "6"),
        (np.ones((2, 3), bool), "06"),
        (np.eye(2, dtype=bool), "0120"),
        (disk((9, 12), (4, 5), 3), "f0164N0O20N102Li0"),
    ],
)
def test_compressed_counts_are_cocos(mask: np.ndarray, expected: str) -> None:
    assert string_from_counts(counts_from_mask(mask)) == expected
    assert (string_from_counts(counts_from_mask(~mask)) == expected) is False  # control


def test_large_mask_is_encoded_as_coco_does() -> None:
    text = string_from_counts(counts_from_mask(disk((300, 400), (150, 200), 120)))
    assert len(text) == 494
    assert text.startswith("fbg01l8n0[O<E:G8H8I6J6J6K4L4K6K4L4L4L4M2M4L4M2M4M2M4M2M4M2N2N2M4M2N2")
    assert text.endswith("9F;De0RO]Pg0")


def test_runs_go_down_the_columns() -> None:
    assert counts_from_mask(np.array([[1, 0, 0], [1, 0, 1]], bool)) == [0, 2, 3, 1]


def test_runs_by_row_go_along_the_rows() -> None:
    assert counts_by_row(np.array([[1, 0, 0], [1, 0, 1]], bool)) == [0, 1, 2, 1, 1, 1]


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_masks_survive_the_round_trip(mask: np.ndarray) -> None:
    counts = counts_from_string(string_from_counts(counts_from_mask(mask)))
    np.testing.assert_array_equal(mask_from_counts(counts, mask.shape), mask)
    by_row = counts_by_row(mask)
    np.testing.assert_array_equal(mask_from_counts_by_row(by_row, mask.shape), mask)


@pytest.mark.parametrize(
    "counts", [[3, 4], [-1, 7], [2**63, 2**63], [1 << 70], ["6"], [6.0], [True, 5], [[6]]]
)
def test_counts_of_another_size_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="do not sum to its 6 pixels"):
        mask_from_counts(counts, (2, 3))


@pytest.mark.parametrize("text", ["f", "6 ", "oooooooo0", "\u0153"])
def test_damaged_strings_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="run lengths"):
        counts_from_string(text)
