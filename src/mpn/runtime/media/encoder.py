"""Encode pictures to a video file with the exact times of their source."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av

from mpn._common.files import create_temporary, output_error, output_errors, publish
from mpn.errors import OutputError
from mpn.runtime.media.video import VideoSource
from mpn.types import UInt8Array

_LIMITED_RANGE: Final = 1
"""FFmpeg's AVCOL_RANGE_MPEG."""


@dataclass(frozen=True)
class Colour:
    """Codes of ISO/IEC 23091-2 for the colours of a video; the default is BT.709.

    Attributes:
        primaries: Colour primaries.
        transfer: Transfer characteristics.
        matrix: Matrix coefficients.
    """

    primaries: int = 1
    transfer: int = 1
    matrix: int = 1


BT709: Final = Colour()

_MATRICES = {5: 6, 6: 6, 9: 9}
"""Primaries (BT.601 of 625 and 525 lines, BT.2020) -> their matrix; BT.709 for all others."""

_SAME_CURVES = {6: 1, 14: 1, 15: 1}
"""Transfer of BT.601 and BT.2020 -> that of BT.709, which is the same curve."""


def colour_of(video: VideoSource) -> Colour:
    """Return the colours to tag a file with that has the pixels of a video."""
    if video.colour is None:
        return BT709
    primaries, transfer = video.colour
    return Colour(primaries, _SAME_CURVES.get(transfer, transfer), _MATRICES.get(primaries, 1))


@dataclass(frozen=True, kw_only=True)
class VideoFormat:
    """Container and codec of a video file.

    Attributes:
        container: FFmpeg's name of the container.
        codec: FFmpeg's name of the encoder.
        pix_fmt: FFmpeg's name of the pixel format.
        threads: Threads of the encoder.
        key_frame_every: Largest distance of two key frames; None for the encoder's own.
        codec_options: Options of the encoder.
        container_options: Options of the container.
    """

    container: str
    codec: str
    pix_fmt: str
    threads: int
    key_frame_every: int | None = None
    codec_options: Mapping[str, str] = field(default_factory=dict)
    container_options: Mapping[str, str] = field(default_factory=dict)


def picture_from_rgb(rgb: UInt8Array, pix_fmt: str, colour: Colour = BT709) -> Any:
    """Convert pixels to a YUV picture of limited range.

    Args:
        rgb: (H, W, 3) uint8.
        pix_fmt: FFmpeg's name of the pixel format.
        colour: The matrix.

    Returns:
        A picture of PyAV. An alpha plane is opaque.
    """
    return av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
        format=pix_fmt,
        dst_colorspace=colour.matrix,
        dst_color_range=_LIMITED_RANGE,
        # With more, FFmpeg 8 writes 8 wrong pixels now and then where the slices of two threads
        # meet, in formats of 10 bits. One thread takes no longer while others are at work.
        threads=1,
    )


class _EncodedFile:
    """A file that PyAV writes to, which keeps the first error instead of raising it.

    PyAV keeps a file open that it opened by its name and wrote no packet to, and the disk space of
    a discarded overlay is then not free. It prints errors of a Python file that it cannot raise.

    Args:
        path: An existing file.

    Attributes:
        name: Address of the file. FFmpeg reads it again to move the index to the front.
        error: The first error; nothing is written after it.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b", buffering=0)
        self.name = f"file:{path}"
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write all of ``data``."""
        rest = memoryview(data)
        while rest and self.error is None:
            try:
                rest = rest[self._file.write(rest) :]
            except OSError as error:
                self.error = error
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move the position."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class VideoEncoder:
    """Encode pictures to a file, with the times of the source.

    Args:
        path: The file. It gets this name in :meth:`close`.
        video_format: Container and codec.
        size_hw: (height, width) of the pictures.
        fps: Average frame rate, for the encoder's rate control.
        time_base: Unit in seconds; each frame time is a multiple of it.
        sample_aspect_ratio: Of the source, so that players show the same shape; None: 1.
        colour: Tags of the file. Its range is limited.

    Raises:
        OutputError: If the file cannot be created, or the encoder refuses the settings.
    """

    def __init__(
        self,
        path: Path,
        video_format: VideoFormat,
        *,
        size_hw: tuple[int, int],
        fps: Fraction,
        time_base: Fraction,
        sample_aspect_ratio: Fraction | None = None,
        colour: Colour = BT709,
    ) -> None:
        self._path = path
        self._time_base, self._colour = time_base, colour
        self._first_pts_s: Fraction | None = None
        self._last_pts = -1
        with output_errors(path):  # PyAV would raise only at the first packet
            self._temporary = create_temporary(path)
            self._file = _EncodedFile(self._temporary)
        try:
            self._container = av.open(
                self._file,
                "w",
                format=video_format.container,
                options=dict(video_format.container_options),
            )
        except OSError as error:
            self._remove()
            raise output_error(path, error) from error
        try:
            self._stream: Any = self._container.add_stream(
                video_format.codec, rate=fps, options=dict(video_format.codec_options)
            )
            self._configure(video_format, size_hw)
            if sample_aspect_ratio is not None:
                self._stream.codec_context.sample_aspect_ratio = sample_aspect_ratio
        except (av.error.FFmpegError, OverflowError, ValueError) as error:
            self.discard()
            raise _encoding_error(path, error) from error
        except BaseException:
            self.discard()
            raise

    def _configure(self, video_format: VideoFormat, size_hw: tuple[int, int]) -> None:
        stream = self._stream
        stream.height, stream.width = size_hw
        stream.pix_fmt = video_format.pix_fmt
        context = stream.codec_context
        context.time_base = self._time_base
        context.thread_count = video_format.threads
        if video_format.key_frame_every is not None:
            context.gop_size = video_format.key_frame_every
        # Without these tags players choose the colour space by the frame size.
        context.colorspace = self._colour.matrix
        context.color_primaries, context.color_trc = self._colour.primaries, self._colour.transfer
        context.color_range = _LIMITED_RANGE

    def encode(self, picture: Any, pts_s: Fraction) -> None:
        """Encode one picture of PyAV.

        Args:
            picture: Of the pixel format and the size.
            pts_s: Time of its frame in the source, in seconds.

        Raises:
            OutputError: If it cannot be encoded or written.
        """
        picture.pts = self._next_pts(pts_s)
        picture.time_base = self._time_base
        # Some encoders write the tags of the picture into the stream, not those of the context.
        picture.colorspace, picture.color_range = self._colour.matrix, _LIMITED_RANGE
        picture.color_primaries, picture.color_trc = self._colour.primaries, self._colour.transfer
        self._encode(picture)

    def _next_pts(self, pts_s: Fraction) -> int:
        """Return the time since the first frame in ticks, always increasing.

        Damaged sources repeat times, which a file must not.
        """
        if self._first_pts_s is None:
            self._first_pts_s = pts_s
        pts = round((pts_s - self._first_pts_s) / self._time_base)
        self._last_pts = max(pts, self._last_pts + 1)
        return self._last_pts

    def _encode(self, picture: Any) -> None:
        try:
            self._container.mux(self._stream.encode(picture))
        except (av.error.FFmpegError, OSError) as error:
            raise _encoding_error(self._path, error) from error
        self._check_written()

    def _check_written(self) -> None:
        if self._file.error is not None:
            raise output_error(self._path, self._file.error) from self._file.error

    def close(self) -> None:
        """Finish the file and rename it to its final name.

        Raises:
            OutputError: If this fails. Call :meth:`discard` then.
        """
        self._encode(None)
        try:
            self._container.close()
        except (av.error.FFmpegError, OSError) as error:
            raise _encoding_error(self._path, error) from error
        self._check_written()
        with output_errors(self._path):
            self._file.close()
            publish(self._temporary, self._path, durable=True)

    def discard(self) -> None:
        """Remove the unfinished file."""
        try:
            self._container.close()
        except (av.error.FFmpegError, OSError):
            pass  # the file is deleted anyway
        finally:
            self._remove()

    def _remove(self) -> None:
        with suppress(OSError):  # what is buffered need not be written
            self._file.close()
        self._temporary.unlink(missing_ok=True)


def _encoding_error(path: Path, error: Exception) -> OutputError:
    if isinstance(error, OSError):
        return output_error(path, error)
    return OutputError(f"cannot encode {path}: {getattr(error, 'strerror', None) or error}")
