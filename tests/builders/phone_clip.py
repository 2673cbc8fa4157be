"""Write a clip as phones record it: rotated, with sound, HEVC in HLG.

    python -m tests.builders.phone_clip FOLDER OUT.mp4 [--frames 48] [--codec h264|hevc] [--hdr]

The frame rate is variable. The images of FOLDER are cropped to portrait and stored turned by 90
degrees, with the display matrix that turns them upright. ``--hdr`` converts them to BT.2100 HLG in
10 bits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from mpn.types import UInt8Array
from tests.runtime.media.clips import with_display_matrix

_TIME_BASE = Fraction(1, 600)
_STEPS = (20, 20, 21, 19, 20, 40, 20)
"""30 frames per second, with jitter and a dropped frame."""

_BT709_CODES = {"primaries": 1, "transfer": 1, "matrix": 1}
_HLG_CODES = {"primaries": 9, "transfer": 18, "matrix": 9}
_BT2020_FROM_BT709 = (
    (0.6274, 0.3293, 0.0433),
    (0.0691, 0.9195, 0.0114),
    (0.0164, 0.0880, 0.8956),
)
"""ITU-R BT.2087."""
_REFERENCE_WHITE = 0.265
"""Linear light of SDR white in HLG: signal level 75 %, ITU-R BT.2408."""

_SOUND_HZ = 48_000
_QUARTER_TURN = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)


def portrait(rgb: UInt8Array) -> UInt8Array:
    """Cut the middle of a frame to 9:16, with even sides."""
    height, width = rgb.shape[0] // 2 * 2, rgb.shape[0] * 9 // 16 // 2 * 2
    left = (rgb.shape[1] - width) // 2
    return np.ascontiguousarray(rgb[:height, left : left + width])


def times_of(count: int) -> list[Fraction]:
    """Return the times of the frames in seconds."""
    steps = [0, *(_STEPS[k % len(_STEPS)] for k in range(count - 1))]
    return [int(ticks) * _TIME_BASE for ticks in np.cumsum(steps)]


def write_phone_clip(
    path: Path, frames: Sequence[UInt8Array], *, codec: str = "libx265", is_hdr: bool = False
) -> None:
    """Write the clip.

    Args:
        path: An MP4 file.
        frames: Upright (H, W, 3) uint8 RGB, all of one size with even sides.
        codec: Encoder.
        is_hdr: Whether to convert to HLG of 10 bits.
    """
    codes = _HLG_CODES if is_hdr else _BT709_CODES
    times = times_of(len(frames))
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate=30, options={"crf": "18"})
        stream.height, stream.width = frames[0].shape[1], frames[0].shape[0]
        stream.pix_fmt = "yuv420p10le" if is_hdr else "yuv420p"
        context = stream.codec_context
        context.time_base, context.gop_size = _TIME_BASE, 30
        context.color_primaries, context.color_trc = codes["primaries"], codes["transfer"]
        context.colorspace, context.color_range = codes["matrix"], 1
        if codec == "libx265":
            context.codec_tag = "hvc1"
        sound: Any = container.add_stream("aac", rate=_SOUND_HZ, layout="mono")
        for rgb, pts_s in zip(frames, times, strict=True):
            picture = _picture(np.ascontiguousarray(np.rot90(rgb)), stream.pix_fmt, codes, is_hdr)
            picture.pts, picture.time_base = int(pts_s / _TIME_BASE), _TIME_BASE
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
        seconds = float(times[-1]) + 1 / 30
        tone = 0.1 * np.sin(2 * np.pi * 440 / _SOUND_HZ * np.arange(int(seconds * _SOUND_HZ)))
        samples = av.AudioFrame.from_ndarray(tone.astype(np.float32)[None], "fltp", "mono")
        samples.sample_rate, samples.pts = _SOUND_HZ, 0
        container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
    with_display_matrix(path, path, _QUARTER_TURN)


def _picture(rgb: UInt8Array, pix_fmt: str, codes: dict[str, int], is_hdr: bool) -> Any:
    if is_hdr:
        picture = av.VideoFrame.from_ndarray(_hlg_from_rgb(rgb), format="rgb48le")
    else:
        picture = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    picture = picture.reformat(format=pix_fmt, dst_colorspace=codes["matrix"], dst_color_range=1)
    picture.colorspace, picture.color_range = codes["matrix"], 1
    picture.color_primaries, picture.color_trc = codes["primaries"], codes["transfer"]
    return picture


def _hlg_from_rgb(rgb: UInt8Array) -> Any:
    """Convert SDR pixels to HLG, (H, W, 3) uint16 (ITU-R BT.2100, table 5)."""
    light = (rgb.astype(np.float32) / 255) ** 2.4 @ np.array(_BT2020_FROM_BT709, np.float32).T
    scene = np.maximum(light, 0) ** (1 / 1.2) * _REFERENCE_WHITE  # per channel, not by luminance
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    signal = np.where(
        scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-6)) + c
    )
    return np.rint(signal.clip(0, 1) * 65535).astype(np.uint16)


def main() -> int:
    """Parse the arguments and write the clip."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--codec", choices=("h264", "hevc"), default="hevc")
    parser.add_argument("--hdr", action="store_true")
    given = parser.parse_args()
    paths = sorted(given.folder.glob("*.jpg"))[: given.frames]
    frames = [portrait(cv2.imread(str(path))[:, :, ::-1]) for path in paths]
    codec = {"h264": "libx264", "hevc": "libx265"}[given.codec]
    write_phone_clip(given.out, frames, codec=codec, is_hdr=given.hdr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
