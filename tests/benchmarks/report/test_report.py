from __future__ import annotations

import builtins
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.__main__ import generate, main, stale_files, write_report
from benchmarks.report.plots import SUFFIXES, draw, plots_of
from benchmarks.report.schema import KINDS, ResultError, check_result, load_result
from benchmarks.report.tables import TABLES, davis_table, headline_table, table
from mpn.runtime.options import ResolvedCrf
from tests.benchmarks.results import (
    batch_ray_result,
    batch_result,
    compare_torch_result,
    confidence_result,
    corrections_result,
    crf_result,
    davis_result,
    directions_result,
    evaluation_result,
    export_result,
    features_result,
    finetune_step_result,
    finetuning_result,
    flow_accuracy_result,
    fps_result,
    lookalikes_result,
    memory_result,
    networks_result,
    precision_result,
    profile_result,
    reappearance_result,
    releases_result,
    same_masks_result,
    scaling_result,
    service_result,
    step_parity_result,
)
from tests.conftest import REPOSITORY

RESULTS: dict[str, Callable[[], dict[str, Any]]] = {
    "fps-tiny": fps_result,
    "profile": profile_result,
    "davis-tiny": davis_result,
    "compare_torch": compare_torch_result,
    "export_table": export_result,
    "networks": networks_result,
    "step_parity": step_parity_result,
    "evaluation_speed": evaluation_result,
    "reappearance": reappearance_result,
    "lookalikes": lookalikes_result,
    "confidence": confidence_result,
    "corrections": corrections_result,
    "directions": directions_result,
    "features": features_result,
    "memory": memory_result,
    "releases": releases_result,
    "scaling": scaling_result,
    "same_masks": same_masks_result,
    "batch": batch_result,
    "batch_ray": batch_ray_result,
    "service": service_result,
    "crf_speed": crf_result,
    "finetuning": finetuning_result,
    "finetune_step": finetune_step_result,
    "precision": precision_result,
    "flow_accuracy": flow_accuracy_result,
}
PLOTS = {
    "fps-tiny": ["fps-tiny", "fps-tiny-stages"],
    "profile": ["profile"],
    "davis-tiny": ["davis-tiny"],
    "compare_torch": ["compare_torch-k1"],
    "finetuning": ["finetuning"],
    "scaling": ["scaling-k", "scaling-size", "scaling-length"],
}
PAGE = "before\n<!-- results -->\nold text\n<!-- /results -->\nafter\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_repository(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a repository with its report; tests read it or copy it."""
    path = make_repository(tmp_path_factory.mktemp("written"))
    write_report(path)
    return path


def make_repository(path: Path) -> Path:
    """Write a repository with a result of every benchmark and no report."""
    for group in ("headline", "ablations"):
        (path / "benchmarks" / "results" / group).mkdir(parents=True)
    (path / "docs").mkdir()
    (path / "README.md").write_text(PAGE)
    for name, make in RESULTS.items():
        result_path(path, name).write_text(json.dumps(make()))
    result_path(path, "davis-other", "ablations").write_text(json.dumps(davis_result()))
    return path


def result_path(root: Path, name: str, group: str = "headline") -> Path:
    return root / "benchmarks" / "results" / group / f"{name}.json"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr("sys.argv", ["report", *map(str, arguments)])
    return main()


def test_committed_results_are_valid_and_have_tables() -> None:
    paths = sorted((REPOSITORY / "benchmarks" / "results").glob("*/*.json"))
    assert paths
    for path in paths:
        assert load_result(path)["benchmark"] in TABLES


def test_committed_report_matches_results() -> None:
    assert stale_files(REPOSITORY) == []


def test_every_benchmark_has_table_and_schema() -> None:
    assert set(TABLES) == set(KINDS)
    for make in RESULTS.values():
        check_result(make())


def test_report_replaces_marked_section_only(written: Path) -> None:
    text = (written / "README.md").read_text()
    assert text.startswith("before\n<!-- results -->\n")
    assert text.endswith("<!-- /results -->\nafter\n")
    assert "old text" not in text
    assert text.count("\n| ") == 2 + 2  # headings, rule and two run modes


def test_results_page_has_every_benchmark(written: Path) -> None:
    text = (written / "docs" / "results.md").read_text()
    for heading, _ in TABLES.values():
        assert text.count(f"\n## {heading}\n") == 1
    headline, ablations = text.split("\n## Ablations\n")
    assert "| dog_1 |" in headline
    assert "### Accuracy and speed on DAVIS" in ablations
    assert "| dog_1 |" not in ablations
    assert "## Not measured\n\n- a GPU (" in text
    assert "Test CPU, 2 cores, 2 threads" in text
    assert "as in the paper: warp alone" in text
    links = re.findall(r"\]\((plots/[^)]+)\)", text)
    assert len(links) == sum(map(len, PLOTS.values()))
    for link in links:
        assert (written / "docs" / link).is_file()


def test_headline_table_has_run_modes_and_first_mask() -> None:
    """The first mask is that of the sequences with one object."""
    lines = headline_table({"davis-tiny": davis_result()}).splitlines()
    assert lines[0] == "| mode | J&F | J | F | wall FPS | first mask, s |"
    assert lines[2] == "| `--fast` | 0.610 | 0.600 | 0.620 | 33.0 | 0.60 |"
    assert lines[3] == "| default (fine-tuned) | 0.810 | 0.800 | 0.820 | 33.0 | 0.80 |"
    assert lines[5].startswith("2 sequences (20 frames) of the DAVIS set `val`.")


def test_headline_table_of_target_model_has_its_modes() -> None:
    """The default is ``updates``, and only ``finetuned`` is fine-tuned."""
    result = davis_result()
    sets = result["ablations"]
    renamed = {"propagation": "updates", "osvos": "finetuned", "paper-warp": "target"}
    result["ablations"] = {renamed.get(name, name): scores for name, scores in sets.items()}
    result["ablations"]["updates"]["stages"] = ["warp", "propagation", "target", "updates"]
    lines = headline_table({"davis-tiny": result}).splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:5]] == [
        ["| `--fast`", "0.610"],
        ["| default", "0.710"],
        ["| default, fine-tuned (`--finetune`)", "0.810"],
    ]
    table_lines = davis_table(result, True)
    assert "| + updates (default) |" in table_lines
    assert "| + target model of the first frame |" in table_lines


def test_headline_table_without_davis_result_raises() -> None:
    with pytest.raises(ResultError, match="no headline result of benchmark 'davis'"):
        headline_table({"fps-tiny": fps_result()})


def test_write_report_twice_changes_nothing(written: Path) -> None:
    assert write_report(written) == []
    assert generate(written) == generate(written)


STALE: dict[str, Callable[[Path], Any]] = {
    "a number in README": lambda r: (r / "README.md").write_text(
        (r / "README.md").read_text().replace("33.0", "66.0")
    ),
    "a number in results.md": lambda r: (r / "docs" / "results.md").write_text(
        (r / "docs" / "results.md").read_text().replace("33.0", "66.0")
    ),
    "a result": lambda r: result_path(r, "davis-tiny").write_text(
        json.dumps({**davis_result(), "objects": [9], "frames": 77})
    ),
    "an SVG": lambda r: (r / "docs" / "plots" / "fps-tiny.svg").write_text("<svg/>"),
    "a PNG of another plot": lambda r: (r / "docs" / "plots" / "fps-tiny.png").write_bytes(
        (r / "docs" / "plots" / "davis-tiny.png").read_bytes()
    ),
    "a missing plot": lambda r: (r / "docs" / "plots" / "fps-tiny.svg").unlink(),
    "a plot of no result": lambda r: (r / "docs" / "plots" / "other.svg").write_text("<svg/>"),
    "a removed result": lambda r: result_path(r, "fps-tiny").unlink(),
}


@pytest.mark.parametrize("case", STALE)
def test_check_stale_file_exits_1_until_written(
    written: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    root = Path(shutil.copytree(written, tmp_path / "copy"))
    assert run(monkeypatch, "--root", root, "--check") == 0
    STALE[case](root)
    capsys.readouterr()
    assert run(monkeypatch, "--root", root, "--check") == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("stale: ")
    assert captured.err.startswith("error: the report does not match the JSON")
    assert run(monkeypatch, "--root", root) == 0
    assert run(monkeypatch, "--root", root, "--check") == 0


def test_report_invalid_input_prints_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = result_path(root, "new")
    path.write_text(json.dumps({**fps_result(), "benchmark": "teapot"}))
    assert run(monkeypatch, "--root", root) == 1
    assert "there is no table for the benchmark 'teapot'" in capsys.readouterr().err
    path.write_text(json.dumps({**fps_result(), "schema": 1}))
    assert run(monkeypatch, "--root", root) == 1
    assert capsys.readouterr().err.startswith(f"error: {path}: schema is 1")
    path.unlink()
    (root / "README.md").write_text("no marks")
    with pytest.raises(ResultError, match="expected one <!-- results --> section, found 0"):
        generate(root)


def test_check_needs_no_matplotlib(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(written, tmp_path / "copy"))
    imported = builtins.__import__

    def without_matplotlib(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    assert run(monkeypatch, "--root", root, "--check") == 0
    (root / "docs" / "plots" / "fps-tiny.svg").unlink()
    assert run(monkeypatch, "--root", root) == 1  # drawing needs it


def test_plots_of_each_benchmark() -> None:
    found = {name: [plot.name for plot in plots_of(name, make())] for name, make in RESULTS.items()}
    assert {name: plots for name, plots in found.items() if plots} == PLOTS


@pytest.mark.parametrize("name", PLOTS)
def test_plot_has_title_axis_unit_and_machine(name: str) -> None:
    for plot in plots_of(name, RESULTS[name]()):
        assert plot.series.title
        labels = [plot.series.x_label, plot.series.y_label]
        if plot.series.kind.startswith("lines") and not plot.series.y_label:
            labels += [label for label, _ in plot.series.rows]
        assert re.search(r"FPS|ms per frame|J&F|score", " ".join(labels))
        assert "Test CPU, 2 cores" in plot.series.caption
        assert re.search(r"N = \d+", plot.series.caption)


def test_draw_twice_writes_equal_bytes(written: Path, tmp_path: Path) -> None:
    for name in PLOTS:
        plot = plots_of(name, RESULTS[name]())[0]
        for suffix in SUFFIXES:
            first = written / "docs" / "plots" / f"{plot.name}{suffix}"
            draw(plot, tmp_path / first.name)
            assert (tmp_path / first.name).read_bytes() == first.read_bytes()
            assert plot.digest.encode() in first.read_bytes()


def test_drawn_text_stays_inside_the_picture(written: Path) -> None:
    """The border of each PNG is white, and each SVG parses."""
    from matplotlib.image import imread

    for name in [name for names in PLOTS.values() for name in names]:
        pixels = imread(written / "docs" / "plots" / f"{name}.png")
        assert pixels[0].min() == pixels[-1].min() == pixels[:, 0].min() == 1
        assert pixels.min() == 0  # control: something is drawn
        svg = ElementTree.parse(written / "docs" / "plots" / f"{name}.svg")
        assert svg.getroot().tag.endswith("svg")


def test_plot_digest_depends_on_data() -> None:
    changed = davis_result()
    changed["ablations"]["warp"]["objects"]["bear_1"]["J-Mean"] = 0.51
    (plot,), (other,) = plots_of("davis", davis_result()), plots_of("davis", changed)
    assert plot.digest == plots_of("davis", davis_result())[0].digest
    assert plot.digest != other.digest


def test_davis_plot_has_mean_of_j_and_f() -> None:
    (plot,) = plots_of("davis-tiny", davis_result())
    rows = dict(plot.series.rows)
    assert rows["bear_1"]["warp alone"] == pytest.approx(0.51)
    assert rows["MEAN"]["+ propagation"] == pytest.approx(0.71)


def test_davis_table_variant_lists_changed_options() -> None:
    result = davis_result()
    before = result["ablations"]["propagation"]
    changed = before["options"] | {"flip_tta": True}
    result["ablations"]["twice"] = before | {"options": changed}
    with_crf = {"flip_tta": False, "crf": asdict(ResolvedCrf(iterations=3))}
    result["ablations"]["refined"] = before | {"options": with_crf}
    text = davis_table(result, True)
    assert "| twice: + propagation, `flip_tta=True` |" in text
    assert "| refined: + propagation, `crf=True, crf.iterations=3` |" in text


def test_table_leaves_out_empty_columns() -> None:
    assert table(["a", "b", "c"], [[1, "", 2], [3, "", ""]]).splitlines() == [
        "| a | c |",
        "| --- | --- |",
        "| 1 | 2 |",
        "| 3 |  |",
    ]
