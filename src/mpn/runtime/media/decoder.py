"""Decode one file, camera or network stream with FFmpeg, and number its frames."""

from __future__ import annotations

import errno
import re
import struct
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from PIL import Image

from mpn._common.closeable import Closeable
from mpn._common.cores import limited_cores
from mpn._common.file_kinds import kind_of_file
from mpn.errors import VideoError
from mpn.runtime.media.truncation import has_tag_beyond_end, is_truncated
from mpn.runtime.media.video_images import IMAGE_SUFFIXES
from mpn.types import Frame, UInt8Array

_OPEN_TIMEOUT_S = 10.0
_READ_TIMEOUT_S = 10.0
"""For cameras and network streams: a longer wait ends the video."""

MOST_PIXELS = 178_956_970
"""Of a frame: Pillow's limit for an image file. FFmpeg's is 268 million, and a file of some kB can
state any size; decoders hold several frames of it."""
_LONGEST_SIDE = 65536
_most_pixels = MOST_PIXELS


def limit_pixels(most: int) -> None:
    """Lower the largest frame of videos and images that this process reads.

    Args:
        most: Pixels.
    """
    global _most_pixels
    _most_pixels = min(most, MOST_PIXELS)
    Image.MAX_IMAGE_PIXELS = _most_pixels // 2  # Pillow raises above twice this number


def _probe_limit() -> dict[str, str]:
    """Return the limit while FFmpeg finds the size, which it rounds up to 64 px."""
    return {"max_pixels": str(_most_pixels + 64 * _LONGEST_SIDE)}


_METADATA_ERRORS = "replace"
"""Titles and names of tracks are not used, and need not be UTF-8, although PyAV decodes them."""

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

_MOST_THREADS = 16  # as FFmpeg
_MAX_BAD_PACKETS = 250
"""Consecutive bad packets (ten seconds at 25 fps) after which a live stream ends."""

_DISPLAY_MATRIX_ONE = 1 << 16
"""The display matrix holds 16.16 fixed-point numbers (ISO/IEC 14496-12, 6.2.2)."""


_FEWEST_INTERVALS = 5
"""Equal intervals between frames before a gap, without which the rate may be variable."""

_INTERVAL_TOLERANCE = Fraction(1, 100)
_GAP = 2 - _INTERVAL_TOLERANCE


class Gaps:
    """Missing frames of a video of constant frame rate, found by their times.

    Attributes:
        found: (index of the frame before a gap, about how many frames are missing).
    """

    def __init__(self, tick_s: Fraction) -> None:
        self.found: list[tuple[int, int]] = []
        self._tick_s = tick_s
        self._last_s: Fraction | None = None
        self._first_s = Fraction(0)
        self._count = 0
        self._is_constant = True

    def add(self, index: int, pts_s: Fraction) -> None:
        """Add the time of the next frame in seconds."""
        last_s, self._last_s = self._last_s, pts_s
        if last_s is None:
            self._first_s = pts_s
            return
        if not self._is_constant:
            return
        step_s = pts_s - last_s
        if self._count:
            mean_s = (last_s - self._first_s) / self._count
            # Containers round times to their ticks, Matroska to milliseconds.
            tolerance_s = mean_s * _INTERVAL_TOLERANCE + self._tick_s
            if abs(step_s - mean_s) > tolerance_s:
                if self._count < _FEWEST_INTERVALS or step_s < _GAP * mean_s:
                    self._is_constant = False
                    self.found.clear()
                    return
                self.found.append((index - 1, round(step_s / mean_s) - 1))
                self._first_s += step_s - mean_s
        self._count += 1


@dataclass(frozen=True)
class Decoded:
    """A decoded frame before its conversion to RGB.

    Attributes:
        index: Index of the frame in its source.
        picture: The frame of PyAV.
        pts_s: Presentation time in seconds.
    """

    index: int
    picture: Any
    pts_s: Fraction


class StreamDecoder(Closeable):
    """The film of an FFmpeg input, decoded from its beginning.

    Args:
        url: The address for FFmpeg.
        address: The address for messages and reports, without a password.
        container_format: FFmpeg's input format for devices; None to detect it.
        is_live: Camera or stream: continue after a bad packet.

    Attributes:
        container: The container of PyAV.
        stream: The film in it.
        rate: Average frame rate.
        decoded: Number of frames decoded so far.
        concealed: Indices of damaged frames that are used.
        gaps: Gaps in the times of the frames.
        largest: Largest value so far of a film with 16 bits per value; None for others.
        orientation: How stored pixels become upright, known after the first frame.

    Raises:
        VideoError: If it cannot be opened, or has no film.
    """

    def __init__(
        self,
        url: str,
        *,
        address: str,
        container_format: str | None = None,
        is_live: bool = False,
    ) -> None:
        self._url, self._shown, self._live = url, address, is_live
        self.decoded = 0
        self.concealed: list[int] = []
        self.largest: int | None = None
        self._awaited: dict[int, bool] = {}
        """Times of packets whose frame was not decoded yet; whether it is a key frame."""
        self._next_pts_s = Fraction(0)
        self.orientation = Orientation()
        self.container = _open_container(url, address, container_format, is_live)
        try:
            self.stream = _video_stream(self.container, address)
            self.rate = _frame_rate(self.stream)
            self.gaps = Gaps(Fraction(self.stream.time_base))
            self._is_counted = (
                not is_live
                and self.stream.codec_context.name
                in _COUNTED_CODECS.get(self.container.format.name.split(",")[0], ())
            )
        except BaseException:
            self.container.close()
            raise

    def close(self) -> None:
        """Close the container. A second call does nothing."""
        self.container.close()

    def decode(self) -> Generator[Decoded, None, None]:
        """Yield all frames from 0; raise VideoError if decoding stops before the end."""
        held: Any = None  # a damaged frame is used only if another frame is after it
        damage: BaseException | None = None
        reason = ""
        try:
            for decoded in self._decode_packets():
                if held is not None:
                    yield self._numbered(held)
                held = None
                if self._is_frame_lost(decoded):
                    reason = "a frame is lost" if self.decoded else "its first frame is damaged"
                    break
                if decoded.is_corrupt and not self._live:
                    held = decoded
                else:
                    yield self._numbered(decoded)
        except (av.error.FFmpegError, OSError) as error:
            damage, reason = error, _reason(error)
        if not reason and self._is_frame_lost(None):
            reason = "a frame is lost"
        if not reason and (held is not None or self._is_cut()):
            reason = "the file ends early"
        if not reason:
            return
        if self.decoded == 0:
            raise VideoError(
                f"{self._shown} holds no frame that can be decoded ({reason})"
            ) from damage
        if self._live:
            raise VideoError(
                f"{self._shown} gave no frame after frame {self.decoded - 1} ({reason})"
            ) from damage
        raise VideoError(
            f"{self._shown} cannot be decoded beyond frame {self.decoded - 1} ({reason}): "
            "the video is damaged or was cut short"
        ) from damage

    def _is_cut(self) -> bool:
        """Return whether the file is cut and its index lists more frames."""
        if self._live or 0 < self.stream.frames <= self.decoded:
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
            return self.decoded > 0 and bool(self._awaited)
        self._awaited.pop(decoded.pts, None)
        before = [pts for pts in self._awaited if pts < decoded.pts]
        are_keys = [self._awaited.pop(pts) for pts in before]
        return any(are_keys) if self.decoded == 0 else bool(before)

    def _decode_packets(self) -> Iterator[Any]:
        bad_in_a_row = 0
        for packet in self.container.demux(self.stream):
            is_counted = self._is_counted and packet.size and not packet.is_discard
            if is_counted and packet.pts is not None:
                self._awaited[packet.pts] = packet.is_keyframe
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                bad_in_a_row += 1
                # Recordings often start between two key frames, and no packet can be decoded yet.
                if (self._live or self.decoded == 0) and bad_in_a_row <= _MAX_BAD_PACKETS:
                    continue
                # The decoder threads still hold complete frames from before the bad packet.
                yield from self._flush()
                raise
            bad_in_a_row = 0
            yield from frames

    def _flush(self) -> Iterator[Any]:
        try:
            yield from self.stream.decode(None)
        except av.error.FFmpegError:
            return

    def decode_from(self, pts: int) -> Generator[Any, None, None]:
        """Seek to the key frame at ``pts``, and yield PyAV's frames up to an error.

        The container decides where it arrives, so the caller compares the times.
        """
        try:
            self.container.seek(pts, stream=self.stream)
            for packet in self.container.demux(self.stream):
                yield from packet.decode()
        except (av.error.FFmpegError, OSError):
            return

    def frame_of(self, decoded: Decoded) -> Frame:
        """Convert a decoded frame to upright RGB."""
        rgb = _upright(decoded.picture.to_ndarray(format="rgb24"), self.orientation)
        index = decoded.index
        return Frame(index=index, rgb=rgb, pts_s=decoded.pts_s, name=f"{index:05d}")

    def _numbered(self, picture: Any) -> Decoded:
        if picture.pts is None:
            pts_s = self._next_pts_s
        else:
            pts_s = picture.pts * Fraction(picture.time_base or self.stream.time_base)
        self._next_pts_s = pts_s + 1 / self.rate
        index = self.decoded
        self.decoded += 1
        self.gaps.add(index, pts_s)
        if picture.is_corrupt:
            self.concealed.append(index)
        if (value := _largest_value(picture)) is not None:
            self.largest = max(value, self.largest or 0)
        if index == 0:
            # Once: PyAV's side data and its frame refer to each other. Reading it for each frame
            # would keep all frames until the next garbage collection (12 MB each at 4K).
            self.orientation = _orientation(picture, self._shown)
        return Decoded(index, picture, pts_s)


def open_file_container(path: Path | str) -> Any:
    """Open a file with FFmpeg, without any other file or address that it names.

    Raises:
        OSError: If it cannot be opened, or its format is none of those that are read.
    """
    url = str(path)
    if not url.lower().startswith("file:") or Path(url).is_file():
        url = f"file:{url}"  # FFmpeg takes the part before a colon for a protocol
    if has_tag_beyond_end(Path(url.removeprefix("file:"))):
        raise OSError(errno.EBADMSG, "a tag in it is longer than the file")
    return av.open(
        url,
        options={
            "format_whitelist": ",".join(_CONTAINERS),
            "protocol_whitelist": "file",
            **_probe_limit(),
        },
        metadata_errors=_METADATA_ERRORS,
    )


def _open_container(url: str, address: str, container_format: str | None, is_live: bool) -> Any:
    is_remote = is_live or not _is_local(url)
    try:
        if not is_remote:
            return open_file_container(url)
        return av.open(
            url,
            format=container_format,
            options={} if container_format else {**_address_options(url), **_probe_limit()},
            metadata_errors=_METADATA_ERRORS,
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
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > _most_pixels:
        raise VideoError(
            f"{address} has frames of {width}x{height} (width x height), more than the "
            f"{_most_pixels} pixels that are read: scale it down"
        )
    # A later header may state another size. FFmpeg compares sizes rounded up to its alignment.
    rounded = -(-width // 64) * 64 * -(-height // 64) * 64
    stream.codec_context.options = {"max_pixels": str(max(_most_pixels, rounded))}
    stream.thread_type = "AUTO"
    cores = limited_cores()
    if cores is not None:  # FFmpeg ignores control groups; the number is otherwise its own
        stream.codec_context.thread_count = 1 if cores == 1 else min(cores + 1, _MOST_THREADS)
    return stream


def _frame_rate(stream: Any) -> Fraction:
    """Return the exact average rate, or FFmpeg's estimate from the time stamps."""
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate:
            return Fraction(rate)
    return _FALLBACK_FPS


@dataclass(frozen=True)
class Orientation:
    """The conversion of stored pixels to upright ones: transpose, then flip."""

    is_transposed: bool = False
    flip_x: bool = False
    flip_y: bool = False


def _largest_value(picture: Any) -> int | None:
    """Return the largest value of a picture with 16 bits per value, without alpha."""
    components = picture.format.components
    if not components or components[0].bits != 16:
        return None
    order = ">u2" if picture.format.is_big_endian else "<u2"
    values = len(components) if len(picture.planes) == 1 else 1
    largest = 0
    for plane in picture.planes[:3]:
        rows = np.frombuffer(plane, order).reshape(-1, plane.line_size // 2)
        used = rows[: plane.height, : plane.width * values].reshape(-1, values)
        largest = max(largest, int(used[:, :3].max()))
    return largest


def _orientation(decoded: Any, address: str) -> Orientation:
    """Read the display matrix: quarter turns and flips, as phones record them."""
    # By key: iterating gives entries in PyAV up to 18 and their types from 19 on.
    entry = decoded.side_data.get(SideDataType.DISPLAYMATRIX)
    if entry is None:
        return Orientation()
    matrix = bytes(entry)
    # x' = a x + c y, y' = b x + d y, rows (a, b, u), (c, d, v), (x, y, w).
    a, b, _, c, d = struct.unpack("<5i" if sys.byteorder == "little" else ">5i", matrix[:20])
    if b == c == 0 and abs(a) == abs(d) == _DISPLAY_MATRIX_ONE:
        return Orientation(flip_x=a < 0, flip_y=d < 0)
    if a == d == 0 and abs(b) == abs(c) == _DISPLAY_MATRIX_ONE:
        return Orientation(is_transposed=True, flip_x=c < 0, flip_y=b < 0)
    raise VideoError(
        f"{address} has a rotation that is no quarter turn (display matrix {a} {b} {c} {d}"
        " / 65536): re-encode it upright"
    )


def _upright(rgb: UInt8Array, orientation: Orientation) -> UInt8Array:
    if orientation.is_transposed:
        rgb = rgb.swapaxes(0, 1)
    step_y, step_x = -1 if orientation.flip_y else 1, -1 if orientation.flip_x else 1
    return np.ascontiguousarray(rgb[::step_y, ::step_x])


def _reason(error: BaseException) -> str:
    """Return FFmpeg's message without number and address (it may hold a password)."""
    text = getattr(error, "strerror", None) or str(error)
    return re.sub(r"^\[Errno -?\d+\] ", "", str(text)).split(": '")[0]
