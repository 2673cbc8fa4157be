from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from mpn.batch.runners import local
from mpn.cli import main as cli
from mpn.runtime.run_options import _KINDS, RunOptions
from mpn.runtime.session.outputs import SaveKind
from tests.batch import clips
from tests.batch.clips import InProcessRunner, write_inputs
from tests.builders.tiny_disk import tiny_disk as tiny_disk
from tests.runtime.media.clips import scene, write_video

Run = Callable[..., int]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder / "data")
    return folder


@pytest.fixture
def run(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in a folder with clips/{a,b}.mp4, masks/{a,b}.png and engines/."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        for source, target in (("clip.mp4", f"clips/{name}.mp4"), ("first.png", f"m/{name}.png")):
            Path(target).parent.mkdir(exist_ok=True)
            shutil.copy(inputs / "data" / source, target)
    shutil.copytree(inputs / "data" / "engines", "engines")
    monkeypatch.setattr(
        local, "local_runner", lambda settings, videos, **how: InProcessRunner(settings)
    )

    def run(*arguments: str) -> int:
        common = ["--engine-dir", "engines", "--backend", "cpu", "--no-review", "--fast"]
        return cli._run_app(cli.app, ["batch", *arguments, *common])

    return run


PATTERN = ("clips/*.mp4", "--mask", "m/{name}.png", "-o", "out", "--save", "masks")


def test_batch_continues_after_a_failure_and_exits_3(run: Run, capsys: Any) -> None:
    Path("m/b.png").unlink()
    assert run(*PATTERN) == 3
    out, err = capsys.readouterr()
    assert err.count("\n") == 2
    assert "failed: b: " in err
    assert out.splitlines()[-1].startswith("2 videos: 1 done, 0 done before, 1 failed; 3 frames")
    assert "b.png" in json.loads(Path("out/b/error.json").read_text())["reason"]
    shutil.copy("m/a.png", "m/b.png")
    assert run(*PATTERN, "--dry-run") == 0
    assert "b: it has no result, 3 frames\n1 to run, 1 done before" in capsys.readouterr().out
    assert run(*PATTERN, "--json") == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["done"], counts["skipped"], counts["failed"]) == (1, 1, 0)
    assert not Path("out/b/error.json").exists()
    assert run(*PATTERN, "--fresh", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    events = [json.loads(line) for line in Path("out/batch.jsonl").read_text().splitlines()]
    states = [(event["name"], event["state"]) for event in events if event["event"] == "video"]
    assert states == [
        ("a", "done"), ("b", "failed"),
        ("a", "skipped"), ("b", "done"),
        ("a", "done"), ("b", "done"),
    ]  # fmt: skip


def test_batch_interrupt_says_that_it_can_continue(
    run: Run, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **how: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(clips, "run_unit", interrupted)
    assert run(*PATTERN) == 130
    assert "0 of 2 videos are finished: the same command runs the oth" in capsys.readouterr().err


def test_batch_shards_are_complete_and_log_apart(run: Run) -> None:
    for number in (1, 2, 3):
        assert run(*PATTERN, "--shard", f"{number}/3") == 0
    done = [json.loads(path.read_text())["name"] for path in Path("out").glob("*/done.json")]
    assert sorted(done) == ["a", "b"]
    assert {path.name for path in Path("out").glob("*.jsonl")} == {
        f"batch-{number}-of-3.jsonl" for number in (1, 2, 3)
    }


def test_batch_options_of_rows_replace_those_of_all(run: Run) -> None:
    Path("list.csv").write_text("video,mask,size\nclips/a.mp4,m/a.png,\nclips/b.mp4,m/b.png,32\n")
    assert run("list.csv", "--size", "48", "--save", "masks") == 0
    sizes = [
        json.loads(Path(f"list-mpn/{name}/run.json").read_text())["options"]["size"]
        for name in ("a", "b")
    ]
    assert sizes == [48, 32]


def test_batch_failure_of_a_row_names_file_and_line(run: Run, capsys: Any) -> None:
    Path("empty").mkdir()
    Path("list.csv").write_text("video,mask\nclips/a.mp4,7:m/a.png\nempty,m/a.png\n")
    assert run("list.csv") == 3
    out, err = capsys.readouterr()
    lines = [line.removeprefix("failed: ") for line in err.splitlines() if "failed" in line]
    first = "a: list.csv:2: a mask was given for frame 7, but the last frame is 2"
    assert any(line.startswith(first) for line in lines)
    assert any(line.startswith("empty: list.csv:3: the folder empty holds no") for line in lines)
    assert len(lines) == 2
    assert out.count("list.csv:") == 2


def test_batch_on_a_full_disk_stops_and_continues(run: Run, capsys: Any, tiny_disk: Path) -> None:
    write_video(Path("clips/b.mp4"), scene(80))
    arguments = [str(tiny_disk / "out") if word == "out" else word for word in PATTERN]
    assert run(*arguments) == 1
    out, err = capsys.readouterr()
    assert "error: the batch stopped, the disk is full (b: " in err
    assert "1 not run" in out
    assert not list(tiny_disk.rglob("done.json"))
    subprocess.run(["mount", "-o", "remount,size=4m", str(tiny_disk)], check=True)
    assert run(*arguments) == 0
    assert "2 videos: 2 done" in capsys.readouterr().out
    assert not list(tiny_disk.rglob("*partial*"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "no video was given"),
        (("clips/*.mp4",), 2, "--mask 'masks/{name}.png'"),
        ((*PATTERN, "--shard", "4/3"), 2, "--shard must be i/n"),
        ((*PATTERN, "--resume", "--fresh"), 2, "--resume contradicts --fresh"),
        ((*PATTERN, "--address", "x"), 2, "--address is for --runner ray"),
        ((*PATTERN, "--workers", "0"), 2, "--workers must be at least 1"),
        ((*PATTERN, "--size", "3"), 2, "--size must be"),
        (("absent.csv",), 1, "cannot read the manifest absent.csv: No such file"),
        ((*PATTERN, "--engine-dir", "m"), 1, "m"),
    ],
)
def test_batch_wrong_usage_is_one_line(
    run: Run, capsys: Any, arguments: tuple[str, ...], code: int, message: str
) -> None:
    if "--engine-dir" in arguments:
        shutil.rmtree("engines")
    assert run(*arguments) == code
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert message in err
    assert not Path("out").exists()


def test_run_options_know_all_kinds_of_results() -> None:
    assert get_args(SaveKind) == _KINDS
    assert RunOptions().given() == {}
