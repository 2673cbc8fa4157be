from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mpn.cli.main import app
from mpn.networks.checkpoint import load_checkpoint
from mpn.training.launch import keep_freed_memory
from tests.training.conftest import davis_like as davis_like
from tests.training.conftest import stills_like as stills_like

TINY = "--width 0.0625 --head-width 0.0625 --middle-blocks 1 --roi-size 65 --batch 2 --threads 1"


@pytest.fixture(autouse=True)
def _memory_is_kept_already(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"):
        monkeypatch.setenv(name, "1")


def _train(arguments: list[str]) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(app, ["train", "propagation", *TINY.split(), *arguments])
    return result.exit_code, result.output, result.exception


def test_a_run_writes_a_checkpoint_that_loads_and_says_what_comes_next(
    davis_like: Path, stills_like: Path, tmp_path: Path
) -> None:
    data = ["--davis-root", str(davis_like), "--stills", str(stills_like)]
    out = tmp_path / "run"
    code, output, _ = _train([*data, "-o", str(out), "--steps", "2", "--decay-steps", "1"])
    assert code == 0, output
    assert f"mpn export {out / 'propagation.pth'}" in output.replace("\n", "")
    checkpoint = load_checkpoint(out / "propagation.pth", expected_role="propagation")
    assert checkpoint.roles["propagation"].config["prior_skip"] is True
    assert checkpoint.provenance["data"]["davis_sequences"] == ["alpha", "beta", "gamma"]

    code, output, error = _train([*data, "-o", str(out), "--steps", "4"])
    assert code == 1
    assert "add --resume" in str(error)
    code, output, _ = _train([*data, "-o", str(out), "--steps", "4", "--resume"])
    assert code == 0, output
    code, output, _ = _train(
        [
            *data,
            "-o",
            str(tmp_path / "b"),
            "--steps",
            "1",
            "--start-from",
            str(out / "propagation.pth"),
        ]
    )
    assert code == 0, output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--davis-root", "nowhere"], "nowhere is not a DAVIS folder"),
        (["--davis-root", "nowhere", "--roi-size", "100"], r"16 n \+ 1"),
    ],
)
def test_bad_data_and_sizes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = _train(arguments)
    assert code == 1
    with pytest.raises(type(error), match=message):  # type: ignore[type-var,arg-type]
        raise error  # type: ignore[misc]
    assert not (tmp_path / "runs").exists()


def test_the_process_is_started_again_once_with_memory_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda path, arguments: started.append(arguments))
    monkeypatch.setattr(sys, "platform", "linux")
    keep_freed_memory()
    assert not started
    monkeypatch.delenv("MALLOC_TOP_PAD_")
    keep_freed_memory()
    assert started == [[sys.executable, *sys.orig_argv[1:]]]


def test_help_answers_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from mpn.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "propagation", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "--davis-root" in done.stdout
