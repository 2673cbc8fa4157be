from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpn.cli import main as cli
from mpn.cli.streams import guarded_streams

if sys.platform == "win32":
    pytest.skip("pipes and limits of POSIX", allow_module_level=True)


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["mpn", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code


def closed_pipe() -> io.TextIOWrapper:
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


@pytest.mark.parametrize("arguments", [("--version",), ("run", "--help")])
def test_full_stdout_is_one_line_and_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        error = io.TextIOWrapper(io.BytesIO())
        patch.setattr(sys, "stdout", full)
        patch.setattr(sys, "stderr", error)
        assert run_main(patch, *arguments) == 1
        error.flush()
        text = error.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert text.count("\n") == 1
    assert text.startswith("error: the text of the result cannot be written to stdout (No space")


def test_closed_pipe_is_quiet_and_code_141(monkeypatch: pytest.MonkeyPatch) -> None:
    error = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", closed_pipe())
    monkeypatch.setattr(sys, "stderr", error)
    assert run_main(monkeypatch, "--version") == cli.CLOSED_PIPE == 141
    assert error.buffer.getvalue() == b""  # type: ignore[attr-defined]


def test_full_stderr_keeps_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
        monkeypatch.setattr(sys, "stderr", full)
        assert run_main(monkeypatch, "inspect", "/no/such") == 1
        assert run_main(monkeypatch, "no-such-command") == 2


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_ascii_stdout_gets_escapes_that_json_reads(
    monkeypatch: pytest.MonkeyPatch, errors: str
) -> None:
    """As with LC_ALL=C without the UTF-8 mode of Python, which has surrogateescape."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", errors))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), "ascii", errors))
    with guarded_streams():
        sys.stdout.write('"fö😀\udcff"')
    assert json.loads(written.getvalue()) == "fö😀\udcff"


def test_deleted_current_folder_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for command in (["inspect"], ["eval", "--davis-root", "a", "--results", "b"]):
        assert cli._run_app(cli.app, command) == 1
        assert "error: the current folder was deleted" in (error := capsys.readouterr().err)
        assert error.count("\n") == 1


def test_module_under_a_memory_limit_and_closed_stdout(tmp_path: Path) -> None:
    """A number of stdout that stays free becomes that of the next file."""
    limited = 'ulimit -v 200000; exec "$0" -m mpn inspect >&-'
    done = subprocess.run(
        ["sh", "-c", limited, sys.executable], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: not enough memory: this command needs at least 580 MB")
    assert done.stderr.count("\n") == 1
    closed = subprocess.run(
        ["sh", "-c", 'exec "$0" -m mpn --version >&-', sys.executable],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (closed.returncode, os.strerror(errno.EBADF) in closed.stderr) == (1, True)
