"""Decode files, cameras and network streams with FFmpeg."""

from __future__ import annotations

import errno
import re
import struct
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition

from mpn._common.file_kinds import kind_of_file
from mpn.errors import VideoError
from mpn.runtime.media.video import VideoSource, start_beyond_end
from mpn.runtime.media.video_images import IMAGE_SUFFIXES
from mpn.types import Frame, UInt8Array

_EBML_HEADER = b"\x1a\x45\xdf\xa3"
_MATROSKA_SEGMENT = b"\x18\x53\x80\x67"
_MATROSKA_CLUSTER = b"\x1f\x43\xb6\x75"

_BOXES = frozenset(
    b"ftyp styp moov moof mdat mfra free skip wide junk udta meta uuid pnot PICT pdin sidx ssix "
    b"prft emsg".split()
)
"""Top-level boxes of MP4 and QuickTime; other bytes after the last box are ignored."""
_BOXES_WITH_FRAMES = frozenset((b"mdat", b"moof", b"moov"))
_OPEN_RIFF_SIZES = (0, 0xFFFFFFFF)
"""Left by a writer that could not go back to the header, such as a pipe."""


def is_truncated(path: Path) -> bool:
    """Return whether a file lacks bytes of frames that its headers require.

    Reads MP4/MOV boxes (ISO/IEC 14496-12, 4.2), Matroska/WebM elements (RFC 8794, RFC 9559) and
    the RIFF lists of AVI. Returns False for other formats, for a size that was left open, if only
    an index or tags are cut, and for other bytes after the end.

    Args:
        path: The file; the result is False if it cannot be read.
    """
    try:
        length = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(12)
            file.seek(0)
            if head[4:8] in _BOXES:
                return _is_mp4_cut(file, length)
            if head[:4] == _EBML_HEADER:
                return _is_matroska_cut(file, length)
            return head[:4] == b"RIFF" and head[8:12] == b"AVI " and _is_avi_cut(file, length)
    except (OSError, struct.error):
        return False


def _is_mp4_cut(file: BinaryIO, length: int) -> bool:
    position = 0
    while position + 8 <= length:
        file.seek(position)
        header = file.read(16)
        size, box = struct.unpack(">I", header[:4])[0], header[4:8]
        if size == 1:
            size = struct.unpack(">Q", header[8:16])[0]
        if size < 8 or box not in _BOXES:  # 0: to the end of the file
            return False
        position += size
        if position > length:
            return box in _BOXES_WITH_FRAMES
    return False


def _is_avi_cut(file: BinaryIO, length: int) -> bool:
    """Return whether a list ``movi``, of one of the RIFF parts of OpenDML, is cut."""
    riff = 0
    while riff + 12 <= length:
        file.seek(riff)
        name, size = struct.unpack("<4sI", file.read(8))
        if name != b"RIFF" or size in _OPEN_RIFF_SIZES:
            return False
        position, riff = riff + 12, riff + 8 + size + size % 2
        while position + 12 <= min(riff, length):
            file.seek(position)
            name, size, kind = struct.unpack("<4sI4s", file.read(12))
            position += 8 + size + size % 2
            if name == b"LIST" and kind == b"movi":
                if size in _OPEN_RIFF_SIZES:
                    return False
                if position - size % 2 > length:
                    return True
    return False


def _is_matroska_cut(file: BinaryIO, length: int) -> bool:
    file.read(4)
    header_size = _ebml_size(file)
    if header_size is None:
        return False
    file.seek(header_size, 1)
    if file.read(4) != _MATROSKA_SEGMENT:
        return False
    size = _ebml_size(file)
    if size is None or file.tell() + size <= length:
        return False
    has_cluster = False
    while name := _ebml_name(file):
        size = _ebml_size(file)
        has_cluster |= name == _MATROSKA_CLUSTER
        if size is None:
            return True
        if file.tell() + size > length:
            return name == _MATROSKA_CLUSTER or not has_cluster
        file.seek(size, 1)
    return True  # between two elements


def _ebml_name(file: BinaryIO) -> bytes:
    """Read the name of an element; empty at the end of the file."""
    first = file.read(1)
    return first + file.read(8 - first[0].bit_length()) if first and first[0] else b""


def _ebml_size(file: BinaryIO) -> int | None:
    """Read a variable-length size; None if it is unknown (all ones).

    The number of leading zero bits is the number of further bytes.
    """
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    width = 9 - first[0].bit_length()
    rest = file.read(width - 1)
    if len(rest) != width - 1:
        return None
    value = int.from_bytes(bytes([first[0] & ((1 << (8 - width)) - 1)]) + rest, "big")
    return None if value == (1 << (7 * width)) - 1 else value


_OPEN_TIMEOUT_S = 10.0
_READ_TIMEOUT_S = 10.0
"""For cameras and network streams: a longer wait ends the video."""

_CONTAINERS = (
    *("apng", "asf", "avi", "dv", "flv", "gif", "ivf", "live_flv", "matroska", "mov", "mpeg"),
    *("mpegts", "mxf", "nut", "ogg", "rm", "wtv", "yuv4mpegpipe"),
    *("av1", "h264", "hevc", "m4v", "mjpeg", "mpegvideo", "obu", "vvc"),
    *("aac", "flac", "mp3", "wav"),  # without a video stream, which the message states
)
"""FFmpeg's demuxers that read one file: containers, raw streams, sound. FFmpeg chooses the demuxer
by content. Playlists, concat lists, image2 and others open the files and addresses that they name.
"""

_STREAMED = (*_CONTAINERS, "dash", "hls", "mpjpeg", "rtp", "rtsp", "sdp")
"""Also what an address that the user typed may give."""

_NETWORK = (
    *("crypto", "data", "ftp", "http", "httpproxy", "https", "mmsh", "mmst", "rist", "rtp", "srtp"),
    *("ffrtmphttp", "rtmp", "rtmpe", "rtmps", "rtmpt", "rtmpte", "rtmpts"),
    *("sftp", "srt", "tcp", "tls", "udp", "udplite"),
)
"""FFmpeg's protocols for an address: none of them reads a file of this machine."""

_HEAD_BYTES = 4096
_LISTS = (
    (re.compile(rb"#EXTM3U"), "a playlist (m3u8)"),
    (re.compile(rb"ffconcat"), "a list for FFmpeg's concat"),
    (re.compile(rb"(?s).*<(?:\w+:)?MPD\b"), "a playlist (DASH)"),
    (re.compile(rb"v=0\r?\no="), "a session description (SDP)"),
)
"""Files that name others: the pattern of their first bytes, and a name for a message."""

_COUNTED_CODECS = {
    "mov": frozenset({"av1", "h264", "hevc", "mpeg4", "vp9"}),
    "matroska": frozenset({"av1", "h264", "hevc", "vp9"}),
}
"""FFmpeg's containers, and their codecs of one packet per frame, so that a lost frame is noticed:
decoders drop some frames that they cannot conceal without an error."""

_FALLBACK_FPS = Fraction(25)
"""For raw streams without a rate; FFmpeg uses the same value."""

_MAX_BAD_PACKETS = 250
"""Consecutive bad packets (ten seconds at 25 fps) after which a live stream ends."""

_DISPLAY_MATRIX_ONE = 1 << 16
"""The display matrix holds 16.16 fixed-point numbers (ISO/IEC 14496-12, 6.2.2)."""


def camera_address(index: int) -> tuple[str, str]:
    """Return FFmpeg's device name and input format of camera ``index``."""
    if sys.platform == "darwin":
        return (f"{index}:none", "avfoundation")
    if sys.platform == "win32":
        return (str(index), "vfwcap")
    return (f"/dev/video{index}", "v4l2")


class VideoStream(VideoSource):
    """Frames of an FFmpeg input. Use :func:`mpn.runtime.media.video.open_video`.

    The iteration over a damaged or truncated video yields all complete frames and then raises
    VideoError. A file never skips frames, because their numbers are the names of the masks. A live
    stream continues after a bad packet.

    Args:
        url: The address for FFmpeg.
        address: The address for messages and reports, without a password.
        name: Name for outputs.
        container_format: FFmpeg's input format for devices; None to detect it.
        is_live: Camera or stream.
        start: Index of the first frame.
        end: Index to stop before; None for all.
    """

    def __init__(
        self,
        url: str,
        *,
        address: str,
        name: str,
        container_format: str | None = None,
        is_live: bool = False,
        start: int = 0,
        end: int | None = None,
    ) -> None:
        self._url, self._shown = url, address
        self._start, self._end, self._live = start, end, is_live
        self._decoded = 0
        self._concealed: list[int] = []
        self._awaited: dict[int, bool] = {}
        """Times of packets whose frame was not decoded yet; whether it is a key frame."""
        self._next_pts_s = Fraction(0)
        self._orientation = _Orientation()
        self._container = _open_container(url, address, container_format, is_live)
        try:
            self._stream = _video_stream(self._container, address)
            self._rate = _frame_rate(self._stream)
            self._is_counted = (
                not is_live
                and self._stream.codec_context.name
                in _COUNTED_CODECS.get(self._container.format.name.split(",")[0], ())
            )
            self._pending = self._decode()
            super().__init__(
                name=name,
                address=address,
                first_frame=self._read_first(),
                fps=self._rate,
                time_base=Fraction(self._stream.time_base),
                frame_count_hint=self._count_hint(),
                end_index=end,
                is_live=is_live,
            )
            self.sample_aspect_ratio = self._upright_aspect_ratio()
        except BaseException:
            self._container.close()
            raise

    @property
    def path(self) -> Path:
        """The path of the file; not a file for a camera or a network stream."""
        return Path(self._url)

    @property
    def end(self) -> int | None:
        """Index of the frame to stop before; None: no limit."""
        return self._end

    @property
    def is_only_stream(self) -> bool:
        """Whether the file has no other video stream, such as a cover picture."""
        return len(self._container.streams.video) == 1

    @property
    def is_rotated(self) -> bool:
        """Whether stored frames have to be rotated or flipped."""
        return self._orientation != _Orientation()

    @property
    def warnings(self) -> list[str]:
        """See :attr:`VideoSource.warnings`."""
        if not self._concealed:
            return []
        count, first = len(self._concealed), self._concealed[0]
        which = f"frame {first}" if count == 1 else f"{count} frames, the first is frame {first}"
        return [
            f"{self._shown} is damaged: the decoder concealed errors in {which}; masks from there "
            "to the next key frame may be wrong"
        ]

    def _upright_aspect_ratio(self) -> Fraction | None:
        ratio = self._stream.sample_aspect_ratio
        if not ratio or ratio < 0 or ratio == 1:
            return None
        return 1 / Fraction(ratio) if self._orientation.is_transposed else Fraction(ratio)

    def _release(self) -> None:
        self._pending.close()
        self._container.close()

    def _count_hint(self) -> int | None:
        count = None
        if self._stream.frames and not self._live:
            count = int(self._stream.frames)
        elif self._container.duration and not self._live:
            count = round(Fraction(self._container.duration, av.time_base) * self._rate)
        if self._end is not None:
            count = self._end if count is None else min(count, self._end)
        return None if count is None else max(count - self._start, 1)

    def _read_first(self) -> Frame:
        for frame in self._pending:
            if frame.index >= self._start:
                return frame
        if self._decoded:
            raise start_beyond_end(self._shown, self._start, self._decoded)
        raise VideoError(f"{self._shown} holds no frame that can be decoded")

    def _frames_after_first(self) -> Iterator[Frame]:
        count = None if self._end is None else self._end - self._start - 1
        # Damage after the requested end must not raise.
        return islice(self._pending, count)

    def _decode(self) -> Generator[Frame, None, None]:
        """Yield all frames from 0; raise VideoError if decoding stops before the end."""
        held: Any = None  # a damaged frame is used only if another frame is after it
        damage: BaseException | None = None
        reason = ""
        try:
            for decoded in self._decode_packets():
                if held is not None:
                    yield self._frame_from_av(held)
                held = None
                if self._is_frame_lost(decoded):
                    reason = "a frame is lost" if self._decoded else "its first frame is damaged"
                    break
                if decoded.is_corrupt and not self._live:
                    held = decoded
                else:
                    yield self._frame_from_av(decoded)
        except (av.error.FFmpegError, OSError) as error:
            damage, reason = error, _reason(error)
        if not reason and self._is_frame_lost(None):
            reason = "a frame is lost"
        if not reason and (held is not None or self._is_cut()):
            reason = "the file ends early"
        if not reason:
            return
        if self._decoded == 0:
            raise VideoError(
                f"{self._shown} holds no frame that can be decoded ({reason})"
            ) from damage
        if self._live:
            raise VideoError(
                f"{self._shown} gave no frame after frame {self._decoded - 1} ({reason})"
            ) from damage
        raise VideoError(
            f"{self._shown} cannot be decoded beyond frame {self._decoded - 1} ({reason}): "
            "the video is damaged or was cut short"
        ) from damage

    def _is_cut(self) -> bool:
        """Return whether the file is cut and its index lists more frames."""
        if self._live or 0 < self._stream.frames <= self._decoded:
            return False
        return is_truncated(Path(self._url.removeprefix("file:")))

    def _is_frame_lost(self, decoded: Any | None) -> bool:
        """Return whether a frame before this one was not decoded; None: before the end.

        Frames before the first key frame cannot be decoded, and are none of the video.
        """
        if decoded is not None and decoded.interlaced_frame:  # two packets per frame in some files
            self._is_counted = False
        if not self._is_counted or (decoded is not None and decoded.pts is None):
            return False
        if decoded is None:
            return self._decoded > 0 and bool(self._awaited)
        self._awaited.pop(decoded.pts, None)
        before = [pts for pts in self._awaited if pts < decoded.pts]
        are_keys = [self._awaited.pop(pts) for pts in before]
        return any(are_keys) if self._decoded == 0 else bool(before)

    def _decode_packets(self) -> Iterator[Any]:
        bad_in_a_row = 0
        for packet in self._container.demux(self._stream):
            is_counted = self._is_counted and packet.size and not packet.is_discard
            if is_counted and packet.pts is not None:
                self._awaited[packet.pts] = packet.is_keyframe
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                bad_in_a_row += 1
                # Recordings often start between two key frames, and no packet can be decoded yet.
                if (self._live or self._decoded == 0) and bad_in_a_row <= _MAX_BAD_PACKETS:
                    continue
                # The decoder threads still hold complete frames from before the bad packet.
                yield from self._flush()
                raise
            bad_in_a_row = 0
            yield from frames

    def _flush(self) -> Iterator[Any]:
        try:
            yield from self._stream.decode(None)
        except av.error.FFmpegError:
            return

    def _frame_from_av(self, decoded: Any) -> Frame:
        if decoded.pts is None:
            pts_s = self._next_pts_s
        else:
            pts_s = decoded.pts * Fraction(decoded.time_base or self._stream.time_base)
        self._next_pts_s = pts_s + 1 / self._rate
        index = self._decoded
        self._decoded += 1
        if decoded.is_corrupt and index >= self._start:
            self._concealed.append(index)
        # Frames before the start are decoded but need no pixels.
        if index == 0:
            # Once: PyAV's side data and its frame refer to each other. Reading it for each frame
            # would keep all frames until the next garbage collection (12 MB each at 4K).
            self._orientation = _orientation(decoded, self._shown)
        rgb = (
            _upright(decoded.to_ndarray(format="rgb24"), self._orientation)
            if index >= self._start
            else np.empty((1, 1, 3), np.uint8)
        )
        return Frame(index=index, rgb=rgb, pts_s=pts_s, name=f"{index:05d}")


def open_file_container(path: Path | str) -> Any:
    """Open a file with FFmpeg, without any other file or address that it names.

    Raises:
        av.error.FFmpegError: If it cannot be opened, or its format is none of those that are read.
    """
    url = str(path)
    if not url.lower().startswith("file:") or Path(url).is_file():
        url = f"file:{url}"  # FFmpeg takes the part before a colon for a protocol
    return av.open(
        url, options={"format_whitelist": ",".join(_CONTAINERS), "protocol_whitelist": "file"}
    )


def _open_container(url: str, address: str, container_format: str | None, is_live: bool) -> Any:
    is_remote = is_live or not _is_local(url)
    try:
        if not is_remote:
            return open_file_container(url)
        return av.open(
            url,
            format=container_format,
            options={} if container_format else _address_options(url),
            timeout=(_OPEN_TIMEOUT_S, _READ_TIMEOUT_S),
        )
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if is_remote:
            raise VideoError(f"cannot open {address}: {_address_reason(error)}") from error
        raise VideoError(
            f"{address} is not a video that can be decoded "
            f"({_open_reason(Path(url.removeprefix('file:')), error)})"
        ) from error


def _is_local(url: str) -> bool:
    return url.lower().startswith("file:") or "://" not in url or Path(url).is_file()


def _address_options(url: str) -> dict[str, str]:
    """Return FFmpeg's options for an address: what its content may open."""
    options = {
        "format_whitelist": ",".join(_STREAMED),
        "protocol_whitelist": ",".join(_NETWORK),
    }
    if url.lower().startswith("rtsp"):
        options["rtsp_transport"] = "tcp"
    return options


def _address_reason(error: Exception) -> str:
    if getattr(error, "errno", None) == errno.EINVAL:
        return "its protocol or its format is none of those that are read from an address"
    return _reason(error)


def _open_reason(path: Path, error: Exception) -> str:
    """Return the reason why a file cannot be opened.

    A truncated MP4, which has lost the index at its end, and a list of files are recognised by
    their first bytes.
    """
    is_refused = getattr(error, "errno", None) == errno.EINVAL  # not in the list of formats
    if is_refused or isinstance(error, av.error.InvalidDataError):
        try:
            with path.open("rb") as file:
                head = file.read(_HEAD_BYTES)
        except OSError:
            return _reason(error)
        if not head:
            return "the file is empty"
        for pattern, kind in _LISTS:
            if pattern.match(head.removeprefix(b"\xef\xbb\xbf").lstrip()):
                return f"it is {kind}, and the files that it names are not opened: give the video"
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return "it is one image: give the folder of the images of a video"
        if head[4:8] == b"ftyp":
            return "its index is missing: the file was cut, or is still being written"
        found = kind_of_file(path)
        if found is None or found.startswith("a video"):
            return "its content is of no video format that is known"
        return f"it is {found}"
    return _reason(error)


_STILL = (
    Disposition.attached_pic
    | Disposition.timed_thumbnails
    | Disposition.still_image
    | Disposition.dependent
)
"""Cover pictures, and streams that are no film without another one."""

_PICTURE_CODECS = frozenset({"bmp", "gif", "mjpeg", "png", "tiff", "webp"})


def _video_stream(container: Any, address: str) -> Any:
    """Return the film of a container: the largest stream that is not one picture.

    Raises:
        VideoError: If there is none, or its codec is unknown.
    """
    if not container.streams.video:
        kinds = sorted({stream.type for stream in container.streams})
        raise VideoError(f"{address} holds no video stream, only {', '.join(kinds) or 'nothing'}")
    films = [stream for stream in container.streams.video if not stream.disposition & _STILL]
    if not films:
        raise VideoError(f"{address} holds no video stream, only pictures such as a cover")

    def preference(stream: Any) -> tuple[bool, bool, int, bool]:
        context = stream.codec_context
        if context is None:
            return False, False, 0, False
        # A picture that its file does not mark as one. The number is 0 if the file has none.
        is_picture = stream.frames <= 1 and context.name in _PICTURE_CODECS
        is_default = bool(stream.disposition & Disposition.default)
        # Not the default first: FFmpeg takes the first stream for it if the file names none.
        return True, not is_picture, context.width * context.height, is_default

    stream = max(films, key=preference)
    if stream.codec_context is None:
        raise VideoError(f"{address}: its video codec is not known to this FFmpeg")
    stream.thread_type = "AUTO"
    return stream


def _frame_rate(stream: Any) -> Fraction:
    """Return the exact average rate, or FFmpeg's estimate from the time stamps."""
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate:
            return Fraction(rate)
    return _FALLBACK_FPS


@dataclass(frozen=True)
class _Orientation:
    """The conversion of stored pixels to upright ones: transpose, then flip."""

    is_transposed: bool = False
    flip_x: bool = False
    flip_y: bool = False


def _orientation(decoded: Any, address: str) -> _Orientation:
    """Read the display matrix: quarter turns and flips, as phones record them."""
    # By key: iterating gives entries in PyAV up to 18 and their types from 19 on.
    entry = decoded.side_data.get(SideDataType.DISPLAYMATRIX)
    if entry is None:
        return _Orientation()
    matrix = bytes(entry)
    # x' = a x + c y, y' = b x + d y, rows (a, b, u), (c, d, v), (x, y, w).
    a, b, _, c, d = struct.unpack("<5i" if sys.byteorder == "little" else ">5i", matrix[:20])
    if b == c == 0 and abs(a) == abs(d) == _DISPLAY_MATRIX_ONE:
        return _Orientation(flip_x=a < 0, flip_y=d < 0)
    if a == d == 0 and abs(b) == abs(c) == _DISPLAY_MATRIX_ONE:
        return _Orientation(is_transposed=True, flip_x=c < 0, flip_y=b < 0)
    raise VideoError(
        f"{address} has a rotation that is no quarter turn (display matrix {a} {b} {c} {d}"
        " / 65536): re-encode it upright"
    )


def _upright(rgb: UInt8Array, orientation: _Orientation) -> UInt8Array:
    if orientation.is_transposed:
        rgb = rgb.swapaxes(0, 1)
    step_y, step_x = -1 if orientation.flip_y else 1, -1 if orientation.flip_x else 1
    return np.ascontiguousarray(rgb[::step_y, ::step_x])


def _reason(error: BaseException) -> str:
    """Return FFmpeg's message without number and address (it may hold a password)."""
    text = getattr(error, "strerror", None) or str(error)
    return re.sub(r"^\[Errno -?\d+\] ", "", str(text)).split(": '")[0]
