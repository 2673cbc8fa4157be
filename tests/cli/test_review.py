from __future__ import annotations

from pathlib import Path

import pytest

from mpn.cli import main as cli
from tests.cli.test_convert import folder as folder


def run(*arguments: str) -> int:
    return cli._run_app(cli.app, list(arguments))


def test_review_prints_the_path(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("review", "out") == 0
    assert capsys.readouterr() == ("out/review.html\n", "")
    assert run("review", "out", "-o", "page.html") == 0
    assert Path("page.html").read_bytes() == Path("out/review.html").read_bytes()
    assert "masks alone" not in Path("page.html").read_text()


def test_review_without_video_shows_masks_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("clip.mp4").rename("moved.mp4")
    assert run("review", "out") == 0
    assert "the pictures show the masks alone: " in Path("out/review.html").read_text()
    assert run("review", "out", "--video", "moved.mp4") == 0
    assert "masks alone" not in Path("out/review.html").read_text()
    assert run("review", "out", "--video", "none.mp4") == 1
    assert "none.mp4" in capsys.readouterr().err
