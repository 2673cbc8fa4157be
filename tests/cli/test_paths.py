"""Names with colons and tildes on the command line."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import typer

from mpn.cli import main as cli
from mpn.cli.run import masks_by_frame
from mpn.masks import save_labels
from mpn.synthetic import write_clip
from tests.builders.engine_dirs import make_engine_dir
from tests.runtime.media.clips import SCENE_HW, scene, scene_labels, write_video


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    make_engine_dir(tmp_path / "engines", frame_size_hw=SCENE_HW)
    write_video(tmp_path / "clip.mp4", scene(2))
    save_labels(tmp_path / "first.png", scene_labels(0))
    return tmp_path


def run(video: str, mask: str, *arguments: str) -> int:
    given = [video, "--mask", mask, "--engine-dir", "engines", "--backend", "cpu", *arguments]
    return cli._run_app(cli._single_command(cli.run, "mpn-run"), given)


def test_names_with_colons_are_files(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """FFmpeg takes the part before a colon for a protocol, --mask for a frame."""
    shutil.copy("clip.mp4", "12:30:05.mp4")
    shutil.copy("first.png", "7:30.png")
    assert run("12:30:05.mp4", "7:30.png", "--out", "cam1:out") == 0, capsys.readouterr().err
    assert len(list(Path("cam1:out/masks").iterdir())) == 2
    assert Path("cam1:out/overlay.mp4").stat().st_size > 0


def test_frame_and_file_still_split_at_the_colon(inputs: Path) -> None:
    Path("7:30.png").touch()
    given = masks_by_frame(["first.png", "7:first.png", "8:7:30.png"])
    assert given == {None: Path("first.png"), 7: Path("first.png"), 8: Path("7:30.png")}
    assert masks_by_frame(["7:30.png"]) == {None: Path("7:30.png")}


@pytest.mark.parametrize("frame", ["-1", "1e1", "1.5"])
def test_mask_of_a_frame_that_is_no_index_is_refused(inputs: Path, frame: str) -> None:
    with pytest.raises(typer.BadParameter, match="whole number from 0") as error:
        masks_by_frame([f"{frame}:first.png"])
    assert f"not '{frame}'" in str(error.value)
    Path(f"{frame}:7.png").touch()
    assert masks_by_frame([f"{frame}:7.png"]) == {None: Path(f"{frame}:7.png")}


def test_rendered_clip_in_a_folder_with_a_colon(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a:b", size_hw=(64, 96), frames=3)
    assert clip.video.stat().st_size > 0


def test_tilde_in_values_is_the_home_folder(
    inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell replaces it at the start of a word only."""
    shutil.copy("first.png", "home/first.png")
    assert run("clip.mp4", "0:~/first.png", "--out=~/res") == 0, capsys.readouterr().err
    assert json.loads(Path("home/res/run.json").read_text())["state"] == "complete"
    assert not Path("~").exists()


def test_every_command_expands_its_paths() -> None:
    command = typer.main.get_command(cli.app)
    pending, checked = list(command.commands.values()), 0  # type: ignore[attr-defined]
    while pending:
        each = pending.pop()
        pending += getattr(each, "commands", {}).values()
        if each.callback and "Path" in str(get_type_hints(inspect.unwrap(each.callback))):
            assert each.callback.__wrapped__.__wrapped__, each.name
            checked += 1
    assert checked >= 8


def test_recipe_file_with_tilde_and_mark_is_read(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows tools write UTF-8 with a byte order mark, or UTF-16."""
    from mpn.training.data import DataOptions
    from mpn.training.recipe_file import load_table, recipe_from_table

    Path("r.toml").write_text('role = "flow"\r\ndavis_root = "~/DAVIS"\r\n', encoding="utf-16")
    options = recipe_from_table(DataOptions, load_table("flow", path=Path("r.toml")))
    assert options.davis_root == inputs / "home/DAVIS"


def test_hub_cache_of_links_runs(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cache of a model hub has links to files in another folder."""
    Path("blobs").mkdir()
    for number, path in enumerate(sorted(Path("engines").iterdir())):
        path.rename(f"blobs/{number}")
        path.symlink_to(f"../blobs/{number}")
    assert run("clip.mp4", "first.png") == 0, capsys.readouterr().err
    blob = next(p for p in Path("engines").iterdir() if p.suffix == ".onnx").resolve()
    blob.write_bytes(bytes(np.frombuffer(blob.read_bytes(), np.uint8)[::-1]))
    assert run("clip.mp4", "first.png", "--out", "second") == 1
    assert "has changed since export" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["review", "export", "inspect"])
def test_too_long_name_is_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._run_app(cli.app, [command, "x" * 300]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert "File name too long" in shown
    assert shown.count("\n") == 1
