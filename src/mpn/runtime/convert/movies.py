"""Write videos for editors: ProRes 4444 with alpha, and a matte per object."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from mpn._common.cores import usable_cores
from mpn.errors import OutputError
from mpn.runtime.convert.conversion import Conversion
from mpn.runtime.convert.images import safe_names
from mpn.runtime.media.encoder import (
    BT709,
    Colour,
    VideoEncoder,
    VideoFormat,
    colour_of,
    picture_from_rgb,
)
from mpn.runtime.media.video import VideoSource
from mpn.types import Float32Array

_ENCODER = "prores_ks"
_VENDOR = "apl0"
"""Some editors open ProRes of no other vendor."""

_LARGEST = 1023
_BLACK, _GRAY, _WHITE = 64, 512, 940
"""10-bit levels of limited range; gray is no colour."""

_QUANTISER_UNIT = 118
"""FFmpeg's FF_QP2LAMBDA."""

_COLOUR_QUANTISER = 2
_MATTE_QUANTISER = 1
"""Fixed ones: the encoder's own rate control takes five times longer. On a clip of DAVIS the error
of the colours is 0.2 of 255 levels on average, 4 at most; that of mattes is 1.2 at most."""


def write_prores4444(conversion: Conversion, path: Path) -> None:
    """Write ProRes 4444 with straight alpha.

    The colours are those of the video, not multiplied by alpha, inside and outside of the objects.
    Alpha has 10 bits and is lossless; the colours are limited range, with the tags of the video.
    """
    with conversion.open_video() as video, ExitStack() as stack:
        colour = colour_of(video)
        encoder = stack.enter_context(
            _prores(path, video, "4444", "yuva444p10le", colour, _COLOUR_QUANTISER)
        )
        for entry, frame in conversion.read_frames(video):
            picture = picture_from_rgb(frame.rgb, "yuva444p10le", colour)
            alpha = _levels(conversion.alpha(entry), 0, _LARGEST)
            _plane(picture, 3)[:, : alpha.shape[1]] = alpha
            encoder.encode(picture, frame.pts_s)


def write_mattes(conversion: Conversion, folder: Path) -> None:
    """Write ``<object>.mov`` per object: white is the object, ProRes 422 HQ.

    All editors open it, unlike the lossless FFV1 and QuickTime Animation. H.264 of 4:2:0 in 8 bits
    blurs edges. Here the error is about one of 255 levels: a threshold at half gives the mask.
    """
    folder.mkdir()
    with conversion.open_video() as video, ExitStack() as stack:
        encoders = {
            k: stack.enter_context(
                _prores(folder / f"{name}.mov", video, "hq", "yuv422p10le", BT709, _MATTE_QUANTISER)
            )
            for k, name in safe_names(conversion.names).items()
        }
        for entry, frame in conversion.read_frames(video):
            for k, matte in conversion.mattes(entry).items():
                encoders[k].encode(_gray_picture(matte), frame.pts_s)


@contextmanager
def _prores(
    path: Path, video: VideoSource, profile: str, pix_fmt: str, colour: Colour, quantiser: int
) -> Iterator[VideoEncoder]:
    """Yield an encoder; close it after the block, or discard it on an error."""
    try:
        av.codec.Codec(_ENCODER, "w")
    except (av.error.FFmpegError, ValueError) as error:
        raise OutputError(
            "this PyAV was built without the encoder of ProRes: install the wheel from PyPI "
            "(pip install av)"
        ) from error
    encoder = VideoEncoder(
        path,
        VideoFormat(
            container="mov",
            codec=_ENCODER,
            pix_fmt=pix_fmt,
            threads=usable_cores(),
            codec_options={
                "profile": profile,
                "vendor": _VENDOR,
                "flags": "+qscale",
                "global_quality": str(quantiser * _QUANTISER_UNIT),
            },
        ),
        size_hw=video.size_hw,
        fps=Fraction(video.fps),
        time_base=video.time_base,
        sample_aspect_ratio=video.sample_aspect_ratio,
        colour=colour,
    )
    try:
        yield encoder
        encoder.close()
    except BaseException:
        encoder.discard()
        raise


def _gray_picture(matte: Float32Array) -> Any:
    height, width = matte.shape
    picture = av.VideoFrame(width, height, "yuv422p10le")
    _plane(picture, 0)[:, :width] = _levels(matte, _BLACK, _WHITE)
    for index in (1, 2):
        _plane(picture, index)[:] = _GRAY
    return picture


def _levels(values: Float32Array, first: int, last: int) -> npt.NDArray[np.uint16]:
    """Convert 0..1 to integers ``first``..``last``."""
    return np.rint(first + values * (last - first)).astype(np.uint16)


def _plane(picture: Any, index: int) -> npt.NDArray[np.uint16]:
    """Return a plane of 10 bits as a writable array.

    Its lines may be longer than those of the picture.
    """
    plane = picture.planes[index]
    return np.ndarray((plane.height, plane.line_size // 2), np.uint16, buffer=plane)
