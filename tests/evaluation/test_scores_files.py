import json
from pathlib import Path

import pytest

from mpn.errors import OutputError
from mpn.evaluation.scores import (
    DatasetScore,
    ObjectScore,
    SequenceScore,
    global_csv_from_score,
    json_from_score,
    paper_line_from_score,
    per_sequence_csv_from_score,
    save_csvs,
)


def score_of(*objects: ObjectScore) -> DatasetScore:
    clip = SequenceScore(name="dog", frames=("00001", "00002"), objects=objects)
    return DatasetScore(set_name="val", sequences=(clip,))


SCORE = score_of(
    ObjectScore.from_values("dog", 1, [0.9, 0.7], [1.0, 0.5]),
    ObjectScore.from_values("dog", 2, [0.1, 0.3], [0.25, 0.25]),
)


def test_csv_texts_have_the_official_columns() -> None:
    assert global_csv_from_score(SCORE) == (
        "J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay\n"
        "0.500,0.500,0.500,0.000,0.500,0.250,0.250\n"
    )
    assert per_sequence_csv_from_score(SCORE) == (
        "Sequence,J-Mean,F-Mean\ndog_1,0.800,0.750\ndog_2,0.200,0.250\n"
    )


def test_json_has_the_keys_of_the_contract() -> None:
    figures = json.loads(json.dumps(json_from_score(SCORE)))
    assert list(figures) == ["global", "objects"]
    assert figures["global"]["J&F-Mean"] == pytest.approx(0.5)
    assert list(figures["objects"]) == ["dog_1", "dog_2"]
    assert set(figures["objects"]["dog_1"]) == {
        "J-Mean",
        "J-Recall",
        "J-Decay",
        "F-Mean",
        "F-Recall",
        "F-Decay",
    }


def test_json_with_frames_has_every_value() -> None:
    figures = json_from_score(SCORE, per_frame=True)
    assert figures["frames"] == {"dog": ["00001", "00002"]}
    assert figures["objects"]["dog_1"]["J"] == [0.9, 0.7]
    assert figures["objects"]["dog_1"]["F"] == [1.0, 0.5]


def test_paper_line_is_in_percent() -> None:
    assert paper_line_from_score(SCORE) == (
        "J&F 50.0 | J mean 50.0 recall 50.0 decay 0.0 | F mean 50.0 recall 25.0 decay 25.0"
    )


def test_csvs_replace_older_ones_and_leave_nothing_else(tmp_path: Path) -> None:
    """Positive control: an older CSV with other figures is overwritten."""
    (tmp_path / "global_results-val.csv").write_text("J&F-Mean\n0.999\n")
    paths = save_csvs(SCORE, tmp_path)
    assert {path.name for path in paths} == {
        "global_results-val.csv",
        "per-sequence_results-val.csv",
    }
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert paths[0].read_text() == global_csv_from_score(SCORE)


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*absent.global_results-val\.csv"):
        save_csvs(SCORE, tmp_path / "absent")
