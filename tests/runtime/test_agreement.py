"""Agreement of masks with the scores of the target model."""

from __future__ import annotations

import numpy as np
import pytest

from mpn.runtime.agreement import agreement_with_scores
from mpn.runtime.target import cell_shares
from mpn.types import Float32Array, UInt8Array

SIZE_HW = (65, 97)


def labels_of(*boxes: tuple[int, int, int, int], size_hw: tuple[int, int] = SIZE_HW) -> UInt8Array:
    """Draw one box (x0, y0, x1, y1) per object, ids from 1."""
    labels = np.zeros(size_hw, np.uint8)
    for object_id, (x0, y0, x1, y1) in enumerate(boxes, start=1):
        labels[y0:y1, x0:x1] = object_id
    return labels


def scores_of(labels: UInt8Array, count: int) -> Float32Array:
    """Return the shares of each object as its scores."""
    planes = np.stack([labels == k for k in range(1, count + 1)]).astype(np.float32)
    rows, columns = (SIZE_HW[0] - 1) // 8 + 1, (SIZE_HW[1] - 1) // 8 + 1
    return cell_shares(planes, SIZE_HW).reshape(count, rows, columns)


@pytest.mark.parametrize("scale", [1, 3])
def test_agreement_same_place_is_one_at_any_size(scale: int) -> None:
    """A mask that half leaves its score agrees by a third."""
    scores = scores_of(labels_of((16, 16, 48, 48)), 1)
    size_hw = (SIZE_HW[0] * scale, SIZE_HW[1] * scale)
    same, shifted = (
        labels_of(tuple(scale * x for x in box), size_hw=size_hw)  # type: ignore[arg-type]
        for box in ((16, 16, 48, 48), (32, 16, 64, 48))
    )
    (agreed,) = agreement_with_scores(same, scores, (1,), size_hw=SIZE_HW)
    (drifted,) = agreement_with_scores(shifted, scores, (1,), size_hw=SIZE_HW)
    assert agreed > 0.95
    assert drifted == pytest.approx(1 / 3, abs=0.05)


def test_agreement_other_object_takes_its_score() -> None:
    """Objects that look alike have one score: each loses the cells of the other."""
    labels = labels_of((4, 4, 28, 28), (52, 4, 76, 28))
    both = scores_of(np.minimum(labels, 1), 1)
    alone = agreement_with_scores(
        np.minimum(labels, 1) * (labels == 1), both, (1,), size_hw=SIZE_HW
    )
    pair = agreement_with_scores(labels, np.concatenate((both, both)), (1, 2), size_hw=SIZE_HW)
    assert alone[0] == pytest.approx(0.5, abs=0.05)
    assert min(pair) > 0.95


def test_agreement_empty_mask_is_zero() -> None:
    scores = scores_of(labels_of((16, 16, 48, 48)), 1)
    empty = np.zeros(SIZE_HW, np.uint8)
    assert agreement_with_scores(empty, scores, (1,), size_hw=SIZE_HW) == (0.0,)
    assert agreement_with_scores(empty, 0 * scores, (1,), size_hw=SIZE_HW) == (0.0,)
