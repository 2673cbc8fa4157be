"""Animated WebP as a video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpn.errors import InputError, VideoError
from mpn.runtime.media.video import open_video
from tests.runtime.media.clips import index_from_frame, level_frame, noise_frame, write_folder


def write_webp(path: Path, frames: list[np.ndarray], durations: list[int]) -> Path:
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=durations, lossless=True
    )
    return path


def test_frames_and_times_of_an_animated_webp(tmp_path: Path) -> None:
    path = write_webp(
        tmp_path / "a.webp", [level_frame(i) for i in range(6)], [40, 40, 80, 40, 40, 60]
    )
    with open_video(path) as video:
        frames = list(video)
    assert [index_from_frame(frame.rgb) for frame in frames] == list(range(6))
    assert [frame.pts_s * 1000 for frame in frames] == [0, 40, 80, 160, 200, 240]
    assert video.fps == Fraction(20)
    assert (video.size_hw, video.end_index, video.name) == ((48, 64), 6, "a")
    with open_video(path, start=2, end=4) as part:
        assert [(f.index, index_from_frame(f.rgb)) for f in part] == [(2, 2), (3, 3)]
    with pytest.raises(VideoError, match="has 6 frames"):
        open_video(path, start=6)
    with pytest.raises(InputError, match="states its own"):
        open_video(path, fps=Fraction(24))


def test_one_webp_image_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    Image.fromarray(level_frame(0)).save(path)
    with pytest.raises(VideoError, match="is one image: give the folder"):
        open_video(path)


def test_bytes_after_an_animated_webp_are_ignored(tmp_path: Path) -> None:
    path = write_webp(tmp_path / "a.webp", [level_frame(i) for i in range(3)], [40] * 3)
    data = path.read_bytes()
    with path.open("ab") as file:
        file.write(data[data.rindex(b"ANMF") :])
    with open_video(path) as video:
        assert len(list(video)) == 3


def test_webp_frame_that_is_not_decoded_raises_video_error(tmp_path: Path) -> None:
    """The file has a chunk of a frame that the decoder does not count."""
    path = write_webp(tmp_path / "a.webp", [level_frame(i) for i in range(3)], [40] * 3)
    data = path.read_bytes()
    extra = b"ANMF" + (16).to_bytes(4, "little") + bytes(16)
    size = len(data) + len(extra) - 8
    path.write_bytes(b"RIFF" + size.to_bytes(4, "little") + data[8:] + extra)
    with pytest.raises(VideoError, match=r"a\.webp"), open_video(path) as video:
        list(video)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_cut_webp_raises_a_video_error(tmp_path: Path, share: float) -> None:
    path = write_webp(tmp_path / "a.webp", [noise_frame(i) for i in range(6)], [40] * 6)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    read: list[int] = []
    with pytest.raises(VideoError, match=r"a\.webp"), open_video(path) as video:
        read.extend(frame.index for frame in video)
    assert len(read) < 6


def test_frame_in_an_unread_format_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "frames", [level_frame(0)] * 2)
    (folder / "00001.png").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    with pytest.raises(VideoError, match=r"00001\.png cannot be read.*it is an HEIC photograph"):
        open_video(folder)
    (tmp_path / "a.mp4").write_bytes(b"%PDF-1.7 " + bytes(5000))
    with pytest.raises(VideoError, match=r"a\.mp4 is not a video .*it is a PDF document"):
        open_video(tmp_path / "a.mp4")
