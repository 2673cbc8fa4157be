from pathlib import Path

import numpy as np
import pytest

from mpn.errors import EvaluationError
from mpn.evaluation.sequence import EvaluationOptions, SequenceEvaluator, object_count
from tests.evaluation.scenes import blob_labels
from tests.reference import scoring as plain

SIZE_HW = (60, 80)


def moving_pair(frames: int, num_objects: int = 2) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (
            blob_labels(5, SIZE_HW, num_objects, shift_px=(t, 0)),
            blob_labels(5, SIZE_HW, num_objects, shift_px=(t + 2, 1)),
        )
        for t in range(frames)
    ]


def test_all_frames_but_first_and_last_are_scored() -> None:
    pairs = moving_pair(5)
    evaluator = SequenceEvaluator("clip")
    for gt_labels, pred_labels in pairs:
        evaluator.feed(gt_labels, pred_labels)
    score = evaluator.conclude()
    assert score.frames == ("00001", "00002", "00003")
    for k, scored in enumerate(score.objects):
        expected = [plain.region_of_labels(*pair, 2)[k] for pair in pairs[1:-1]]
        assert list(scored.region_values) == expected
        expected = [plain.boundary_of_labels(*pair, 2)[k] for pair in pairs[1:-1]]
        assert list(scored.boundary_values) == expected
    assert [scored.name for scored in score.objects] == ["clip_1", "clip_2"]


def test_first_and_last_prediction_are_ignored() -> None:
    (gt0, _), (gt1, pred1), (gt2, _) = moving_pair(3)
    with_none, with_garbage = SequenceEvaluator("clip"), SequenceEvaluator("clip")
    garbage = np.full((3, 3), 255, np.uint8)
    for gt_labels, pred_labels in ((gt0, None), (gt1, pred1), (gt2, None)):
        with_none.feed(gt_labels, pred_labels)
    for gt_labels, pred_labels in ((gt0, garbage), (gt1, pred1), (gt2, garbage)):
        with_garbage.feed(gt_labels, pred_labels)
    assert with_none.conclude() == with_garbage.conclude()


def test_arrays_may_be_reused_by_the_caller() -> None:
    pairs = moving_pair(4)
    reused, fresh = SequenceEvaluator("clip"), SequenceEvaluator("clip")
    gt_buffer, pred_buffer = np.empty((2, *SIZE_HW), np.uint8)
    for gt_labels, pred_labels in pairs:
        fresh.feed(gt_labels, pred_labels)
        gt_buffer[:], pred_buffer[:] = gt_labels, pred_labels
        reused.feed(gt_buffer, pred_buffer)
    assert reused.conclude() == fresh.conclude()


def test_void_of_the_ground_truth_is_background() -> None:
    """As in the official task: predicting an object on void reduces J."""
    gt_labels = np.zeros(SIZE_HW, np.uint8)
    gt_labels[10:20, 10:20] = 1
    gt_labels[20:30, 10:20] = 255
    pred_labels = np.zeros(SIZE_HW, np.uint8)
    pred_labels[10:30, 10:20] = 1
    evaluator = SequenceEvaluator("clip")
    for _ in range(3):
        evaluator.feed(gt_labels, pred_labels)
    assert evaluator.conclude().objects[0].region_values == (0.5,)


@pytest.mark.parametrize(
    ("ids", "count"), [([0, 1], 1), ([0, 1, 3], 3), ([0, 2, 255], 2), ([0], 0), ([0, 255], 0)]
)
def test_object_count_is_largest_id_of_first_frame(ids: list[int], count: int) -> None:
    assert object_count(np.array([ids], np.uint8)) == count


def test_object_count_includes_skipped_ids() -> None:
    gt_labels = np.zeros(SIZE_HW, np.uint8)
    gt_labels[:10], gt_labels[20:30] = 1, 3
    evaluator = SequenceEvaluator("clip")
    for _ in range(3):
        evaluator.feed(gt_labels, gt_labels)
    score = evaluator.conclude()
    assert [scored.object_id for scored in score.objects] == [1, 2, 3]
    assert score.objects[1].region_values == (1.0,)  # empty in both


def test_an_object_that_appears_later_is_not_scored() -> None:
    first = np.zeros(SIZE_HW, np.uint8)
    first[:10] = 1
    later = first.copy()
    later[20:30] = 2
    evaluator = SequenceEvaluator("clip")
    for gt_labels in (first, later, later):
        evaluator.feed(gt_labels, first)
    assert len(evaluator.conclude().objects) == 1


def test_the_tolerance_of_the_options_is_used() -> None:
    scores = []
    for tolerance in (1, 4):
        evaluator = SequenceEvaluator("clip", EvaluationOptions(boundary_tolerance=tolerance))
        for gt_labels, pred_labels in moving_pair(3):
            evaluator.feed(gt_labels, pred_labels)
        scores.append(evaluator.conclude().objects[0].boundary.mean)
    assert scores[0] < scores[1]


GT = np.ones(SIZE_HW, np.uint8)


@pytest.mark.parametrize(
    ("pred_labels", "message"),
    [
        (None, "there is no prediction"),
        (np.zeros((30, 40), np.uint8), "prediction is 40x30 uint8 but the annotation is 80x60"),
        (np.zeros((*SIZE_HW, 3), np.uint8), r"prediction is uint8 of shape \(60, 80, 3\)"),
        (np.zeros(SIZE_HW, np.int32), "int32"),
        (np.full(SIZE_HW, 255, np.uint8), "value 255"),
        (np.full(SIZE_HW, 4, np.uint8), r"has id 4, but the first annotation has .* 1\.\.1"),
    ],
)
def test_a_prediction_that_cannot_be_scored_is_named(pred_labels, message: str) -> None:
    evaluator = SequenceEvaluator("clip")
    evaluator.feed(GT, None)
    evaluator.feed(GT, pred_labels, source=Path("results/clip/00001.png"))
    with pytest.raises(EvaluationError, match=rf"results/clip/00001\.png: .*{message}"):
        evaluator.feed(GT, None)


def test_a_prediction_from_memory_is_named_by_its_number() -> None:
    evaluator = SequenceEvaluator("clip")
    for _ in range(3):
        evaluator.feed(GT, GT)
    evaluator.feed(GT, None)
    with pytest.raises(EvaluationError, match="clip/00003: there is no prediction"):
        evaluator.feed(GT, None)


@pytest.mark.parametrize(
    ("gt_labels", "message"),
    [
        (np.zeros(SIZE_HW, np.uint8), "no object"),
        (np.full(SIZE_HW, 255, np.uint8), "no object .* 0/255 mask"),
        (np.ones(SIZE_HW, np.int64), "must be .* uint8"),
        (np.ones((*SIZE_HW, 3), np.uint8), "must be .* uint8"),
    ],
)
def test_a_first_annotation_that_cannot_be_used_is_refused(gt_labels, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        SequenceEvaluator("clip").feed(gt_labels, None)


def test_annotations_of_mixed_sizes_are_refused() -> None:
    evaluator = SequenceEvaluator("clip")
    evaluator.feed(GT, None)
    with pytest.raises(EvaluationError, match="clip, frame 1: the annotation is 5x4 uint8"):
        evaluator.feed(np.ones((4, 5), np.uint8), None)


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_too_few_frames_to_score(frames: int) -> None:
    evaluator = SequenceEvaluator("clip")
    for _ in range(frames):
        evaluator.feed(GT, GT)
    with pytest.raises(EvaluationError, match="at least three"):
        evaluator.conclude()
