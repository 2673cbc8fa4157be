from pathlib import Path

import pytest

from mpn.errors import EvaluationError
from mpn.evaluation.davis import check_results, load_davis


def make_root(root: Path, sequences: dict[str, int], *, listed: str | None = None) -> Path:
    """Make a DAVIS folder of empty annotation files."""
    (root / "ImageSets" / "2017").mkdir(parents=True)
    text = "\n".join(sequences) if listed is None else listed
    (root / "ImageSets" / "2017" / "val.txt").write_text(text + "\n")
    for name, frames in sequences.items():
        folder = root / "Annotations" / "480p" / name
        folder.mkdir(parents=True)
        for number in range(frames):
            (folder / f"{number:05d}.png").touch()
    return root


def make_results(results: Path, root: Path) -> Path:
    for path in sorted((root / "Annotations" / "480p").glob("*/*.png")):
        copy = results / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()
    return results


def test_sequences_come_in_the_order_of_the_list(tmp_path: Path) -> None:
    dataset = load_davis(make_root(tmp_path, {"dog": 3, "bear": 5}), "val")
    assert [sequence.name for sequence in dataset.sequences] == ["dog", "bear"]
    bear = dataset.sequences[1]
    assert [path.name for path in bear.scored_paths()] == ["00001.png", "00002.png", "00003.png"]


def test_first_and_last_prediction_need_not_exist(tmp_path: Path) -> None:
    root = make_root(tmp_path / "davis", {"dog": 4})
    results = make_results(tmp_path / "results", root)
    (results / "dog" / "00000.png").unlink()
    (results / "dog" / "00003.png").unlink()
    check_results(load_davis(root, "val"), results)


def test_a_missing_frame_is_named_and_counted(tmp_path: Path) -> None:
    root = make_root(tmp_path / "davis", {"dog": 6})
    results = make_results(tmp_path / "results", root)
    for number in (2, 3):
        (results / "dog" / f"{number:05d}.png").unlink()
    with pytest.raises(EvaluationError, match=r"dog/00002\.png: no such file \(2 of 4 scored"):
        check_results(load_davis(root, "val"), results)


def test_a_missing_sequence_is_named(tmp_path: Path) -> None:
    root = make_root(tmp_path / "davis", {"dog": 3, "bear": 3})
    results = make_results(tmp_path / "results", root)
    (results / "bear").rename(results / "bears")
    with pytest.raises(EvaluationError, match=r"results/bear: no such folder.*1 of 2"):
        check_results(load_davis(root, "val"), results)


def test_additional_results_are_ignored(tmp_path: Path) -> None:
    root = make_root(tmp_path / "davis", {"dog": 3, "bear": 3}, listed="dog")
    results = make_results(tmp_path / "results", root)
    check_results(load_davis(root, "val"), results)


@pytest.mark.parametrize(
    ("sequences", "listed", "message"),
    [
        ({"dog": 3}, "", "list is empty"),
        ({"dog": 3}, "dog\ndog", "'dog' is listed twice"),
        ({"dog": 3}, "dog\ncat", r"480p/cat: no such annotation folder"),
        ({"dog": 2}, "dog", r"480p/dog: 2 annotations; at least 3"),
        ({"dog": 0}, "dog", r"480p/dog: 0 annotations"),
    ],
)
def test_a_dataset_that_cannot_be_scored_is_refused(
    tmp_path: Path, sequences: dict[str, int], listed: str, message: str
) -> None:
    root = make_root(tmp_path, sequences, listed=listed)
    with pytest.raises(EvaluationError, match=message):
        load_davis(root, "val")


def test_an_unknown_set_lists_those_that_exist(tmp_path: Path) -> None:
    root = make_root(tmp_path, {"dog": 3})
    with pytest.raises(EvaluationError, match=r"test-dev\.txt: no such set list.*val"):
        load_davis(root, "test-dev")


def test_a_folder_that_is_no_davis_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="is this a DAVIS folder"):
        load_davis(tmp_path, "val")


def test_no_results_folder(tmp_path: Path) -> None:
    dataset = load_davis(make_root(tmp_path, {"dog": 3}), "val")
    with pytest.raises(EvaluationError, match="absent: no such results folder"):
        check_results(dataset, tmp_path / "absent")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_list_and_folders_of_other_systems_are_read(tmp_path: Path, encoding: str) -> None:
    """Windows writes byte order marks and CRLF, macOS ``._NAME`` next to each NAME."""
    root = make_root(tmp_path, {"dog": 3, "bear": 4})
    (root / "ImageSets/2017/val.txt").write_bytes("dog\r\nbear\r\n".encode(encoding))
    (root / "Annotations/480p/dog/._00000.png").touch()
    dataset = load_davis(root, "val")
    assert [len(sequence.annotation_paths) for sequence in dataset.sequences] == [3, 4]


def test_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    root = make_root(tmp_path, {"dog": 3})
    (root / "ImageSets/2017/val.txt").write_bytes(b"\xff\x00dog")
    with pytest.raises(EvaluationError, match=r"val\.txt cannot be read: it is no text"):
        load_davis(root, "val")
