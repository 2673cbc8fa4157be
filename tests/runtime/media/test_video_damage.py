"""Damage of a video is what costs frames, not how its file ends."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mpn.errors import VideoError
from mpn.runtime.media.truncation import has_tag_beyond_end, is_truncated
from mpn.runtime.media.video import open_video
from tests.runtime.media.clips import noise_frame, write_video

FRAMES = 12
HW = (96, 128)


@pytest.fixture(scope="module", params=["mp4", "mkv", "avi"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / f"whole.{request.param}"
    codec = "mpeg4" if request.param == "avi" else "libx264"
    return write_video(path, [noise_frame(i, HW) for i in range(FRAMES)], codec=codec)


def read(path: Path) -> tuple[int, list[str]]:
    """Return the number of frames, and the warnings."""
    with open_video(path) as video:
        return sum(1 for _ in video), video.warnings


def samples(path: Path) -> list[tuple[int, int]]:
    """Return position and size of the stored frames of an MP4."""
    with av.open(str(path)) as container:
        return [(e.pos, e.size) for e in container.streams.video[0].index_entries]


@pytest.mark.parametrize("tail", [b"GPS N52.1 E4.3 speed 33 km/h\n", b"\0\0\1\0free", b"\xff" * 9])
def test_bytes_after_the_end_are_no_damage(whole: Path, tmp_path: Path, tail: bytes) -> None:
    """Dashboard cameras append their position, tools a box that is cut."""
    path = tmp_path / whole.name
    path.write_bytes(whole.read_bytes() + tail)
    assert read(path) == (FRAMES, [])
    cut = tmp_path / f"cut{whole.suffix}"  # the same file without half of its frames is damaged
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) // 2] if whole.suffix != ".mp4" else cut_mp4(whole))
    assert is_truncated(cut)


def cut_mp4(whole: Path) -> bytes:
    """Return an MP4 with its index in front and half of its frames."""
    faststart = write_video(
        whole.with_name("faststart.mp4"),
        [noise_frame(i, HW) for i in range(FRAMES)],
        container_options={"movflags": "+faststart"},
    ).read_bytes()
    return faststart[: len(faststart) // 2]


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_avi_of_a_pipe_is_whole(tmp_path: Path, size: int) -> None:
    path = write_video(
        tmp_path / "a.avi", [noise_frame(i, HW) for i in range(FRAMES)], codec="mpeg4"
    )
    data = bytearray(path.read_bytes())
    at_movi = data.index(b"movi") - 4
    data[4:8] = data[at_movi : at_movi + 4] = struct.pack("<I", size)
    path.write_bytes(bytes(data))
    assert read(path) == (FRAMES, [])


@pytest.mark.parametrize(("form", "suffix"), [(b"AVI ", "avi"), (b"WAVE", "wav")])
def test_tag_longer_than_the_file_is_not_allocated(
    tmp_path: Path, form: bytes, suffix: str
) -> None:
    """FFmpeg clears as many bytes as the tag states: 4 GiB for a file of 6 kB."""

    def tagged(size: int) -> Path:
        tags = b"INFOISFT" + size.to_bytes(4, "little") + b"x" * 14
        content = form + b"LIST" + len(tags).to_bytes(4, "little") + tags
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(b"RIFF" + len(content).to_bytes(4, "little") + content)
        return path

    assert not has_tag_beyond_end(tagged(14))
    assert has_tag_beyond_end(tagged(0xFFFFFFF0))
    with pytest.raises(VideoError, match="a tag in it is longer than the file"):
        open_video(tagged(0xFFFFFFF0))


def test_size_of_frames_left_too_large_is_whole(tmp_path: Path) -> None:
    """A camera reserves space in the file and does not correct the size."""
    path = write_video(
        tmp_path / "a.mp4",
        [noise_frame(i, HW) for i in range(FRAMES)],
        container_options={"movflags": "+faststart"},
    )
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") - 4
    data[at : at + 4] = struct.pack(">I", struct.unpack(">I", data[at : at + 4])[0] + 5000)
    path.write_bytes(bytes(data))
    assert is_truncated(path)
    assert read(path) == (FRAMES, [])


@pytest.mark.parametrize(
    ("name", "codec", "index"),
    [("a.mkv", "libx264", b"\x1c\x53\xbb\x6b"), ("a.avi", "mpeg4", b"idx1")],
)
def test_video_with_a_cut_index_is_whole(
    tmp_path: Path, name: str, codec: str, index: bytes
) -> None:
    path = write_video(tmp_path / name, [noise_frame(i, HW) for i in range(FRAMES)], codec=codec)
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(index) + 9])
    assert read(path) == (FRAMES, [])


def test_concealed_damage_is_counted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [noise_frame(i, (240, 320)) for i in range(FRAMES)])
    position, size = samples(path)[6]
    data = bytearray(path.read_bytes())
    noise = np.random.default_rng(1).integers(0, 256, 3000, dtype=np.uint8).tobytes()
    assert size > 5000
    data[position + 2000 : position + 5000] = noise
    path.write_bytes(bytes(data))
    count, warnings = read(path)
    assert count == FRAMES
    assert len(warnings) == 1
    assert "a.mp4 is damaged: the decoder concealed errors in frame " in warnings[0]


def test_frame_lost_without_an_error_ends_the_video(tmp_path: Path) -> None:
    """The numbers of later frames, the names of their masks, would be wrong."""
    path = write_video(tmp_path / "a.mp4", [noise_frame(i, HW) for i in range(FRAMES)])
    data = bytearray(path.read_bytes())
    position, _ = samples(path)[6]
    data[position + 4] = data[position + 4] & 0xE0 | 12  # filler: the decoder skips it
    path.write_bytes(bytes(data))
    indices: list[int] = []
    with open_video(path) as video, pytest.raises(VideoError, match=r"a frame is lost.*damaged"):
        indices.extend(frame.index for frame in video)
    assert 3 < len(indices) < FRAMES - 1


def clip_of_times(path: Path, times_ms: list[int]) -> Path:
    frames = [noise_frame(i) for i in range(len(times_ms))]
    return write_video(path, frames, pts=times_ms, time_base=Fraction(1, 1000))


def test_frames_missing_in_the_middle_are_a_warning(tmp_path: Path) -> None:
    times_ms = [round(i * 1000 / 30) for i in range(30)]
    whole = clip_of_times(tmp_path / "whole.mkv", times_ms)
    assert read(whole) == (30, [])
    cut = clip_of_times(tmp_path / "cut.mkv", times_ms[:11] + times_ms[20:])
    count, warnings = read(cut)
    assert count == 21
    assert len(warnings) == 1
    assert "about 9 frames are missing after frame 10" in warnings[0]


@pytest.mark.parametrize(
    "steps_ms", [[40, 80, 40, 120, 40, 40, 40, 90], [40] * 8 + [400] + [40, 60, 80, 40], [40, 500]]
)
def test_variable_frame_rate_is_no_damage(tmp_path: Path, steps_ms: list[int]) -> None:
    times_ms = [sum(steps_ms[:i]) for i in range(len(steps_ms) + 1)]
    path = clip_of_times(tmp_path / "a.mkv", times_ms)
    assert read(path) == (len(times_ms), [])
