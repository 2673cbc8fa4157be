"""Write the video with its masks as an H.264 file for browsers."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from mpn._common.h264 import H264_ENCODERS, h264_encoder
from mpn.errors import OutputError
from mpn.masks import DAVIS_PALETTE
from mpn.runtime.media.encoder import VideoEncoder, VideoFormat, picture_from_rgb
from mpn.types import Frame, StepResult, UInt8Array

DEFAULT_OPACITY = 0.5

_ENCODER_THREADS = 2
"""Encodes 1080p as fast as the networks run, and leaves the other cores to them."""

_KEY_FRAME_EVERY_S = 2
"""Keeps seeking in a browser fast."""


MAX_OVERLAY_SIDE_PX = 16384
"""Largest width and height of x264."""


_COLOURS: Final = (
    *("ff2020", "00e000", "ffe000", "4060ff", "ff00e0", "00e0ff", "ff8000", "a000c0"),
    *("00a0ff", "a0ffe0", "008060", "a04060", "ff4080", "00a020", "e0ffa0", "a06000"),
    *("ffa0a0", "e0c0ff", "20a0a0", "a080c0", "ffc080", "c0a000", "80c080", "a0c000"),
    *("c00020", "e08060", "c06060", "e080c0", "00ffa0", "00c0a0", "a060ff", "c04000"),
)
"""Colours of the ids 1 to 32. The first six have the hues of DAVIS. Each other one has the largest
CIEDE2000 distance to those before it, of a grid of bright and saturated colours of which less than
1 % of the pixels of photographs have a distance under 12; those with more contrast as a tint are
first. The smallest distance of two is 20 for the first 12, 17 for 20 and 13 for all."""


def _overlay_palette() -> UInt8Array:
    colours = np.array([list(bytes.fromhex(colour)) for colour in _COLOURS], np.uint8)
    palette = np.zeros_like(DAVIS_PALETTE)
    palette[1:] = colours[np.arange(len(palette) - 1) % len(colours)]
    palette.flags.writeable = False
    return palette


OVERLAY_PALETTE: Final[UInt8Array] = _overlay_palette()
"""(256, 3) uint8 RGB: the colour that an object is drawn in, repeated after 32 ids.

Many colours of the DAVIS palette, which is that of the mask files, are dark or nearly equal.
"""


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
    colours = cv2.applyColorMap(inside, OVERLAY_PALETTE[:, None])
    target = np.ascontiguousarray(drawn[window])
    tinted = cv2.addWeighted(target, 1 - opacity, colours, opacity, 0)
    cv2.copyTo(tinted, inside, target)
    # A pixel is on the outline if its 3x3 neighbourhood has another label: the largest and the
    # smallest label of it differ.
    square = np.ones((3, 3), np.uint8)
    edge = cv2.morphologyEx(inside, cv2.MORPH_GRADIENT, square, borderType=cv2.BORDER_REPLICATE)
    cv2.copyTo(colours, cv2.min(edge, inside), target)
    drawn[window] = target
    return drawn


def check_overlay_size(path: Path, size_hw: tuple[int, int]) -> None:
    """Check that the encoder takes frames of a size.

    Args:
        path: The file, for the message.
        size_hw: (height, width) of the frames.

    Raises:
        OutputError: If a side is too long.
    """
    if max(size_hw) > MAX_OVERLAY_SIDE_PX:
        raise OutputError(
            f"cannot encode {path}: the frames are {size_hw[1]}x{size_hw[0]} (width x height), and "
            f"H.264 takes sides up to {MAX_OVERLAY_SIDE_PX} px"
        )


class OverlayWriter:
    """Write ``overlay.mp4``: H.264, yuv420p, with the times of the source.

    An odd height or width is padded with the last row or column, because 4:2:0 needs even sides.

    Args:
        path: The file. It gets this name in :meth:`close`.
        size_hw: (height, width) of the frames.
        fps: See :class:`VideoEncoder`.
        time_base: See :class:`VideoEncoder`.
        sample_aspect_ratio: See :class:`VideoEncoder`.

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
        check_overlay_size(path, size_hw)
        encoder = h264_encoder()
        self._encoder = VideoEncoder(
            path,
            VideoFormat(
                container="mp4",
                # With the index at the front a browser starts before it has the whole file.
                container_options={"movflags": "+faststart"},
                codec=encoder,
                codec_options=H264_ENCODERS[encoder],
                pix_fmt="yuv420p",
                threads=_ENCODER_THREADS,
                key_frame_every=max(1, round(fps * _KEY_FRAME_EVERY_S)),
            ),
            size_hw=(size_hw[0] + size_hw[0] % 2, size_hw[1] + size_hw[1] % 2),
            fps=fps,
            time_base=time_base,
            sample_aspect_ratio=sample_aspect_ratio,
        )

    def write(self, frame: Frame, result: StepResult) -> None:
        """Draw and encode one frame.

        Raises:
            OutputError: If it cannot be encoded or written.
        """
        drawn = draw_overlay(frame.rgb, result.labels)
        height, width = drawn.shape[:2]
        if height % 2 or width % 2:
            drawn = cv2.copyMakeBorder(drawn, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        self._encoder.encode(picture_from_rgb(drawn, "yuv420p"), frame.pts_s)

    def close(self) -> None:
        """Finish the file and rename it to its final name.

        Raises:
            OutputError: If this fails. Call :meth:`discard` then.
        """
        self._encoder.close()

    def discard(self) -> None:
        """Remove the unfinished file."""
        self._encoder.discard()
