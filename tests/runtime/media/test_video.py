from __future__ import annotations

import functools
import gc
import http.server
import socket
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from mpn._common.concurrency import Prefetch
from mpn.errors import InputError, VideoError
from mpn.runtime.media import decoder, video_file
from mpn.runtime.media.decoder import MOST_PIXELS, limit_pixels
from mpn.runtime.media.overlay import OverlayWriter
from mpn.runtime.media.video import open_video, redacted
from mpn.types import StepResult
from tests.builders.phone_clip import times_of, write_phone_clip
from tests.conftest import shared_path
from tests.runtime.media.clips import (
    NTSC,
    index_from_frame,
    level_frame,
    noise_frame,
    with_display_matrix,
    write_folder,
    write_streams,
    write_video,
)
from tests.tolerances import CODEC_MEAN_LEVEL

ONE = 65536


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    return write_video(folder / "clip.mp4", [level_frame(i) for i in range(12)])


@pytest.fixture(scope="module")
def corner_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 64x48 pixels (width x height): top-left quarter red, the rest gray."""
    rgb = np.full((48, 64, 3), 128, np.uint8)
    rgb[:24, :32] = (220, 30, 30)
    return write_video(tmp_path_factory.mktemp("corner") / "corner.mp4", [rgb, rgb])


def indices_and_levels(source: Path | str, **options: int) -> list[tuple[int, int]]:
    with open_video(source, **options) as video:
        return [(frame.index, index_from_frame(frame.rgb)) for frame in video]


# --- files -------------------------------------------------------------------------------------


COVER = ("mjpeg", (300, 300), 1, Disposition.attached_pic)
PICTURE = ("mjpeg", (300, 300), 1, 0)
PREVIEW = ("libx264", (24, 32), 5, Disposition.default)
FILM = ("libx264", (48, 64), 5, 0)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(
    "streams", [(COVER, FILM), (FILM, COVER), (PICTURE, FILM), (PREVIEW, FILM), (FILM, FILM)]
)
def test_file_with_several_streams_gives_the_film(
    tmp_path: Path, suffix: str, streams: Any
) -> None:
    path = write_streams(tmp_path / f"two.{suffix}", *streams)
    with open_video(path) as video:
        assert video.size_hw == (48, 64)
        assert [index_from_frame(frame.rgb) for frame in video] == list(range(5))
        assert isinstance(video, video_file.VideoStream)
        assert not video.is_only_stream


def test_file_with_a_cover_before_the_film_gives_the_film() -> None:
    """Taggers write the cover before the track; the muxer of FFmpeg does not."""
    film = SimpleNamespace(
        disposition=Disposition.default, frames=12,
        codec_context=SimpleNamespace(name="h264", width=64, height=48),
    )  # fmt: skip
    cover = SimpleNamespace(
        disposition=Disposition.attached_pic, frames=0,
        codec_context=SimpleNamespace(name="mjpeg", width=64, height=48),
    )  # fmt: skip
    streams = SimpleNamespace(video=[cover, film])
    assert decoder._video_stream(SimpleNamespace(streams=streams), "a.mp4") is film
    streams.video = [cover]
    with pytest.raises(VideoError, match="only pictures such as a cover"):
        decoder._video_stream(SimpleNamespace(streams=streams), "a.mp4")


@pytest.mark.parametrize("is_rotated", [False, True])
def test_sample_aspect_ratio_is_that_of_the_upright_frame(tmp_path: Path, is_rotated: bool) -> None:
    def anamorphic(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)

    path = write_video(tmp_path / "a.mp4", [level_frame(i) for i in range(2)], setup=anamorphic)
    if is_rotated:
        matrix = (0, ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30)
        path = with_display_matrix(path, tmp_path / "rotated.mp4", matrix)
    with open_video(path) as video:
        expected = Fraction(11, 16) if is_rotated else Fraction(16, 11)
        assert video.sample_aspect_ratio == expected


def test_file_delivers_every_frame_with_exact_rate_and_time(clip: Path) -> None:
    with open_video(clip) as video:
        assert video.size_hw == (48, 64)
        assert video.fps == NTSC
        assert isinstance(video.fps, Fraction)
        assert video.name == "clip"
        assert not video.is_live
        assert video.sample_aspect_ratio is None
        assert video.frame_count_hint == 12
        frames = list(video)
    assert [frame.pts_s for frame in frames] == [i / NTSC for i in range(12)]
    assert [index_from_frame(frame.rgb) for frame in frames] == list(range(12))
    assert [frame.name for frame in frames[:2]] == ["00000", "00001"]


@pytest.fixture
def restored_limit() -> Iterator[None]:
    """Restore the limit of all videos of this process."""
    yield
    limit_pixels(MOST_PIXELS)


@pytest.mark.usefixtures("restored_limit")
@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_video_of_more_pixels_than_the_limit_is_refused(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"a.{suffix}", [level_frame(i, (64, 96)) for i in range(9)])
    for limit in (64 * 96, 64 * 96 - 1):
        limit_pixels(limit)
        if limit == 64 * 96:  # control
            with open_video(path) as video:
                assert len(list(video)) == 9
        else:
            with pytest.raises(VideoError, match=r"96x64 .* more than the 6143 pixels"):
                open_video(path)


@pytest.mark.usefixtures("restored_limit")
def test_picture_that_grows_beyond_the_limit_ends_the_video(tmp_path: Path) -> None:
    """The size in the header of the container is not that of the later pictures."""
    small = write_video(tmp_path / "a.h264", [level_frame(i) for i in range(3)])
    large = write_video(tmp_path / "b.h264", [level_frame(i, (128, 160)) for i in range(3)])
    small.write_bytes(small.read_bytes() + large.read_bytes())
    counts = []
    for limit in (1 << 20, 64 * 64):
        limit_pixels(limit)
        with open_video(small) as video, pytest.raises(VideoError) as caught:
            list(video)
        counts.append(str(caught.value))
    assert "is 160x128 but the first is 64x48" in counts[0]  # control: it was decoded
    assert "cannot be decoded beyond frame" in counts[1]


@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv"])
@pytest.mark.parametrize("where", ["file", "stream"])
def test_title_that_is_no_utf8_does_not_matter(tmp_path: Path, suffix: str, where: str) -> None:
    def with_title(stream: Any) -> None:
        holder = stream.container if where == "file" else stream
        holder.metadata["title"] = "caf-"

    path = tmp_path / f"a.{suffix}"
    write_video(path, [level_frame(i) for i in range(3)], codec="mpeg4", setup=with_title)
    path.write_bytes(path.read_bytes().replace(b"caf-", b"caf\xe9"))
    if where == "file" or suffix == "mkv":  # control: the others keep no title of a stream
        with pytest.raises(UnicodeDecodeError):
            av.open(str(path))
    with open_video(path) as video:
        assert len(list(video)) == 3


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(None, None, range(12)), (3, None, range(3, 12)), (None, 4, range(4)), (5, 6, [5]),
     (10, 99, [10, 11])],
)  # fmt: skip
def test_start_and_end_are_frame_indices(
    clip: Path, start: int | None, end: int | None, expected: list[int]
) -> None:
    assert indices_and_levels(clip, start=start, end=end) == [(i, i) for i in expected]


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (-1, None, "frame index of at least 0, got -1"),
        (5, 5, "above the start"),
        (5, 2, r"got 5\.\.2"),
    ],
)
def test_senseless_range_is_refused(clip: Path, start: int, end: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_video(clip, start=start, end=end)


def test_start_after_last_frame_reports_frame_count(clip: Path) -> None:
    with pytest.raises(
        VideoError, match="has 12 frames, numbered from 0: cannot start at frame 12"
    ):
        open_video(clip, start=12)


def test_variable_frame_rate_keeps_the_time_of_every_frame(tmp_path: Path) -> None:
    pts, base = [0, 10, 15, 90, 91], Fraction(1, 600)
    path = write_video(
        tmp_path / "vfr.mp4", [level_frame(i) for i in range(5)], pts=pts, time_base=base
    )
    with open_video(path) as video:
        frames = list(video)
        assert [frame.pts_s for frame in frames] == [p * base for p in pts]
        assert all((frame.pts_s / video.time_base).denominator == 1 for frame in frames)


def test_a_source_is_read_once(clip: Path) -> None:
    with open_video(clip) as video:
        list(video)
        with pytest.raises(VideoError, match="already read"):
            list(video)
        with pytest.raises(VideoError, match="already read"):
            _ = video.first_frame


def test_first_frame_can_be_read_without_consuming_it(clip: Path) -> None:
    with open_video(clip, start=2) as video:
        assert video.first_frame.index == 2
        assert [frame.index for frame in video] == list(range(2, 12))


def test_prefetch_over_a_video_can_stop_anywhere(clip: Path) -> None:
    with open_video(clip) as video, Prefetch(video, depth=2) as frames:
        assert next(frames).index == 0
    video.close()  # twice is allowed


def test_decoded_frames_are_freed_without_the_garbage_collector(clip: Path) -> None:
    def frames() -> list[av.VideoFrame]:
        return [o for o in gc.get_objects() if isinstance(o, av.VideoFrame)]

    gc.collect()
    gc.disable()
    try:
        earlier = frames()  # of other tests
        with open_video(clip) as video:
            for _ in video:
                pass
        left = [frame for frame in frames() if not any(frame is other for other in earlier)]
    finally:
        gc.enable()
    # The first one, by its side data (the orientation), and those that PyAV still holds. Reading
    # the side data of each frame would keep all twelve.
    assert len(left) <= 4


# The display matrix maps stored (x, y) to shown: x' = a x + c y, y' = b x + d y.
@pytest.mark.parametrize(
    ("matrix", "size_hw", "red_corner"),
    [
        pytest.param((ONE, 0, 0, 0, ONE, 0), (48, 64), "top left", id="upright"),
        pytest.param((0, ONE, 0, -ONE, 0, 0), (64, 48), "top right", id="quarter-turn-clockwise"),
        pytest.param((-ONE, 0, 0, 0, -ONE, 0), (48, 64), "bottom right", id="half-turn"),
        pytest.param((0, -ONE, 0, ONE, 0, 0), (64, 48), "bottom left", id="quarter-turn-counter"),
        pytest.param((-ONE, 0, 0, 0, ONE, 0), (48, 64), "top right", id="mirrored"),
        pytest.param((0, ONE, 0, ONE, 0, 0), (64, 48), "top left", id="transposed"),
    ],
)
def test_rotation_is_honoured(
    corner_clip: Path, tmp_path: Path, matrix: tuple[int, ...], size_hw: tuple[int, int],
    red_corner: str,
) -> None:  # fmt: skip
    path = with_display_matrix(corner_clip, tmp_path / "rotated.mp4", (*matrix, 0, 0, 1 << 30))
    with open_video(path) as video:
        assert video.size_hw == size_hw
        rgb = video.first_frame.rgb
    assert rgb.flags.c_contiguous
    red = (rgb[..., 0].astype(int) - rgb[..., 1]) > 80
    rows, columns = np.nonzero(red)
    vertical = "top" if rows.mean() < size_hw[0] / 2 else "bottom"
    horizontal = "left" if columns.mean() < size_hw[1] / 2 else "right"
    assert f"{vertical} {horizontal}" == red_corner


def test_rotation_by_an_odd_angle_is_an_error(corner_clip: Path, tmp_path: Path) -> None:
    half = 46341  # cos 45 degrees in 16.16
    path = with_display_matrix(
        corner_clip, tmp_path / "r45.mp4", (half, half, 0, -half, half, 0, 0, 0, 1 << 30)
    )
    with pytest.raises(VideoError, match="no quarter turn"):
        open_video(path)


@pytest.mark.parametrize("is_hdr", [False, True], ids=["h264", "hevc-hlg"])
def test_clip_of_a_phone_is_upright_with_its_times(tmp_path: Path, is_hdr: bool) -> None:
    """Stored rotated, of variable frame rate, with sound."""
    sent = [np.full((128, 72, 3), 60, np.uint8) for _ in range(8)]
    for k, rgb in enumerate(sent):
        rgb[8 + 2 * k : 40 + 2 * k, 4:24] = 190
    path = tmp_path / "phone.mp4"
    write_phone_clip(path, sent, codec="libx265" if is_hdr else "libx264", is_hdr=is_hdr)
    with av.open(str(path)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        assert (container.streams.video[0].height, container.streams.video[0].width) == (72, 128)
    with open_video(path) as video:
        assert video.size_hw == (128, 72)
        frames = list(video)
    assert [frame.pts_s for frame in frames] == times_of(8)
    assert times_of(8)[6] - times_of(8)[5] == Fraction(2, 30)
    for rgb, frame in zip(sent, frames, strict=True):
        assert np.corrcoef(rgb.ravel(), frame.rgb.ravel())[0, 1] > 0.98
        assert np.corrcoef(rgb.ravel(), frame.rgb[::-1].ravel())[0, 1] < 0.5, "positive control"


@pytest.mark.parametrize("size_hw", [(47, 63), (33, 2), (1, 1)])
def test_odd_sizes_are_kept(tmp_path: Path, size_hw: tuple[int, int]) -> None:
    path = write_video(
        tmp_path / "odd.mkv", [level_frame(i, size_hw) for i in range(3)],
        codec="ffv1", pix_fmt="bgr0",
    )  # fmt: skip
    with open_video(path) as video:
        assert [frame.rgb.shape for frame in video] == [(*size_hw, 3)] * 3


def test_colours_survive_with_the_matrix_the_stream_names(tmp_path: Path) -> None:
    def bt709(stream: object) -> None:
        context = stream.codec_context  # type: ignore[attr-defined]
        context.colorspace = context.color_primaries = context.color_trc = 1

    rgb = np.full((48, 64, 3), (200, 40, 90), np.uint8)
    tagged = write_video(tmp_path / "709.mp4", [rgb], setup=bt709)
    plain = write_video(tmp_path / "plain.mp4", [rgb])
    with open_video(tagged) as a, open_video(plain) as b:
        mean_tagged = a.first_frame.rgb.reshape(-1, 3).mean(0)
        mean_plain = b.first_frame.rgb.reshape(-1, 3).mean(0)
    # write_video always encodes with BT.601: decoding it as BT.709 gives wrong colours.
    assert np.abs(mean_plain - (200, 40, 90)).max() <= CODEC_MEAN_LEVEL
    assert np.abs(mean_tagged - (200, 40, 90)).max() > CODEC_MEAN_LEVEL


# --- damaged files -----------------------------------------------------------------------------


def read_until_error(path: Path) -> tuple[list[int], str]:
    indices = []
    with open_video(path) as video:
        frames = iter(video)
        with pytest.raises(VideoError) as caught:
            indices.extend(frame.index for frame in frames)
    return indices, str(caught.value)


@pytest.fixture(scope="module", params=["mp4", "mkv", "avi", "ts"])
def cut_clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cut")
    whole = write_video(
        folder / f"whole.{request.param}",
        [noise_frame(i) for i in range(40)],
        rate=Fraction(30),
        codec="mpeg4" if request.param == "avi" else "libx264",
        container_options={"movflags": "+faststart"} if request.param == "mp4" else None,
    )
    data = whole.read_bytes()
    cut = folder / f"cut.{request.param}"
    cut.write_bytes(data[: len(data) // 2])
    return cut


def test_truncated_video_yields_frames_then_one_error(cut_clip: Path) -> None:
    indices, message = read_until_error(cut_clip)
    assert indices == list(range(len(indices)))
    assert 10 <= len(indices) <= 30
    assert f"beyond frame {indices[-1]} " in message
    assert "cut short" in message
    assert "\n" not in message


def test_truncation_after_the_requested_end_is_ignored(cut_clip: Path) -> None:
    with open_video(cut_clip, end=5) as video:
        assert [frame.index for frame in video] == list(range(5))


def test_whole_video_of_every_container_ends_without_error(cut_clip: Path) -> None:
    whole = cut_clip.with_stem("whole")
    with open_video(whole) as video:
        assert len(list(video)) == 40


def test_mp4_without_index_raises(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", [noise_frame(i) for i in range(10)])
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(VideoError, match=r"cut\.mp4 is not a video .*index is missing.*cut"):
        open_video(cut)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"hello world\n" * 2000, "no video format"), (b"", "the file is empty")],
)
def test_file_that_is_no_video_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "note.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=rf"note\.mp4 is not a video .*{message}"):
        open_video(path)


def test_sound_without_picture_is_named(tmp_path: Path) -> None:
    import wave

    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"\0\0" * 800)
    with pytest.raises(VideoError, match="no video stream, only audio"):
        open_video(path)


def test_missing_file_lists_supported_inputs() -> None:
    with pytest.raises(VideoError, match=r"no such video: 'nowhere/clip\.mp4'.*folder.*rtsp"):
        open_video("nowhere/clip.mp4")


# --- images ------------------------------------------------------------------------------------


def test_folder_is_read_in_natural_order_with_the_files_names(tmp_path: Path) -> None:
    for number in (10, 9, 2, 1):
        Image.fromarray(level_frame(number)).save(tmp_path / f"f{number}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("not an image either")
    with open_video(tmp_path) as video:
        assert video.name == tmp_path.name
        assert video.frame_count_hint == 4
        frames = list(video)
    assert [frame.name for frame in frames] == ["f1", "f2", "f9", "f10"]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert [index_from_frame(frame.rgb) for frame in frames] == [1, 2, 9, 10]


@pytest.mark.parametrize(
    "ordered",
    [
        ["t99.75", "t99.8", "t99.85", "t100.0"],
        ["1403636579.75", "1403636579.8", "1403636580.0"],
        ["Frame_9", "FRAME_13", "frame_20"],
        ["a2b9", "A2b10", "a11b1"],
        ["v1.0009", "v1.0010", "v1.0100"],
        ["1.2.9", "1.2.10", "1.10.1"],
        ["t.7", "t.75", "t.8", "t.85", "t.9"],
        ["t.05", "t.1", "t.15"],
        ["t.75", "t0.8", "t1.25"],
        ["shot.8", "shot.9", "shot.10", "shot.12"],
        ["take.9", "take.10"],
        ["odd.9", "odd.11", "odd.13"],
        ["1,25", "1,50", "2,5"],
        ["-1.5", "-1", "0", "2"],
        ["f-1", "f-2", "f-10"],
    ],
    ids=lambda ordered: ordered[0],
)
def test_images_are_in_the_order_of_their_values(tmp_path: Path, ordered: list[str]) -> None:
    for name in reversed(ordered):
        Image.fromarray(level_frame(0)).save(tmp_path / f"{name}.png")
    with open_video(tmp_path) as video:
        assert [frame.name for frame in video] == ordered


@pytest.mark.parametrize(
    "names",
    [
        ("v1.9", "v1.10"),
        ("v1.1", "v1.10"),
        ("f1", "F1"),
        ("f01", "f1"),
        ("t.7", "t.75"),
        ("1,5", "1,25"),
        ("0x09", "0x0A"),
    ],
)
def test_images_whose_order_is_in_doubt_are_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        Image.fromarray(level_frame(0)).save(tmp_path / f"{name}.png")
    with pytest.raises(VideoError, match="is ambiguous") as caught:
        open_video(tmp_path)
    assert all(name in str(caught.value) for name in names)


def test_frame_rate_of_images_is_24_or_as_given(tmp_path: Path) -> None:
    write_folder(tmp_path, [level_frame(i) for i in range(3)])
    with open_video(tmp_path) as video:
        assert video.fps == 24
    with open_video(tmp_path, start=1, fps=NTSC) as video:
        assert video.fps == NTSC
        assert [frame.pts_s for frame in video] == [1 / NTSC, 2 / NTSC]


@pytest.mark.parametrize("rate", [Fraction(10**30), Fraction(1, 10**30), Fraction(10**400)])
def test_frame_rate_out_of_bounds_is_refused(tmp_path: Path, rate: Fraction) -> None:
    write_folder(tmp_path, [level_frame(0)])
    with pytest.raises(InputError, match="from 1/100000 to 100000"):
        open_video(tmp_path, fps=rate)


@pytest.mark.parametrize(
    "rate", [Fraction(1, 100_000), Fraction(100_000), Fraction(10**30, 10**29 + 7), NTSC]
)
def test_frame_rate_within_bounds_can_be_encoded(tmp_path: Path, rate: Fraction) -> None:
    write_folder(tmp_path, [level_frame(i) for i in range(2)])
    with open_video(tmp_path, fps=rate) as video:
        assert max(video.fps.as_integer_ratio()) < 1 << 31
        assert video.fps == pytest.approx(rate)
        writer = OverlayWriter(
            tmp_path / "overlay.mp4",
            size_hw=video.size_hw,
            fps=video.fps,
            time_base=video.time_base,
        )
        for frame in video:
            labels = np.zeros(video.size_hw, np.uint8)
            probs = np.empty((0, *video.size_hw), np.float32)
            writer.write(frame, StepResult(frame.index, labels, probs, (), ()))
        writer.close()


def test_empty_text_is_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path, [level_frame(0)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VideoError, match="empty text"):
        open_video("")
    with open_video(".") as video:  # control
        assert video.frame_count_hint == 1


def test_frame_rate_cannot_be_given_for_a_video(clip: Path) -> None:
    with pytest.raises(InputError, match="only be given for images"):
        open_video(clip, fps=Fraction(10))


def test_mixed_sizes_name_the_first_other_file_and_both_sizes(tmp_path: Path) -> None:
    write_folder(tmp_path, [level_frame(i) for i in range(4)])
    Image.fromarray(level_frame(0, (40, 64))).save(tmp_path / "00002.png")
    with pytest.raises(VideoError, match=r"00002\.png is 64x40 but 00000\.png is 64x48"):
        open_video(tmp_path)
    with open_video(tmp_path, end=2) as video:  # control: unused files do not matter
        assert len(list(video)) == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"holds no images \(0 other files\)"),
        ({"a.txt": b"x"}, r"holds no images \(1 other files\)"),
        ({"a.jpg": b"text, not a picture"}, r"a\.jpg cannot be read as an image: its content"),
        ({"a.jpg": b""}, r"a\.jpg cannot be read as an image"),
    ],
)
def test_folder_without_usable_images(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError, match=message):
        open_video(tmp_path)


def test_two_images_of_one_stem_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, [level_frame(0)])
    write_folder(tmp_path, [level_frame(0)], "{:05d}.jpg")
    with pytest.raises(VideoError, match=r"both 00000\.jpg and 00000\.png"):
        open_video(tmp_path)


def test_cut_image_inside_a_folder_stops_there(tmp_path: Path) -> None:
    write_folder(tmp_path, [noise_frame(i) for i in range(4)], "{:05d}.jpg")
    victim = tmp_path / "00002.jpg"
    victim.write_bytes(victim.read_bytes()[:-300])
    indices, message = read_until_error(tmp_path)
    assert indices == [0, 1]
    assert "00002.jpg" in message


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    rgb = np.zeros((20, 30, 3), np.uint8)
    rgb[:10, :15] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    for index in range(2):
        Image.fromarray(rgb).save(tmp_path / f"{index}.png", exif=exif)
    with open_video(tmp_path) as video:
        assert video.size_hw == (30, 20)
        shown = video.first_frame.rgb
        np.testing.assert_array_equal(shown, np.rot90(rgb, -1))
        assert len(list(video)) == 2


GRAY16 = np.array([[0, 257, 65535], [32896, 128, 129]], np.uint16)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param(Image.fromarray(np.array([[0, 7, 255]], np.uint8)), [[0, 7, 255]], id="gray"),
        pytest.param(
            Image.fromarray(GRAY16), [[0, 1, 255], [128, 0, 1]], id="16-bit scaled, not clipped"
        ),
        pytest.param(
            Image.fromarray(np.array([[[9, 9, 9, 0], [5, 5, 5, 255]]], np.uint8), "RGBA"),
            [[9, 5]], id="alpha dropped",
        ),
        pytest.param(Image.fromarray(np.array([[[9, 0], [5, 255]]], np.uint8), "LA"), [[9, 5]],
                     id="gray with alpha"),
        pytest.param(Image.fromarray(np.array([[True, False]])), [[255, 0]], id="one bit"),
    ],
)  # fmt: skip
def test_every_pixel_format_becomes_rgb(
    tmp_path: Path, image: Image.Image, expected: list[list[int]]
) -> None:
    image.save(tmp_path / "a.png")
    with open_video(tmp_path) as video:
        rgb = video.first_frame.rgb
    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb, np.repeat(np.array(expected)[:, :, None], 3, axis=2))


def disc_frame(index: int) -> np.ndarray:
    y, x = np.mgrid[:48, :64]
    level = 60 + 10 * index + 100 * ((x - 20 - index) ** 2 + (y - 24) ** 2 < 100)
    return np.stack([level, level // 2, 255 - level], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    ("suffix", "is_gray"),
    [("png", True), ("png", False), ("tif", True), ("tif", False), ("pgm", True), ("ppm", False)],
)
@pytest.mark.parametrize(("bits", "first"), [(12, 0), (10, 0), (16, 0), (12, 2)])
def test_range_of_deep_images_is_that_of_their_values(
    tmp_path: Path, suffix: str, is_gray: bool, bits: int, first: int
) -> None:
    """12 bits in 16 became black; the first frame can be darker than the others."""
    frames = [disc_frame(index) for index in range(3)]
    for index, frame in enumerate(frames):
        frames[index] = frame = frame // (8 if index < first else 1)
        deep = np.rint(frame.astype(np.float64) * ((1 << bits) - 1) / 255).astype(np.uint16)
        # cv2 writes 16 bits per colour; its order is BGR
        pixels = deep[..., 0] if is_gray else deep[..., ::-1]
        assert cv2.imwrite(str(tmp_path / f"{index:05d}.{suffix}"), pixels)
    assert max(frame.max() for frame in frames) > 128
    with open_video(tmp_path) as video:
        for frame, expected in zip(video, frames, strict=True):
            if is_gray:
                expected = np.repeat(expected[..., :1], 3, axis=2)
            assert np.abs(frame.rgb.astype(int) - expected).max() <= 1


def test_deep_images_of_8_bits_are_kept(tmp_path: Path) -> None:
    write_folder(tmp_path, [level_frame(i) for i in range(2)])
    Image.fromarray(np.full((48, 64), 25, np.uint16)).save(tmp_path / "00002.png")
    with open_video(tmp_path) as video:
        assert [index_from_frame(frame.rgb) for frame in video] == [0, 1, 1]


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(VideoError, match="floating-point"):
        open_video(tmp_path)


def test_pattern_reads_its_numbers_from_the_first_that_exists(tmp_path: Path) -> None:
    for number in (7, 8, 9):
        Image.fromarray(level_frame(number)).save(tmp_path / f"s{number:04d}.png")
    Image.fromarray(level_frame(1)).save(tmp_path / "s1.png")  # not four digits
    with open_video(tmp_path / "s%04d.png") as video:
        frames = list(video)
    assert [(f.index, f.name) for f in frames] == [(0, "s0007"), (1, "s0008"), (2, "s0009")]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("s%04d.png", r"s0002\.png is missing \(s0003\.png exists\)"),
        ("x%04d.png", "no file matches the pattern"),
        ("s%04d-%d.png", "must hold one %d"),
        ("s%s.png", "must hold one %d"),
    ],
)
def test_bad_patterns(tmp_path: Path, pattern: str, message: str) -> None:
    for number in (1, 3):
        Image.fromarray(level_frame(number)).save(tmp_path / f"s{number:04d}.png")
    with pytest.raises(VideoError, match=message):
        open_video(tmp_path / pattern)


def test_davis_folder_keeps_its_frame_names() -> None:
    folder = shared_path("data", "davis", "JPEGImages", "480p", "blackswan")
    with open_video(folder, end=2) as video:
        assert video.name == "blackswan"
        assert video.size_hw == (480, 854)
        assert [frame.name for frame in video] == ["00000", "00001"]


# --- cameras and streams -----------------------------------------------------------------------


def test_absent_camera_is_one_clear_error() -> None:
    with pytest.raises(VideoError, match="cannot open camera 97"):
        open_video("97")


def test_camera_is_live_and_goes_through_the_same_reader(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_file, "camera_address", lambda index: (str(clip), "mp4"))
    with open_video("0", end=3) as video:
        assert video.is_live
        assert video.name == "camera0"
        assert video.frame_count_hint == 3
        assert [frame.index for frame in video] == [0, 1, 2]


def test_unreachable_stream_fails_without_showing_the_password() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]  # bound but not listening: connections are refused
        with pytest.raises(VideoError, match="cannot open rtsp") as caught:
            open_video(f"rtsp://user:secret@127.0.0.1:{port}/live")
    assert "secret" not in str(caught.value)


def test_http_address_is_read_like_a_file(clip: Path) -> None:
    handler = functools.partial(QuietHandler, directory=str(clip.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with open_video(f"http://127.0.0.1:{server.server_port}/clip.mp4") as video:
                assert video.name == "clip"
                assert not video.is_live
                assert len(list(video)) == 12
        finally:
            server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://user:pw@host:554/x?y=1", "rtsp://***@host:554/x?y=1"),
        ("rtsp://host/x", "rtsp://host/x"),
        ("folder/p@q.mp4", "folder/p@q.mp4"),
    ],
)
def test_addresses_are_redacted(address: str, shown: str) -> None:
    assert redacted(address) == shown
