from __future__ import annotations

import numpy as np
import pytest

from benchmarks.accuracy.sparse import SparseEvaluator
from mpn.errors import EvaluationError
from mpn.evaluation import SequenceEvaluator
from mpn.evaluation.sequence import VOID_ID
from mpn.types import UInt8Array


def square(left: int, *, object_id: int = 1) -> UInt8Array:
    labels = np.zeros((64, 96), np.uint8)
    labels[20:40, left : left + 20] = object_id
    return labels


def test_sparse_all_frames_after_first_are_scored() -> None:
    """The last one too, unlike with dense truth; the given mask is not."""
    sparse, dense = SparseEvaluator("koi"), SequenceEvaluator("koi")
    for evaluator in (sparse, dense):
        for left in (10, 20, 20):
            evaluator.feed(square(20), square(left))
    evaluator = SparseEvaluator("koi")
    for left in (10, 20, 30):
        evaluator.feed(square(20), square(left))
    (score,) = evaluator.conclude().objects
    assert score.region_values == pytest.approx((1.0, 1 / 3))
    assert sparse.conclude().objects[0].region.mean == dense.conclude().objects[0].region.mean == 1


def test_sparse_void_pixels_are_not_scored() -> None:
    """A wrong prediction is counted outside void pixels only."""

    def scores(void_columns: int) -> tuple[float, float]:
        truth, predicted = square(20), square(20)
        predicted[20:40, 40:60] = 1
        truth[:, 40 : 40 + void_columns] = VOID_ID
        evaluator = SparseEvaluator("koi")
        evaluator.feed(square(20), None)
        evaluator.feed(truth, predicted)
        (score,) = evaluator.conclude().objects
        return score.region.mean, score.boundary.mean

    assert scores(56) == (1, 1)
    assert scores(20) == (1, 1)
    assert scores(10)[0] == pytest.approx(2 / 3)
    assert scores(10)[1] < 1


def test_sparse_objects_keep_their_scores() -> None:
    evaluator = SparseEvaluator("pond")
    truth = square(10) + square(60, object_id=2)
    evaluator.feed(truth, None)
    evaluator.feed(truth, square(10) + square(70, object_id=2))
    score = evaluator.conclude()
    assert [k.name for k in score.objects] == ["pond_1", "pond_2"]
    assert [k.region.mean for k in score.objects] == pytest.approx([1, 1 / 3])


def test_sparse_without_scored_frame_raises() -> None:
    evaluator = SparseEvaluator("koi")
    evaluator.feed(square(20), None)
    with pytest.raises(EvaluationError, match="no annotated frame after the first"):
        evaluator.conclude()
    with pytest.raises(EvaluationError, match="has the value 255"):
        evaluator.feed(square(20), square(20, object_id=VOID_ID))
