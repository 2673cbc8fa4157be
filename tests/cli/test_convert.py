from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpn.cli import main as cli
from mpn.masks import save_labels
from mpn.runtime.convert import conversion
from mpn.runtime.convert.formats import FORMATS
from tests.builders.engine_dirs import make_engine_dir
from tests.builders.output_folders import write_output_folder
from tests.runtime.media.clips import SCENE_HW, scene, scene_labels, write_video

FRAMES = 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with clip.mp4, first.png and the output folder out."""
    monkeypatch.chdir(tmp_path)
    labels = [scene_labels(index) for index in range(FRAMES)]
    write_video(Path("clip.mp4"), scene(FRAMES))
    save_labels("first.png", labels[0])
    write_output_folder(Path("out"), Path("clip.mp4"), labels)
    return tmp_path


def run(*arguments: str) -> int:
    return cli._run_app(cli.app, list(arguments))


def test_convert_prints_the_paths(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run("convert", "out", "--to", "rgba-png,exr", "--objects", "2", "--start", "1")
    assert (code, *capsys.readouterr()) == (0, "out/converted/rgba-png\nout/converted/exr\n", "")
    assert [path.name for path in sorted(Path("out/converted/exr").iterdir())] == [
        "00001.exr",
        "00002.exr",
    ]
    assert run("convert", "out", "--to", "mattes", "-o", "m", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert sorted(path.name for path in Path("m").iterdir()) == ["object_1.mov", "object_2.mov"]


def test_convert_of_a_killed_run_states_its_frames(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [scene_labels(index) for index in range(2)]
    write_output_folder(Path("killed"), Path("clip.mp4"), labels, state="running")
    assert run("convert", "killed", "--to", "exr") == 0
    out, err = capsys.readouterr()
    assert out == "killed/converted/exr\n"
    assert err == "note: the run in killed is not complete (running): it has frames 0 to 1\n"


def test_convert_help_lists_all_formats(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("convert", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, kind in FORMATS.items():
        assert f"{name}: {kind.description[:40]}" in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--to", "gif"), 2, f"--to takes {', '.join(FORMATS)}, not 'gif'"),
        (("--to", ","), 2, "--to takes at least one of prores4444, "),
        (("--to", "exr", "--objects", "one"), 2, "--objects takes ids like 1,3, not 'one'"),
        (("--to", "exr", "--start", "2", "--end", "2"), 2, "--end must be above --start"),
        (("--to", "exr", "--objects", "9"), 1, "no object has the id 9: the results have 1, 2"),
        (("--to", "rgba-png", "--video", "first.mp4"), 1, "no such video: 'first.mp4'"),
    ],
)
def test_convert_errors_are_one_line(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    assert run("convert", "out", *arguments) == code
    shown, error = capsys.readouterr()
    assert shown == ""
    assert error.count("\n") == 1
    assert message in error


def test_run_saves_formats_at_its_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Alpha comes from the probabilities, which the run saves too."""
    engines = make_engine_dir(folder / "engines", frame_size_hw=SCENE_HW)
    code = run(
        "run", "clip.mp4", "--mask", "first.png", "-o", "new", "--engine-dir", str(engines),
        "--backend", "cpu", "--save", "probs,rgba-png",
    )  # fmt: skip
    out, _ = capsys.readouterr()
    assert code == 0
    assert out.endswith("converted: new/converted/rgba-png\n")
    alpha = np.asarray(Image.open("new/converted/rgba-png/00002.png"))[..., 3]
    assert len(np.unique(alpha)) > 10
    assert sorted(path.name for path in Path("new").iterdir()) == [
        "converted", "masks", "probs", "review.html", "run.json", "tracks.jsonl",
    ]  # fmt: skip


def test_convert_stopped_by_a_signal_has_its_code(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **how: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(conversion, "convert_results", stop)
    assert run("convert", "out", "--to", "exr") == 143
    assert capsys.readouterr() == ("", "error: interrupted\n")


@pytest.mark.parametrize("camera", ["0", "rtsp://user:secret@host/stream"])
def test_run_refuses_formats_of_a_camera_at_once(
    folder: Path, capsys: pytest.CaptureFixture[str], camera: str
) -> None:
    assert run("run", camera, "--mask", "first.png", "--save", "mattes") == 1
    error = capsys.readouterr().err
    assert "its frames cannot be read again" in error
    assert "secret" not in error
