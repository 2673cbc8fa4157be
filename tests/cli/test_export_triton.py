from __future__ import annotations

from pathlib import Path

import pytest

from mpn.cli import main as cli
from tests.builders.engine_dirs import make_engine_dir


def _run(*arguments: str) -> int:
    return cli._run_app(cli.app, ["export", *arguments])


def test_an_engine_directory_becomes_a_triton_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = make_engine_dir(tmp_path / "engines", with_osvos=True)
    out = tmp_path / "repository"
    assert _run(str(directory), "--triton", str(out)) == 0
    names = sorted(path.name for path in out.iterdir())
    assert len(names) == 2
    assert all(name in capsys.readouterr().out.replace("\n", " ") for name in names[:1])
    assert _run(str(directory), "--triton", str(out)) == 1
    assert "is not empty" in capsys.readouterr().err
