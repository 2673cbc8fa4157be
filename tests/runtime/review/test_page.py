"""The page of the review: hostile texts, size, states."""

from __future__ import annotations

import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from mpn.cli import main as cli
from mpn.cli.run import masks_by_frame
from mpn.runtime.review.builder import FrameInfo, ReviewBuilder, RunFacts
from mpn.runtime.review.page import html_of_review
from mpn.runtime.review.pictures import frame_picture
from mpn.types import Track, UInt8Array

SIZE_HW = (24, 32)
HOSTILE = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>&amp;\u202e\udcff\x1b[2J"
LABELS = np.zeros(SIZE_HW, np.uint8)
LABELS[4:12, 6:20] = 3


class Page(HTMLParser):
    """Collect the elements, attributes and texts of a page."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(content.decode("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def track(reliability: float, state: Any = "tracked", events: Any = ()) -> Track:
    area_px = 0 if state == "lost" else 112
    return Track(3, state, "propagation", area_px, None, 0.9, events, reliability)


def build(
    frames: int, facts: RunFacts, rgb: UInt8Array | None = None, name: str = "00000"
) -> bytes:
    """Make a page of a run that is lost in frames 4 and 5 and corrected in frame 9."""
    builder = ReviewBuilder()
    picture = np.full((*SIZE_HW, 3), 90, np.uint8) if rgb is None else rgb
    for index in range(frames):
        one = track(0.8 if index % 50 else 0.2)
        if index in (4, 5):
            one = track(0.5, "lost")
        if index == 6:
            one = track(0.6, events=("redetected",))
        if index in (0, 9):
            one = track(1.0, "given")
        before = np.roll(LABELS, 3, axis=1) if index == 9 else None
        builder.add(FrameInfo(index, name, index / 25, (one,)), LABELS, picture, before)
    return html_of_review(builder.finish(), facts)


def test_page_escapes_hostile_names_and_forbids_scripts() -> None:
    facts = RunFacts(
        title=HOSTILE,
        video=HOSTILE,
        out=Path(HOSTILE),
        size_hw=SIZE_HW,
        masks={0: HOSTILE, 9: HOSTILE + "2"},
        object_names={3: HOSTILE},
        state=HOSTILE,
        notes=(HOSTILE,),
    )
    page = Page(build(60, facts, name=HOSTILE))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form"}
    names = {name for _, attributes in page.elements for name in attributes}
    assert not [name for name in names if name.startswith("on")]
    sources = [one["src"] or "" for one in page.all("img")]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert all((one["href"] or "").startswith(("#", "data:image/")) for one in page.all("a"))
    assert page.text.count("<script>alert(1)</script>") >= 5, "the text is shown as it is"
    assert not set(page.text) & {"\u202e", "\udcff", "\x1b"}
    policies = [one["content"] for one in page.all("meta") if "http-equiv" in one]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_page_shows_states_corrections_and_command() -> None:
    facts = RunFacts("clip", "my clip.mp4", Path("out"), SIZE_HW, {0: "m.png", 9: "b.png"})
    page = Page(build(60, facts))
    assert "lost in 4 to 5; re-detected in 6; given in 0, 9." in page.text
    assert "IoU of both masks: 0.65" in page.text
    masks = "--mask 0:m.png --mask 9:b.png --mask 50:fix.png"
    assert f"mpn-run 'my clip.mp4' {masks} -o out --resume" in page.text
    saved = [one["download"] for one in page.all("a") if "download" in one]
    assert saved[:2] == ["00000-mask.png", "00000-frame.jpg"]
    assert all(one.get("alt") for one in page.all("img"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({12: "m.png"}, {12: "m.png", 50: "fix.png"}),
        ({12: "m.png", 50: "old.png"}, {12: "m.png", 50: "fix.png"}),
        ({12: "m.png", 20: "m.png"}, {12: "m.png", 20: "m.png", 50: "fix.png"}),
        ({0: "c.json", 20: "c.json"}, {None: "c.json", 50: "fix.png"}),
        ({0: "c.json", 50: "c.json"}, {0: "c.json", 50: "fix.png"}),
    ],
)
def test_command_gives_each_mask_its_frame(
    given: dict[int, str], expected: dict[int | None, str]
) -> None:
    facts = RunFacts("clip", "my clip.mp4", Path("out"), SIZE_HW, given)
    texts = Page(build(60, facts)).texts
    command = next(t for t in texts if t.startswith("mpn-run") and "50:fix.png" in t)
    name, *words = shlex.split(command)
    parsed = cli._single_command(cli.run, "mpn-run")
    context = typer.main.get_command(parsed).make_context(name, words)
    assert masks_by_frame(context.params["mask"]) == {k: Path(v) for k, v in expected.items()}
    assert (context.params["video"], context.params["resume"]) == ("my clip.mp4", True)


def test_page_size_is_bounded_for_long_videos() -> None:
    """The number of pictures and of points does not grow with the video."""
    facts = RunFacts("clip", "clip.mp4", Path("out"), SIZE_HW)
    rgb = np.random.default_rng(0).integers(0, 255, (*SIZE_HW, 3)).astype(np.uint8)
    builder = ReviewBuilder()
    for index in range(4000):
        one = track(0.1 + 0.4 * ((index * 7919) % 1000) / 1000, events=("redetected",))
        before = np.roll(LABELS, 1) if index % 100 == 0 else None
        builder.add(FrameInfo(index, "00000", index / 25, (one,)), LABELS, rgb, before)
    content = html_of_review(builder.finish(), facts)
    page = Page(content)
    assert 40 < len(page.all("img")) <= 24 + 12 + 2 * 12
    assert len(page.all("path")) <= 500
    assert len(content) < 200_000


def test_large_frame_is_reduced_for_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpn.runtime.review.pictures._LARGEST_JPEG_BYTES", 5_000)
    monkeypatch.setattr("mpn.runtime.review.pictures._REDUCED_PX", 64)
    rgb = np.random.default_rng(0).integers(0, 255, (120, 160, 3)).astype(np.uint8)
    labels = np.kron(LABELS, np.ones((5, 5), np.uint8))
    picture = frame_picture(rgb, labels, (3,))
    assert (picture.size_hw, len(picture.jpeg) < 5_000) == ((48, 64), True)
    assert picture.outlines == {3: "M30 20L30 59L99 59L99 20Z"}, "in pixels of the whole frame"
    assert frame_picture(rgb // 64, labels, (3,)).size_hw == (120, 160)
