"""Content chooses the decoder: only those that read one file and start nothing."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import EpsImagePlugin, Image

from mpn.errors import EvaluationError, MaskError, MpnError, VideoError
from mpn.masks import load_annotation, load_labels
from mpn.runtime.media.video import open_video
from mpn.runtime.media.video_images import load_rgb
from tests.runtime.media.clips import level_frame, write_folder, write_video

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\nshowpage\n%%EOF\n"
PLAYLIST = (
    "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{name}\n#EXT-X-ENDLIST\n"
)


def frame_of_folder(path: Path) -> Any:
    with open_video(path.parent) as video:
        return video.first_frame


def frame_of_pattern(path: Path) -> Any:
    with open_video(path.with_name("%05d.png")) as video:
        return video.first_frame


@pytest.mark.parametrize(
    ("read", "fault"),
    [
        (frame_of_folder, VideoError),
        (frame_of_pattern, VideoError),
        (load_labels, MaskError),
        (load_annotation, EvaluationError),
    ],
)
def test_eps_named_png_does_not_start_ghostscript(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Path], Any],
    fault: type[MpnError],
) -> None:
    started = []

    def start(*arguments: Any, **options: Any) -> Any:
        started.append(arguments)
        return Image.new("RGB", (64, 48)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", start)
    path = tmp_path / "00000.png"
    path.write_bytes(EPS)
    with pytest.raises(fault) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert not started
    Image.open(path).load()  # control
    assert started


def test_frame_of_another_raster_format_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "00000.png"
    Image.fromarray(level_frame(3)).save(path, format="BMP")
    assert (load_rgb(path) == level_frame(3)).all()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize(
    ("read", "fault"),
    [(frame_of_pattern, VideoError), (load_labels, MaskError), (load_annotation, EvaluationError)],
)
def test_pipe_named_png_is_refused_at_once(
    tmp_path: Path, read: Callable[[Path], Any], fault: type[MpnError]
) -> None:
    path = tmp_path / "00000.png"
    os.mkfifo(path)
    with pytest.raises(fault, match=r"not a plain file"):
        read(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a video that the files under test name."""
    write_video(tmp_path / "other.mp4", [level_frame(i) for i in range(3)])
    return tmp_path


@pytest.mark.parametrize(
    ("content", "name", "is_followed", "message"),
    [
        ("ffconcat version 1.0\nfile other.mp4\n", "clip.mp4", True, "concat"),
        (PLAYLIST.format(name="other.mp4"), "clip.mp4", False, r"a playlist \(m3u8\)"),
        (PLAYLIST.format(name="other.mp4"), "clip.m3u8", True, r"a playlist \(m3u8\)"),
        ('<?xml version="1.0"?>\n<MPD type="static"/>', "clip.mp4", False, r"a playlist \(DASH\)"),
        ("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\n", "clip.mkv", False, "a session description"),
    ],
)
def test_list_of_other_files_is_refused_as_video(
    folder: Path, content: str, name: str, is_followed: bool, message: str
) -> None:
    path = folder / name
    path.write_text(content)
    for source in (path, f"file://{path}"):
        with pytest.raises(VideoError, match=rf"{name} is not a video .*it is .*{message}") as e:
            open_video(source)
        assert "\n" not in str(e.value)
    if is_followed:  # control: FFmpeg itself opens the other file
        with av.open(str(path)) as container:
            assert len(list(container.decode(video=0))) == 3


def test_image_name_with_a_pattern_opens_no_other_file(tmp_path: Path) -> None:
    """FFmpeg's image2 reads ``f%02d.png`` as the pattern of other files."""
    write_folder(tmp_path, [level_frame(1)], "f{:02d}.png")
    path = tmp_path / "f%02d.png"
    Image.fromarray(level_frame(2)).save(path)
    with pytest.raises(VideoError, match="it is one image"):
        open_video(path)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_playlist_of_a_typed_address_opens_no_local_file(folder: Path, address: str) -> None:
    (folder / "local.m3u8").write_text(PLAYLIST.format(name=f"file://{folder}/other.mp4"))
    (folder / "remote.m3u8").write_text(PLAYLIST.format(name="other.mp4"))
    with pytest.raises(VideoError, match=r"local\.m3u8"):
        open_video(f"{address}/local.m3u8")
    with open_video(f"{address}/remote.m3u8") as video:  # control
        assert len(list(video)) == 3


@pytest.mark.parametrize("scheme", ["concat", "subfile,,start,0,end,9,,", "cache"])
def test_protocol_that_reads_local_files_is_refused(folder: Path, scheme: str) -> None:
    with pytest.raises(VideoError):
        open_video(f"{scheme}://{folder}/other.mp4")
