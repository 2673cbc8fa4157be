"""Golden dataset: every prediction set of the official tool, valid or not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpn.errors import EvaluationError
from mpn.evaluation import boundary, sequence
from mpn.evaluation.davis import DavisDataset, load_davis
from mpn.evaluation.evaluate import evaluate_dataset
from mpn.evaluation.scores import DatasetScore, global_csv_from_score, per_sequence_csv_from_score
from mpn.evaluation.sequence import EvaluationOptions
from mpn.masks import save_labels
from tests.tolerances import MEASURE_ABSOLUTE

SCORED = (
    "perfect",
    "empty",
    "swapped_ids",
    "dilate5",
    "erode3",
    "drift",
    "stale_first",
    "missing_first_last",
    "gray_L",
)
STUMBLED = {
    "missing_frame": r"swim-move/00005\.png: no such file",
    "extra_id": r"swim-move/00001\.png: .*has id 4",
    "half_res": r"swim-move/00001\.png: .*427x240",
}


@pytest.fixture(scope="module")
def expected(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "expected.json").read_text())["cases"]


@pytest.fixture(scope="module")
def dataset(golden: Path) -> DavisDataset:
    return load_davis(golden / "dataset", "val")


def largest_difference(score: DatasetScore, case: dict[str, Any]) -> float:
    """Compare every frame, statistic and global figure.

    Infinite if objects or frames differ.
    """
    if [scored.name for scored in score.objects] != list(case["objects"]):
        return np.inf
    ours, theirs = [score.j_and_f], [case["global"]["J&F"]]
    for clip in score.sequences:
        for scored in clip.objects:
            entry = case["objects"][scored.name]
            if list(clip.frames) != entry["frames"]:
                return np.inf
            ours += [*scored.region_values, *scored.boundary_values]
            theirs += [*entry["J"]["per_frame"], *entry["F"]["per_frame"]]
            for statistics, their in ((scored.region, entry["J"]), (scored.boundary, entry["F"])):
                ours += [statistics.mean, statistics.recall, statistics.decay]
                theirs += [their["mean"], their["recall"], their["decay"]]
    for statistics, their in ((score.region, "J"), (score.boundary, "F")):
        ours += [statistics.mean, statistics.recall, statistics.decay]
        theirs += [case["global"][their][name] for name in ("mean", "recall", "decay")]
    return float(np.abs(np.subtract(ours, theirs)).max())


def test_the_golden_cases_are_all_listed_here(expected: dict[str, Any]) -> None:
    assert set(expected) == {*SCORED, *STUMBLED}


@pytest.mark.parametrize("name", SCORED)
def test_every_figure_equals_the_official_one(
    name: str, golden: Path, dataset: DavisDataset, expected: dict[str, Any]
) -> None:
    case = expected[name]["semi-supervised"]
    score = evaluate_dataset(dataset, golden / "predictions" / name)
    assert largest_difference(score, case) <= MEASURE_ABSOLUTE
    assert global_csv_from_score(score) == case["cli"]["global_results-val.csv"]
    assert per_sequence_csv_from_score(score) == case["cli"]["per-sequence_results-val.csv"]


@pytest.mark.parametrize("name", STUMBLED)
def test_unreadable_annotation_raises_with_path(
    name: str, golden: Path, dataset: DavisDataset
) -> None:
    with pytest.raises(EvaluationError, match=STUMBLED[name]):
        evaluate_dataset(dataset, golden / "predictions" / name)


def wrong_tolerance(monkeypatch: pytest.MonkeyPatch) -> EvaluationOptions:
    return EvaluationOptions(boundary_tolerance=0.009)


def wrong_border(monkeypatch: pytest.MonkeyPatch) -> EvaluationOptions:
    monkeypatch.setattr(boundary, "_replicated", lambda planes: np.pad(planes, ((0, 1), (0, 1))))
    return EvaluationOptions()


def wrong_object_count(monkeypatch: pytest.MonkeyPatch) -> EvaluationOptions:
    def count_with_void(labels: np.ndarray) -> int:
        return len(np.unique(labels)) - 1

    monkeypatch.setattr(sequence, "object_count", count_with_void)
    return EvaluationOptions()


def void_left_out(monkeypatch: pytest.MonkeyPatch) -> EvaluationOptions:
    feed = sequence.SequenceEvaluator.feed

    def feed_without_void(self, gt_labels, pred_labels, **source) -> None:
        if pred_labels is not None:
            pred_labels = np.where(gt_labels == 255, 0, pred_labels).astype(np.uint8)
        feed(self, gt_labels, pred_labels, **source)

    monkeypatch.setattr(sequence.SequenceEvaluator, "feed", feed_without_void)
    return EvaluationOptions()


@pytest.mark.parametrize(
    "broken", [wrong_tolerance, wrong_border, wrong_object_count, void_left_out]
)
def test_a_wrong_evaluator_fails_the_golden_cases(
    broken: Callable[[pytest.MonkeyPatch], EvaluationOptions],
    monkeypatch: pytest.MonkeyPatch,
    golden: Path,
    dataset: DavisDataset,
    expected: dict[str, Any],
) -> None:
    """Positive control: each mistake changes the figures of one prediction set."""
    options = broken(monkeypatch)
    score = evaluate_dataset(dataset, golden / "predictions" / "drift", options)
    case = expected["drift"]["semi-supervised"]
    assert not largest_difference(score, case) <= MEASURE_ABSOLUTE


def test_processes_give_the_same_figures(
    golden: Path, dataset: DavisDataset, expected: dict[str, Any]
) -> None:
    done: list[int] = []
    score = evaluate_dataset(
        dataset,
        golden / "predictions" / "erode3",
        EvaluationOptions(workers=2),
        on_frames=done.append,
    )
    assert largest_difference(score, expected["erode3"]["semi-supervised"]) <= MEASURE_ABSOLUTE
    assert sum(done) == sum(len(clip.annotation_paths) for clip in dataset.sequences)


def test_an_error_in_a_process_names_its_file(golden: Path, dataset: DavisDataset) -> None:
    with pytest.raises(EvaluationError, match=STUMBLED["half_res"]):
        evaluate_dataset(dataset, golden / "predictions" / "half_res", EvaluationOptions(workers=2))


def test_progress_counts_every_frame(golden: Path, dataset: DavisDataset) -> None:
    done: list[int] = []
    evaluate_dataset(dataset, golden / "predictions" / "perfect", on_frames=done.append)
    assert sum(done) == 48


@pytest.mark.parametrize("workers", [0, -1])
def test_no_worker_is_an_error(workers: int, golden: Path, dataset: DavisDataset) -> None:
    options = EvaluationOptions(workers=workers)
    with pytest.raises(EvaluationError, match="workers"):
        evaluate_dataset(dataset, golden / "predictions" / "perfect", options)


def test_merged_annotations_of_davis_2016_are_scored(davis_root: Path, tmp_path: Path) -> None:
    """Real data with ids 0 and 1: a perfect prediction scores 1 in every frame."""
    dataset = load_davis(davis_root, "val")
    clip = next(item for item in dataset.sequences if item.name == "blackswan")
    dataset = DavisDataset(root=davis_root, set_name="val", sequences=(clip,))
    shutil.copytree(clip.annotation_paths[0].parent, tmp_path / clip.name)
    score = evaluate_dataset(dataset, tmp_path)
    assert [scored.name for scored in score.objects] == ["blackswan_1"]
    assert score.j_and_f == 1.0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("void", "value 255"),
        ("rgb", "not object ids"),
        ("size", "prediction is 80x60"),
        ("surplus", "has id 7, 9"),
        ("cut", "cannot be read"),
    ],
)
def test_a_damaged_prediction_is_named(
    damage: str, message: str, golden: Path, dataset: DavisDataset, tmp_path: Path
) -> None:
    from PIL import Image

    shutil.copytree(golden / "predictions" / "perfect", tmp_path / "results")
    path = tmp_path / "results" / "dust-tiny" / "00006.png"
    labels = np.zeros((120, 160), np.uint8)
    if damage == "void":
        labels[3, 3] = 255
    elif damage == "surplus":
        labels[3, 3], labels[4, 4] = 7, 9
    path.chmod(0o644)
    if damage == "rgb":
        Image.fromarray(labels).convert("RGB").save(path)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        save_labels(path, labels[:60, :80] if damage == "size" else labels)
    with pytest.raises(EvaluationError, match=rf"dust-tiny/00006\.png:? .*{message}"):
        evaluate_dataset(dataset, tmp_path / "results")


@pytest.mark.parametrize(
    ("frame", "message"),
    [("00000.png", "first annotation has no object"), ("00004.png", "the annotation is 80x60")],
)
def test_a_damaged_annotation_is_named(
    frame: str, message: str, golden: Path, tmp_path: Path
) -> None:
    shutil.copytree(golden / "dataset", tmp_path / "davis")
    path = tmp_path / "davis" / "Annotations" / "480p" / "dust-tiny" / frame
    path.chmod(0o644)
    save_labels(path, np.zeros((60, 80), np.uint8))
    with pytest.raises(EvaluationError, match=rf"dust-tiny/{frame}: .*{message}"):
        evaluate_dataset(load_davis(tmp_path / "davis", "val"), golden / "predictions" / "perfect")
