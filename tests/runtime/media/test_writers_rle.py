from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mpn.runtime.media.writers import counts_from_mask, string_from_counts
from tests.reference.rle import counts_from_string, mask_from_counts


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


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_masks_survive_the_round_trip(mask: np.ndarray) -> None:
    counts = counts_from_string(string_from_counts(counts_from_mask(mask)))
    assert sum(counts) == mask.size
    np.testing.assert_array_equal(mask_from_counts(counts, mask.shape), mask)


def test_damaged_encodings_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to 6"):
        mask_from_counts([3, 4], (2, 3))
    with pytest.raises(ValueError, match="within a number"):
        counts_from_string("f")
