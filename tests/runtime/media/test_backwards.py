"""Frames read backwards are those of the forward reader, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpn.errors import VideoError
from mpn.runtime.media import backwards, video_file
from mpn.runtime.media.backwards import blocks_backwards
from mpn.runtime.media.video import EndsEarlyError, VideoSource, open_video
from tests.runtime.media.clips import scene, write_folder, write_video

FRAMES = 30
FRAME_BYTES = 64 * 96 * 3 // 2


def coded(options: dict[str, str]) -> Callable[[Any], None]:
    def setup(stream: Any) -> None:
        stream.codec_context.options = options

    return setup


def b_frames(folder: Path) -> Path:
    return write_video(folder / "a.mp4", scene(FRAMES), setup=coded({"g": "9", "bf": "3"}))


def open_gop(folder: Path) -> Path:
    options = coded({"g": "8", "bf": "3", "x264-params": "open-gop=1:scenecut=0"})
    return write_video(folder / "a.mkv", scene(FRAMES), setup=options)


def one_key_frame(folder: Path) -> Path:
    return write_video(folder / "a.mp4", scene(FRAMES), setup=coded({"g": "999"}))


def refreshed(folder: Path) -> Path:
    options = coded({"x264-params": "intra-refresh=1:keyint=8", "bf": "0"})
    return write_video(folder / "a.mkv", scene(FRAMES), setup=options)


def variable_rate(folder: Path) -> Path:
    times = list(np.cumsum([(3 * k) % 7 + 1 for k in range(FRAMES)]))
    return write_video(
        folder / "a.mp4", scene(FRAMES), pts=[int(t) for t in times], time_base=Fraction(1, 90),
        setup=coded({"g": "7"}),
    )  # fmt: skip


def avi(folder: Path) -> Path:
    return write_video(
        folder / "a.avi", scene(FRAMES), codec="mpeg4", setup=coded({"g": "6", "bf": "2"})
    )


def raw_stream(folder: Path) -> Path:
    return write_video(folder / "a.h264", scene(FRAMES), setup=coded({"g": "6"}))


def transport_stream(folder: Path) -> Path:
    return write_video(folder / "a.ts", scene(FRAMES), setup=coded({"g": "6"}))


def deep(folder: Path) -> Path:
    return write_video(folder / "a.mkv", scene(FRAMES), codec="ffv1", pix_fmt="gbrp10le")


def padded_rgb(folder: Path) -> Path:
    return write_video(folder / "a.apng", scene(FRAMES), codec="apng", pix_fmt="rgb24")


def bottom_up(folder: Path) -> Path:
    return write_video(folder / "a.avi", scene(FRAMES), codec="rawvideo", pix_fmt="bgr24")


def images(folder: Path) -> Path:
    return write_folder(folder / "images", scene(FRAMES))


def webp(folder: Path) -> Path:
    first, *others = map(Image.fromarray, scene(FRAMES))
    path = folder / "a.webp"
    first.save(path, save_all=True, append_images=others, duration=40, lossless=True)
    return path


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backwards, "BLOCK_BYTES", 5 * FRAME_BYTES)


def check(video: VideoSource, path: Path, first: int, end: int) -> None:
    with open_video(path) as again:
        forward = list(again)
    expected = forward[first:end][::-1]
    got = list(video.backwards(first, end))
    assert [(f.index, f.name, f.pts_s) for f in got] == [
        (f.index, f.name, f.pts_s) for f in expected
    ]
    for frame, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(frame.rgb, other.rgb)
    # Control: the order is not the one of the forward reader.
    assert not np.array_equal(got[0].rgb, forward[first].rgb)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    "write",
    [b_frames, open_gop, one_key_frame, refreshed, variable_rate, avi, raw_stream,
     transport_stream, deep, padded_rgb, bottom_up, images, webp],
)  # fmt: skip
def test_frames_backwards_are_those_of_the_forward_reader(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    path = write(tmp_path)
    with open_video(path, start=4) as video:
        check(video, path, 0, FRAMES)
        check(video, path, 7, 21)
        check(video, path, 28, FRAMES)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("write", "is_seekable"), [(b_frames, True), (raw_stream, False)])
def test_file_backwards_holds_one_block(
    tmp_path: Path, write: Callable[[Path], Path], is_seekable: bool
) -> None:
    path = write(tmp_path)
    with open_video(path) as video:
        assert isinstance(video, video_file.VideoStream)
        check(video, path, 20, 25)
        check(video, path, 0, FRAMES)
        reader = video._backwards
        assert reader is not None
        assert 2 <= reader.most_held <= 5
        assert reader.is_seekable == is_seekable


def test_blocks_hold_no_more_than_asked() -> None:
    asked: list[tuple[int, int]] = []

    def read(first: int, end: int) -> range:
        asked.append((first, end))
        return range(first, end)

    assert list(blocks_backwards(read, 3, 15, 5)) == list(range(14, 2, -1))
    assert asked == [(10, 15), (5, 10), (3, 5)]


@pytest.mark.parametrize("write", [b_frames, images, webp])
def test_frame_after_the_end_is_an_error(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    with open_video(write(tmp_path)) as video:
        with pytest.raises(EndsEarlyError, match=r"has 30 frames.*there is no frame 99") as caught:
            next(video.backwards(0, 100))
        assert caught.value.count == FRAMES
        assert next(video.backwards(0, FRAMES)).index == FRAMES - 1


def test_live_source_is_not_read_backwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = str(b_frames(tmp_path))
    monkeypatch.setattr(video_file, "camera_address", lambda index: (clip, "mp4"))
    with open_video("0") as camera, pytest.raises(VideoError, match="camera 0 is live and cannot"):
        next(iter(camera.backwards(0, 3)))
