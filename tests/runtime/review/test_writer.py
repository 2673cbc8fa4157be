"""The review of a run, written by it and from its folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mpn.errors import OutputError
from mpn.masks import load_labels, save_labels
from mpn.runtime.results_review import write_review
from mpn.runtime.review.writer import ReviewWriter
from mpn.runtime.session.request import RunRequest
from mpn.runtime.session.session import run_video
from tests.runtime.media.clips import scene_labels
from tests.runtime.session.test_session import clip as clip
from tests.runtime.session.test_session import engine_dir as engine_dir
from tests.runtime.session.test_session import request_ as request_
from tests.runtime.session.test_session import run_json


@pytest.fixture
def corrected(request_: RunRequest, tmp_path: Path) -> RunRequest:
    """A run with a second mask, of frame 5."""
    save_labels(tmp_path / "fix.png", scene_labels(7))
    masks = {**request_.masks, 5: tmp_path / "fix.png"}
    return replace(request_, masks=masks, save=frozenset({"masks"}), review=True)


def test_run_writes_the_page_that_review_writes(corrected: RunRequest, tmp_path: Path) -> None:
    out = corrected.out or Path()
    run_video(corrected)
    page = (out / "review.html").read_bytes()
    assert b"Frame 5 before the correction" in page
    before = load_labels(out / "before/00005.png")
    assert (before != scene_labels(7)).any()
    assert [path.name for path in (out / "before").iterdir()] == ["00005.png"]
    assert write_review(out, tmp_path / "again.html").read_bytes() == page
    # A later run without the correction and without the page leaves neither.
    run_video(replace(corrected, masks={None: tmp_path / "first.png"}, review=False))
    assert not (out / "review.html").exists()
    assert not list((out / "before").iterdir())


def test_resumed_run_reviews_earlier_frames_too(corrected: RunRequest, tmp_path: Path) -> None:
    out = corrected.out or Path()
    run_video(corrected)
    save_labels(tmp_path / "late.png", scene_labels(11))
    masks = {**corrected.masks, 10: tmp_path / "late.png"}
    run_video(replace(corrected, masks=masks, resume=True))
    page = (out / "review.html").read_bytes()
    for index in (5, 10):
        assert f"Frame {index} before the correction".encode() in page
    assert b"given in 0, 5, 10." in page
    assert write_review(out, tmp_path / "again.html").read_bytes() == page


def test_review_of_the_user_is_not_replaced(corrected: RunRequest, tmp_path: Path) -> None:
    out = corrected.out or Path()
    out.mkdir()
    (out / "review.html").write_text("<p>notes</p>")
    report = run_video(corrected)
    assert report["state"] == "complete"
    assert "the review is left out, " in report["warnings"][0]
    assert (out / "review.html").read_text() == "<p>notes</p>"
    with pytest.raises(OutputError, match="is not a review"):
        write_review(out)


@pytest.mark.parametrize("method", ["write", "close"])
def test_review_that_fails_is_a_warning(
    corrected: RunRequest, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fail(self: ReviewWriter, *args: object) -> None:
        raise OutputError("disk full")

    monkeypatch.setattr(ReviewWriter, method, fail)
    report = run_video(corrected)
    assert report["state"] == run_json(corrected.out or Path())["state"] == "complete"
    assert [warning.startswith("the review is left out") for warning in report["warnings"]] == [
        True
    ]
