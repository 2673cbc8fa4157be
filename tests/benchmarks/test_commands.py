"""Import every benchmark and print its help."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "benchmarks"
COMMANDS = sorted(
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    for path in FOLDER.rglob("*.py")
    if "argparse.ArgumentParser(" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("module", COMMANDS)
def test_command_help_exits_0(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr("sys.argv", [module, "--help"])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(module).main()
    assert stopped.value.code == 0
    assert "usage: " in capsys.readouterr().out


def test_every_command_is_documented() -> None:
    page = (REPOSITORY / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for module in COMMANDS:
        path = f"{Path(*module.split('.'))}.py"
        name = module.removesuffix(".__main__")
        assert f"python -m {name}" in page or f"python {path}" in page, name
