"""Write the video with its masks as an H.264 file for browsers."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import cv2
import numpy as np

from mpn._common.files import create_temporary, output_error, output_errors, publish
from mpn._common.h264 import H264_ENCODERS, h264_encoder
from mpn.errors import OutputError
from mpn.masks import DAVIS_PALETTE
from mpn.types import Frame, StepResult, UInt8Array

DEFAULT_OPACITY = 0.5

_ENCODER_THREADS = 2
"""Encodes 1080p as fast as the networks run, and leaves the other cores to them."""

_KEY_FRAME_EVERY_S = 2
"""Keeps seeking in a browser fast."""

_BT709: Final = 1
_LIMITED_RANGE: Final = 1
"""Codes of ISO/IEC 23091-2 in FFmpeg's numbers (AVCOL_SPC_BT709, AVCOL_RANGE_MPEG)."""


def _overlay_palette() -> UInt8Array:
    """Scale the DAVIS palette to full brightness: its first colours are too dark."""
    brightest = np.maximum(DAVIS_PALETTE.max(axis=1, keepdims=True), 1)
    palette: UInt8Array = (DAVIS_PALETTE * (255.0 / brightest)).round().astype(np.uint8)
    return palette


_OVERLAY_PALETTE = _overlay_palette()


def draw_overlay(
    rgb: UInt8Array, labels: UInt8Array, *, opacity: float = DEFAULT_OPACITY
) -> UInt8Array:
    """Tint and outline each object in its colour.

    Args:
        rgb: (H, W, 3) uint8.
        labels: (H, W) uint8 ids.
        opacity: Opacity of the tint, 0..1. The outline is opaque, one pixel inside the object.

    Returns:
        (H, W, 3) uint8, a new array.
    """
    drawn = rgb.copy()
    x, y, width, height = cv2.boundingRect(labels)
    if width == 0:
        return drawn
    # One pixel larger if the frame allows it: the outline needs the neighbouring labels.
    window = (slice(max(y - 1, 0), y + height + 1), slice(max(x - 1, 0), x + width + 1))
    inside = np.ascontiguousarray(labels[window])
    colours = _OVERLAY_PALETTE[inside]
    tinted = cv2.addWeighted(drawn[window], 1 - opacity, colours, opacity, 0)
    target = np.ascontiguousarray(drawn[window])
    cv2.copyTo(tinted, (inside > 0).view(np.uint8), target)
    # A pixel is on the outline if its 3x3 neighbourhood has another label. Grey erosion and
    # dilation by a flat square are the smallest and the largest label of it.
    square = np.ones((3, 3), np.uint8)
    padded = cv2.copyMakeBorder(inside, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    edge = cv2.erode(padded, square) != cv2.dilate(padded, square)
    cv2.copyTo(colours, (edge[1:-1, 1:-1] & (inside > 0)).view(np.uint8), target)
    drawn[window] = target
    return drawn


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


class OverlayWriter:
    """Write ``overlay.mp4``: H.264, yuv420p, with the times of the source.

    An odd height or width is padded with the last row or column, because 4:2:0 needs even sides.

    Args:
        path: The file. It gets this name in :meth:`close`.
        size_hw: (height, width) of the frames.
        fps: Average frame rate, for the encoder's rate control.
        time_base: Unit in seconds; each frame time is a multiple of it.
        sample_aspect_ratio: Of the source, so that players show the same shape; None: 1.

    Raises:
        OutputError: If the file cannot be created or no encoder is available.
    """

    def __init__(
        self,
        path: Path,
        *,
        size_hw: tuple[int, int],
        fps: Fraction,
        time_base: Fraction,
        sample_aspect_ratio: Fraction | None = None,
    ) -> None:
        self._path = path
        self._time_base = time_base
        self._first_pts_s: Fraction | None = None
        self._last_pts = -1
        encoder = h264_encoder()
        with output_errors(path):  # PyAV would raise only at the first packet
            self._temporary = create_temporary(path)
            self._file = _EncodedFile(self._temporary)
        try:
            self._container = av.open(
                self._file,
                "w",
                format="mp4",
                # With the index at the front a browser starts before it has the whole file.
                options={"movflags": "+faststart"},
            )
        except OSError as error:
            self._remove()
            raise output_error(path, error) from error
        try:
            self._stream = self._container.add_stream(
                encoder, rate=fps, options=dict(H264_ENCODERS[encoder])
            )
            self._configure(size_hw, fps)
            if sample_aspect_ratio is not None:
                context: Any = self._stream.codec_context
                context.sample_aspect_ratio = sample_aspect_ratio
        except BaseException:
            self.discard()
            raise

    def _configure(self, size_hw: tuple[int, int], fps: Fraction) -> None:
        stream: Any = self._stream
        stream.height, stream.width = (side + side % 2 for side in size_hw)
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = self._time_base
        context.thread_count = _ENCODER_THREADS
        context.gop_size = max(1, round(fps * _KEY_FRAME_EVERY_S))
        # Without these tags players choose the colour space by the frame size.
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE

    def write(self, frame: Frame, result: StepResult) -> None:
        """Draw and encode one frame.

        Raises:
            OutputError: If it cannot be encoded or written.
        """
        drawn = draw_overlay(frame.rgb, result.labels)
        height, width = drawn.shape[:2]
        if height % 2 or width % 2:
            drawn = cv2.copyMakeBorder(drawn, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        picture = av.VideoFrame.from_ndarray(drawn, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED_RANGE
        )
        picture.pts = self._next_pts(frame.pts_s)
        picture.time_base = self._time_base
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
            raise _overlay_error(self._path, error) from error
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
            raise _overlay_error(self._path, error) from error
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


def _overlay_error(path: Path, error: Exception) -> OutputError:
    if isinstance(error, OSError):
        return output_error(path, error)
    return OutputError(f"cannot encode {path}: {getattr(error, 'strerror', None) or error}")
