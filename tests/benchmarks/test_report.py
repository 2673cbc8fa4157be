from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.results import (
    adapt_step_result,
    adaptation_result,
    compare_torch_result,
    crf_result,
    davis_result,
    evaluation_result,
    export_result,
    flow_accuracy_result,
    fps_result,
    precision_result,
    vanish_result,
)
from tests.conftest import REPOSITORY

from report import TABLES, generated, main, stale_files, write_report  # isort: skip
from report_pipeline import davis_table  # isort: skip
from report_plots import plots_of  # isort: skip
from report_text import table  # isort: skip
from result_format import KINDS, ResultError, check_result, load_result  # isort: skip

RESULTS: dict[str, Callable[[], dict[str, Any]]] = {
    "fps-tiny": fps_result,
    "davis-tiny": davis_result,
    "compare_torch": compare_torch_result,
    "export_table": export_result,
    "evaluation_speed": evaluation_result,
    "vanish_return": vanish_result,
    "crf_speed": crf_result,
    "adaptation": adaptation_result,
    "adapt_step": adapt_step_result,
    "precision": precision_result,
    "flow_accuracy": flow_accuracy_result,
}
AXES = ("ms a frame (median)", "frames a second", "J&F", "mean score")
PAGE = "before\n<!-- results -->\nof another day\n<!-- /results -->\nafter\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with a result of every benchmark, and nothing made of them yet."""
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    for page in ("README.md", "docs/benchmarks.md"):
        (tmp_path / page).write_text(PAGE)
    for name, make in RESULTS.items():
        (results / f"{name}.json").write_text(json.dumps(make()))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr("sys.argv", ["report.py", *map(str, arguments)])
    return main()


def test_every_committed_result_is_in_the_format_and_has_a_table() -> None:
    paths = sorted((REPOSITORY / "benchmarks" / "results").glob("*.json"))
    assert paths
    for path in paths:
        assert load_result(path)["benchmark"] in TABLES


def test_the_committed_report_is_what_the_results_give() -> None:
    assert stale_files(REPOSITORY) == []


def test_there_is_a_table_and_a_check_for_every_benchmark() -> None:
    assert set(TABLES) == set(KINDS)
    for make in RESULTS.values():
        check_result(make())


def test_the_report_goes_between_the_marks_and_nowhere_else(root: Path) -> None:
    write_report(root)
    for page in ("README.md", "docs/benchmarks.md"):
        text = (root / page).read_text()
        assert text.startswith("before\n<!-- results -->\n")
        assert text.endswith("<!-- /results -->\nafter\n")
        assert "of another day" not in text
        for heading, _ in TABLES.values():
            assert text.count(f"### {heading}\n") == 1
        assert "### Not measured\n\n- a GPU (" in text
        assert "Test CPU, 2 cores, 2 threads" in text
        for link in re.findall(r"\]\(([^)]+\.svg)\)", text):
            assert ((root / page).parent / link).is_file()


def test_readme_is_shorter_than_the_docs(root: Path) -> None:
    write_report(root)
    readme, docs = ((root / page).read_text() for page in ("README.md", "docs/benchmarks.md"))
    assert len(readme) < len(docs)
    assert "dog_1" in docs
    assert "dog_1" not in readme
    assert "as in the paper: warp alone" in readme


def test_writing_twice_changes_nothing(root: Path) -> None:
    assert len(write_report(root)) > 2
    assert write_report(root) == []
    assert generated(root) == generated(root)


STALE: dict[str, Callable[[Path], Any]] = {
    "a number in README": lambda r: (r / "README.md").write_text(
        (r / "README.md").read_text().replace("33.0", "66.0")
    ),
    "a result": lambda r: (r / "benchmarks" / "results" / "davis-tiny.json").write_text(
        json.dumps({**davis_result(), "objects": [9], "frames": 77})
    ),
    "a plot": lambda r: (r / "docs" / "plots" / "fps-tiny.svg").write_text("<svg/>"),
    "a plot that is gone": lambda r: (r / "docs" / "plots" / "fps-tiny.svg").unlink(),
    "a plot of no result": lambda r: (r / "docs" / "plots" / "other.svg").write_text("<svg/>"),
    "a result that is gone": lambda r: (r / "benchmarks" / "results" / "fps-tiny.json").unlink(),
}


@pytest.mark.parametrize("case", STALE)
def test_check_fails_when_something_is_stale_and_writing_repairs_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    assert run(monkeypatch, "--root", root) == 0
    assert run(monkeypatch, "--root", root, "--check") == 0
    STALE[case](root)
    capsys.readouterr()
    assert run(monkeypatch, "--root", root, "--check") == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("stale: ")
    assert captured.err.startswith("error: the report is not what the JSON gives")
    assert run(monkeypatch, "--root", root) == 0
    assert run(monkeypatch, "--root", root, "--check") == 0


def test_what_cannot_be_reported_is_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / "benchmarks" / "results" / "new.json"
    path.write_text(json.dumps({**fps_result(), "benchmark": "teapot"}))
    assert run(monkeypatch, "--root", root) == 1
    assert "there is no table for the benchmark 'teapot'" in capsys.readouterr().err
    path.write_text(json.dumps({**fps_result(), "schema": 1}))
    assert run(monkeypatch, "--root", root) == 1
    assert capsys.readouterr().err.startswith(f"error: {path}: schema is 1")
    path.unlink()
    (root / "README.md").write_text("no marks")
    with pytest.raises(ResultError, match="there must be one <!-- results --> section, found 0"):
        generated(root)


@pytest.mark.parametrize("name", RESULTS)
def test_plots_are_whole_pictures_with_title_axis_unit_and_machine(name: str) -> None:
    for plot in plots_of(name, RESULTS[name]()):
        drawn = ElementTree.fromstring(plot.svg)
        texts = [element.text or "" for element in drawn.iter() if element.tag.endswith("text")]
        together = " ".join(texts)
        assert drawn.find("{http://www.w3.org/2000/svg}title") is not None
        assert "Test CPU, 2 cores" in together
        assert re.search(r"N = \d+", together)
        assert any(axis in texts for axis in AXES)
        _, _, width, height = map(float, drawn.attrib["viewBox"].split())
        for element in drawn.iter():
            at = {key: float(element.attrib[key]) for key in ("x", "y") if key in element.attrib}
            assert 0 <= at.get("x", 0) <= width
            assert 0 <= at.get("y", 0) <= height


def test_benchmarks_with_plots() -> None:
    found = {
        name: [plot.file_name for plot in plots_of(name, make())] for name, make in RESULTS.items()
    }
    assert found == {
        "fps-tiny": ["fps-tiny.svg", "fps-tiny-stages.svg"],
        "davis-tiny": ["davis-tiny.svg"],
        "compare_torch": ["compare_torch-k1.svg"],
        "export_table": [],
        "evaluation_speed": [],
        "vanish_return": [],
        "crf_speed": [],
        "adaptation": ["adaptation.svg"],
        "adapt_step": [],
        "precision": [],
        "flow_accuracy": [],
    }


def test_a_variant_is_told_by_the_options_that_it_changes() -> None:
    result = davis_result()
    before = result["ablations"]["propagation"]
    changed = before["options"] | {"flip_tta": True}
    result["ablations"]["twice"] = before | {"options": changed}
    assert "| twice: + propagation, `mirror=True` |" in davis_table(result, is_short=True)


def test_values_stand_where_the_axis_has_them() -> None:
    """A dot at J&F 0.71 lies 0.71 of the way between the gridlines of 0 and 1."""
    (plot,) = plots_of("davis-tiny", davis_result())
    drawn = ElementTree.fromstring(plot.svg)

    def place(tick: str) -> float:
        return next(float(e.attrib["x"]) for e in drawn.iter() if e.text == tick)

    zero, one = place("0"), place("1")
    dots = sorted({float(e.attrib["cx"]) for e in drawn.iter() if "cx" in e.attrib})
    shares = [round((x - zero) / (one - zero), 3) for x in dots]
    assert shares == pytest.approx([0.51, 0.71], abs=1e-3)


def test_empty_columns_are_left_out() -> None:
    assert table(["a", "b", "c"], [[1, "", 2], [3, "", ""]]).splitlines() == [
        "| a | c |",
        "| --- | --- |",
        "| 1 | 2 |",
        "| 3 |  |",
    ]
