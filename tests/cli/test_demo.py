"""``mpn demo`` with engines that copy the warped mask."""

import json
from pathlib import Path

import pytest

from mpn.cli.main import _run_app, app
from mpn.evaluation import load_davis
from tests.builders.engine_dirs import make_engine_dir

FRAMES = 4


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_engine_dir(tmp_path_factory.mktemp("engines") / "tiny")


def run_demo(out: Path, engine_dir: Path, *options: str) -> int:
    given = ["-o", str(out), "--engine-dir", str(engine_dir), "--frames", str(FRAMES)]
    return _run_app(app, ["demo", *given, *options])


def test_demo_leaves_an_overlay_and_prints_speed_and_score(
    tmp_path: Path, engine_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo-out"
    assert run_demo(out, engine_dir) == 0
    printed = capsys.readouterr().out
    assert str(out / "overlay.mp4") in printed
    assert "FPS on cpu" in printed
    assert "J&F" in printed
    assert "koi J 0." in printed
    assert (out / "overlay.mp4").stat().st_size > 10_000
    assert len(list((out / "masks").glob("*.png"))) == FRAMES
    assert json.loads((out / "run.json").read_text())["frames"] == FRAMES
    (sequence,) = load_davis(out / "clip", "val").sequences
    assert len(sequence.annotation_paths) == FRAMES
    # Run again in the same folder: it replaces the first run, and --quiet prints nothing.
    assert run_demo(out, engine_dir, "--quiet") == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_no_engines_are_found_out_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_demo(tmp_path / "out", tmp_path / "absent") == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_named_before_anything_is_rendered(
    tmp_path: Path, engine_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("a file")
    assert run_demo(tmp_path / "out", engine_dir) == 1
    assert "is a file, not a folder" in capsys.readouterr().err


def test_two_frames_are_a_usage_error(
    tmp_path: Path, engine_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_demo(tmp_path / "out", engine_dir, "--frames", "2") == 2
    capsys.readouterr()
