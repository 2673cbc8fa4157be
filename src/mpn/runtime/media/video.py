"""Open videos: files, folders of images, cameras and network streams.

All frames are upright, RGB, uint8 and of one size, and have an exact time. The length in the header
of a container is only a hint.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit, urlunsplit

from mpn._common.closeable import Closeable
from mpn._common.validation import check_int
from mpn.errors import InputError, VideoError
from mpn.types import Frame

DEFAULT_SEQUENCE_FPS = Fraction(24)
"""Frame rate of a folder of images, which has none; DAVIS uses 24."""

LOWEST_RATE = Fraction(1, 100_000)
HIGHEST_RATE = Fraction(100_000)
"""Frame rates that encoders and the time bases of containers take."""

_MOST_TERM = (1 << 31) - 2
"""FFmpeg keeps both terms of a rate in 31 bits; one less, because the denominator is rounded."""

Decode = Literal["auto", "cpu", "nvdec"]
"""Decoder of video files; see :func:`mpn.runtime.media.video_nvdec.choose_decoder`."""

DECODERS: tuple[Decode, ...] = get_args(Decode)

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_CAMERA = re.compile(r"^\d{1,3}$")


class EndsEarlyError(VideoError):
    """A video has fewer frames than are needed.

    Args:
        address: The video, for the message.
        count: Its number of frames.
        index: The frame that does not exist.
    """

    def __init__(self, address: str, count: int, index: int) -> None:
        super().__init__(
            f"{address} has {count} frame{'' if count == 1 else 's'}, numbered from 0: there is no "
            f"frame {index}"
        )
        self.count = count


class VideoSource(Closeable):
    """An iterator over the frames of a video in presentation order.

    Open one with :func:`open_video`. Opening decodes the first frame, so ``size_hw`` is exact and
    an unreadable video raises early. The frames can be read once; open the source again to repeat.

    Attributes:
        name: Stem of the file or folder, or a name for the camera or stream.
        address: The address for messages and reports, without a password.
        size_hw: (height, width) in pixels of all frames, upright.
        fps: Average frame rate; ``Frame.pts_s`` is the exact time of each frame.
        time_base: Unit in seconds; each ``Frame.pts_s`` is a multiple of it.
        frame_count_hint: Estimated number of frames from start to end, only for progress bars;
            None if unknown.
        end_index: Index after the last frame, or an upper bound of it: the requested end. None if
            unknown.
        is_live: Whether this is a camera or stream, without a known end.
        decoder: ``"cpu"`` or ``"nvdec"``.
        sample_aspect_ratio: Shown width of a pixel by its height, upright; None: 1 or unknown.
        colour: Codes (primaries, transfer) of ISO/IEC 23091-2 of the pixels; None: unknown.
        decoder_note: The reason if ``decode="auto"`` does not use NVDEC on a GPU; otherwise empty.
    """

    decoder = "cpu"
    decoder_note = ""
    sample_aspect_ratio: Fraction | None = None
    colour: tuple[int, int] | None = None

    def __init__(
        self,
        *,
        name: str,
        address: str,
        first_frame: Frame,
        fps: Fraction,
        time_base: Fraction,
        frame_count_hint: int | None,
        end_index: int | None,
        is_live: bool = False,
    ) -> None:
        self.name = name
        self.address = address
        self.size_hw: tuple[int, int] = first_frame.rgb.shape[:2]
        self.fps = fps
        self.time_base = time_base
        self.frame_count_hint = frame_count_hint
        self.end_index = end_index
        self.is_live = is_live
        self._first: Frame | None = first_frame

    @property
    def first_frame(self) -> Frame:
        """The first frame of the iteration; reading it does not consume it.

        Raises:
            VideoError: If the iteration has begun.
        """
        if self._first is None:
            raise VideoError(f"{self.address} was already read: open it again")
        return self._first

    def __iter__(self) -> Iterator[Frame]:
        """Iterate over the frames.

        Raises:
            VideoError: If a frame cannot be decoded or has another size, after all frames before
                it.
        """
        first = self.first_frame
        self._first = None
        yield first
        del first  # a generator would keep it alive to the end of the video
        for frame in self._frames_after_first():
            yield self._check_size(frame)

    def backwards(self, first: int, end: int) -> Iterator[Frame]:
        """Yield frames ``end - 1`` to ``first``, in bounded memory.

        They are those of the iteration, byte for byte.

        Independent of the iteration, also in another thread, and of the requested start and end.
        One call at a time.

        Raises:
            EndsEarlyError: If there is no frame ``end - 1``.
            VideoError: If the source is live, or a frame cannot be decoded.
        """
        raise no_way_back(self.address)

    def host_frame(self, frame: Frame) -> Frame:
        """Return a frame of this source with its pixels in a NumPy array."""
        return frame

    @property
    def warnings(self) -> list[str]:
        """Lines for the user about frames that are used although they are damaged."""
        return []

    @abstractmethod
    def _frames_after_first(self) -> Iterator[Frame]:
        """Yield the frames after the first one, up to the requested end."""

    @abstractmethod
    def _release(self) -> None:
        """Close files and connections; may be called again."""

    def close(self) -> None:
        """Release the source. A second call does nothing."""
        self._first = None
        self._release()

    def _check_size(self, frame: Frame) -> Frame:
        got_hw = frame.rgb.shape[:2]
        if got_hw != self.size_hw:
            raise VideoError(
                f"{self.address}: frame {frame.index} ({frame.name}) is {got_hw[1]}x{got_hw[0]} "
                f"but the first is {self.size_hw[1]}x{self.size_hw[0]} (width x height): "
                "all frames must have one size"
            )
        return frame


def open_video(
    source: str | Path,
    *,
    start: int | None = None,
    end: int | None = None,
    fps: Fraction | None = None,
    decode: Decode = "cpu",
    device: int | None = None,
) -> VideoSource:
    """Open a video.

    Args:
        source: A file; a folder of images, in natural order (``2.jpg`` before ``10.jpg``); a
            pattern (``shots/%05d.jpg``); a camera index (``"0"``); an ``rtsp://`` or ``http://``
            address.
        start: Index of the first frame, from 0. A file is decoded up to it, because seeking is not
            exact in all containers.
        end: Index of the frame to stop before (half-open).
        fps: Frame rate of a folder or pattern of images; :data:`DEFAULT_SEQUENCE_FPS` if None.
            Raises for videos, cameras and streams, which have a frame rate.
        decode: ``"cpu"``; ``"nvdec"``: on GPU ``device``, whose frames are arrays in its memory;
            ``"auto"``: NVDEC if ``device`` is given and NVDEC can decode the file.
        device: Index of the GPU that uses the frames.

    Returns:
        The open source, to be closed by the caller.

    Raises:
        InputError: If ``start``, ``end`` or ``fps`` are out of range, or NVDEC cannot be used.
        MissingExtraError: If ``decode`` is ``"nvdec"`` and PyNvVideoCodec is not installed.
        VideoError: If the source does not exist or no frame can be decoded.
    """
    try:
        video = _opened(source, start=start, end=end, fps=fps)
    except OSError as error:  # such as a name that is too long
        raise VideoError(
            f"cannot open {redacted(str(source))}: {error.strerror or error}"
        ) from error
    if decode == "cpu":
        return video
    from mpn.runtime.media.video_nvdec import choose_decoder

    try:
        return choose_decoder(video, decode, device)
    except BaseException:
        video.close()
        raise


def _opened(
    source: str | Path, *, start: int | None, end: int | None, fps: Fraction | None
) -> VideoSource:
    text = str(source)
    if not text:  # a path of no text is the current folder
        raise VideoError("the video is an empty text: give a file, a folder or an address")
    first, last = check_frame_range(start, end)
    path = Path(text)
    # An existing file named "0" or "a%d.mp4" is a file, not a camera or a pattern.
    if path.is_dir() or (not path.exists() and "%" in path.name and not _URL.match(text)):
        from mpn.runtime.media.video_images import (
            ImageSequence,
            images_from_folder,
            images_from_pattern,
        )

        rate = _checked_rate(DEFAULT_SEQUENCE_FPS if fps is None else Fraction(fps))
        listing = images_from_folder if path.is_dir() else images_from_pattern
        return ImageSequence(path, listing(path), start=first, end=last, fps=rate)

    if fps is not None:
        raise InputError(
            f"a frame rate can only be given for images: {redacted(text)} states its own"
        )
    from mpn.runtime.media.video_file import VideoStream, camera_address

    if path.is_file():
        from mpn.runtime.media.video_webp import AnimatedWebp, is_webp

        if is_webp(path):
            return AnimatedWebp(path, start=first, end=last)
        return VideoStream(text, address=text, name=path.stem, start=first, end=last)
    if _CAMERA.match(text):
        device, container_format = camera_address(int(text))
        return VideoStream(
            device,
            address=f"camera {text}",
            name=f"camera{text}",
            container_format=container_format,
            is_live=True,
            start=first,
            end=last,
        )
    if _URL.match(text):
        parts = urlsplit(text)
        return VideoStream(
            text,
            address=redacted(text),
            name=Path(parts.path).stem or parts.hostname or "stream",
            is_live=parts.scheme.lower() not in {"http", "https", "file"},
            start=first,
            end=last,
        )
    raise VideoError(
        f"no such video: '{text}' is neither a file, a folder of images, a pattern like "
        "'frames/%05d.jpg', a camera index nor an address like rtsp://host/stream"
    )


def _checked_rate(rate: Fraction) -> Fraction:
    """Return the frame rate of images in terms of 31 bits.

    Raises:
        InputError: If it is out of bounds.
    """
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise InputError(
            f"the frame rate must be above 0, from {LOWEST_RATE} to {HIGHEST_RATE} frames per "
            "second"
        )
    return rate.limit_denominator(int(_MOST_TERM / max(rate, Fraction(1))))


def frame_count_hint(source: str) -> int | None:
    """Return the number of frames by the header or the list of images.

    No frame is decoded.

    Args:
        source: See :func:`open_video`.

    Returns:
        None if the source cannot be read or does not state it. The number may be wrong.
    """
    path = Path(source)
    try:
        if path.is_file():
            return _count_in_header(path)
        from mpn.runtime.media.video_images import images_from_folder, images_from_pattern

        listing = images_from_folder if path.is_dir() else images_from_pattern
        return len(listing(path))
    except (OSError, ValueError, VideoError):
        return None


def _count_in_header(path: Path) -> int | None:
    import av

    with av.open(path) as container:
        if not container.streams.video:
            return None
        stream = container.streams.video[0]
        if stream.frames:
            return int(stream.frames)
        rate = stream.average_rate
        if container.duration is None or rate is None:
            return None
        return round(Fraction(container.duration, av.time_base) * Fraction(rate))


def is_address(source: str) -> bool:
    """Return whether a source is a camera or an address, which cannot be read twice."""
    if Path(source).exists():
        return False
    return bool(_CAMERA.match(source) or _URL.match(source))


def redacted(address: str) -> str:
    """Remove user and password from an address, for messages and reports."""
    if not _URL.match(address):
        return address
    parts = urlsplit(address)
    if "@" not in parts.netloc:
        return address
    return urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))


def no_way_back(address: str) -> VideoError:
    """Return the error for a source that cannot be read backwards."""
    return VideoError(
        f"{address} is live and cannot be read backwards: give the mask of its first frame, or "
        "record it to a file first"
    )


def start_beyond_end(address: str, start: int, count: int) -> VideoError:
    """Return the error for a ``start`` after the last frame."""
    return VideoError(
        f"{address} has {count} frame{'' if count == 1 else 's'}, numbered from 0: "
        f"cannot start at frame {start}"
    )


def check_frame_range(start: int | None, end: int | None) -> tuple[int, int | None]:
    """Return the first frame, and the frame to stop before.

    Raises:
        InputError: If they are no frame indices, or ``end`` is not above ``start``.
    """
    first = 0 if start is None else check_int("the start", start, least=0, kind="a frame index")
    if end is None:
        return first, None
    last = check_int("the end", end, kind="a frame index")
    if last <= first:
        raise InputError(
            f"the end must be above the start (frames start..end-1 are used), got {first}..{last}"
        )
    return first, last
