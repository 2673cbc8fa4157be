"""``mpn eval`` from the command line: exit codes, output, files."""

import json
import shutil
from pathlib import Path

import pytest

from mpn.cli.main import _run_app, app
from tests.tolerances import MEASURE_ABSOLUTE


def run_eval(golden: Path, results: Path, *options: str) -> int:
    arguments = ["eval", "--davis-root", str(golden / "dataset"), "--results", str(results)]
    return _run_app(app, [*arguments, "--set", "val", "--jobs", "1", *options])


@pytest.fixture
def results(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden / "predictions" / "dilate5", tmp_path / "results"))


def test_table_and_csvs(golden: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.chmod(0o755)
    (results / "per-sequence_results-val.csv").write_text("Sequence,J-Mean,F-Mean\nold_1,1,1\n")
    assert run_eval(golden, results) == 0
    out = capsys.readouterr().out
    assert "wall-border_2" in out
    assert "J&F 66.1 | J mean 62.2 recall 68.0 decay 4.4" in out
    case = json.loads((golden / "expected.json").read_text())["cases"]["dilate5"]
    for name in ("global_results-val.csv", "per-sequence_results-val.csv"):
        assert (results / name).read_text() == case["semi-supervised"]["cli"][name]


def test_json_is_all_that_goes_to_stdout(
    golden: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_eval(golden, results, "--json", "--per-frame", "--csv-dir", str(tmp_path)) == 0
    figures = json.loads(capsys.readouterr().out)
    case = json.loads((golden / "expected.json").read_text())["cases"]["dilate5"]
    expected = case["semi-supervised"]
    assert figures["global"]["J&F-Mean"] == pytest.approx(
        expected["global"]["J&F"], abs=MEASURE_ABSOLUTE
    )
    for name, entry in expected["objects"].items():
        assert figures["objects"][name]["F"] == pytest.approx(
            entry["F"]["per_frame"], abs=MEASURE_ABSOLUTE
        )
    assert not list(results.glob("*.csv"))
    assert len(list(tmp_path.glob("*.csv"))) == 2


@pytest.mark.parametrize("name", ["missing_frame", "extra_id", "half_res"])
def test_a_bad_prediction_set_fails_with_one_line_and_no_csv(
    name: str, golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = golden / "predictions" / name
    assert run_eval(golden, predictions, "--csv-dir", str(tmp_path)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert ".png" in captured.err
    assert not list(tmp_path.iterdir())


def test_missing_csv_folder_fails_before_scoring(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = tmp_path / "nowhere"
    assert run_eval(golden, golden / "predictions" / "perfect", "--csv-dir", str(nowhere)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: --csv-dir {nowhere}: no such folder\n"


def test_csvs_not_writable_next_to_results_are_reported(
    golden: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mpn.errors import OutputError
    from mpn.evaluation import scores as results_module

    def refuse(score: object, directory: Path) -> None:
        raise OutputError(f"{directory}: the CSV cannot be written (Read-only file system)")

    monkeypatch.setattr(results_module, "save_csvs", refuse)
    perfect = golden / "predictions" / "perfect"
    assert run_eval(golden, perfect, "--quiet") == 0
    captured = capsys.readouterr()
    assert "note: " in captured.err
    assert "--csv-dir" in captured.err
    assert "J&F 100.0" in captured.out
    assert run_eval(golden, perfect, "--quiet", "--csv-dir", "elsewhere") == 1


def test_usage_errors_exit_with_2(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run_app(app, ["eval", "--results", "x"]) == 2
    assert run_eval(golden, golden / "predictions" / "perfect", "--per-frame") == 2
    capsys.readouterr()


def test_an_unknown_set_exits_with_1(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_eval(golden, golden / "predictions" / "perfect", "--set", "nothing") == 1
    assert "nothing.txt: no such set list" in capsys.readouterr().err
