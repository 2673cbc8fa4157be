from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpn.cli import main as cli
from mpn.errors import InputError
from mpn.runtime.session import session
from mpn.runtime.session.request import RunRequest
from tests.cli.test_convert import folder as folder


def run(*arguments: str) -> int:
    return cli._run_app(cli.app, list(arguments))


def test_review_prints_the_path(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("review", "out") == 0
    assert capsys.readouterr() == ("out/review.html\n", "")
    assert run("review", "out", "-o", "page.html") == 0
    assert Path("page.html").read_bytes() == Path("out/review.html").read_bytes()
    assert "masks alone" not in Path("page.html").read_text()


def test_review_of_a_running_run_has_a_note(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control is the complete run above, without a note."""
    report = json.loads(Path("out/run.json").read_text())
    Path("out/run.json").write_text(json.dumps(report | {"state": "running"}))
    assert run("review", "out") == 0
    assert "note: the run in out is not complete (running): it has" in capsys.readouterr().err


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


@pytest.mark.parametrize(("flags", "is_wanted"), [((), True), (("--no-review",), False)])
def test_run_writes_a_review_unless_turned_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], is_wanted: bool
) -> None:
    requests: list[RunRequest] = []

    def run_video(request: RunRequest, **callbacks: object) -> None:
        requests.append(request)
        raise InputError("enough")

    monkeypatch.setattr(session, "run_video", run_video)
    assert run("run", "clip.mp4", "--mask", "first.png", *flags) == 1
    assert [request.review for request in requests] == [is_wanted]
