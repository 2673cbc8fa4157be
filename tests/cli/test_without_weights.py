"""Each command without installed weights states in one line how to get them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpn import Pipeline
from mpn.cli.main import _run_app, app
from mpn.engines.directory import locate
from mpn.errors import ManifestError

COMMANDS = (
    "run clip.mp4 --mask m.png",
    "demo",
    "studio clip.mp4 --no-browser",
    "batch list.csv",
    "serve",
    "inspect",
    "bench",
)


@pytest.fixture
def _without_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(locate, "_weights_packages", list)
    monkeypatch.chdir(tmp_path)
    Path("clip.mp4").touch()
    Path("m.png").touch()
    Path("list.csv").write_text("video,mask\nclip.mp4,m.png\n")


@pytest.mark.usefixtures("_without_weights")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[0])
def test_command_without_weights_is_one_line(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    before = set(Path().iterdir())
    assert _run_app(app, command.split()) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: no engines are installed: pip install mpn-weights-lite")
    assert err.count("\n") == 1
    assert set(Path().iterdir()) == before


@pytest.mark.usefixtures("_without_weights")
def test_pipeline_without_weights_is_a_manifest_error() -> None:
    with pytest.raises(ManifestError, match="pip install mpn-weights-lite"):
        Pipeline.from_engines()
