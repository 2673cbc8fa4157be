"""Small videos and image folders for the tests of media and runs."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from PIL import Image

NTSC = Fraction(30000, 1001)


def gray_level(index: int) -> int:
    """Return the brightness of frame ``index``, distinct for 40 frames after a codec."""
    return 20 + 5 * (index % 40)


def level_frame(index: int, size_hw: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Return a uniform frame whose brightness encodes its number."""
    return np.full((*size_hw, 3), gray_level(index), np.uint8)


def index_from_frame(rgb: np.ndarray) -> int:
    """Return the number of a :func:`level_frame`, also after a lossy codec."""
    return round((float(rgb.mean()) - 20) / 5)


def noise_frame(index: int, size_hw: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Return a frame that does not compress: half a file has half of its frames."""
    shape = (*size_hw, 3)
    return np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    rate: Fraction = NTSC,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    container_options: dict[str, str] | None = None,
    setup: Any = None,
) -> Path:
    """Encode RGB frames; ``pts`` in ``time_base`` units gives a variable frame rate."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if time_base is not None:
            stream.codec_context.time_base = time_base
        if setup is not None:
            setup(stream)
        for number, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[number], time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_streams(path: Path, *streams: tuple[str, tuple[int, int], int, Any]) -> Path:
    """Encode level frames in streams of a codec, size, number and disposition."""
    with av.open(str(path), "w") as container:
        packets = []
        for codec, size_hw, count, disposition in streams:
            stream: Any = container.add_stream(codec, rate=NTSC)
            stream.height, stream.width = size_hw
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = disposition
            for index in range(count):
                rgb = level_frame(index, size_hw)
                packets += stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24"))
            packets += stream.encode(None)
        container.mux(packets)
    return path


def write_folder(folder: Path, frames: Sequence[np.ndarray], pattern: str = "{:05d}.png") -> Path:
    """Write one image file per frame."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, rgb in enumerate(frames):
        Image.fromarray(rgb).save(folder / pattern.format(index))
    return folder


def with_display_matrix(path: Path, target: Path, matrix: tuple[int, ...]) -> Path:
    """Copy an MP4 with another display matrix (nine 32-bit numbers) in its header."""
    data = bytearray(path.read_bytes())
    # tkhd version 0: 4 type + 4 version/flags + 5 * 4 + 8 reserved + 4 * 2 + then the matrix.
    at = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    data[at : at + 36] = b"".join(int(v).to_bytes(4, "big", signed=True) for v in matrix)
    target.write_bytes(bytes(data))
    return target


SCENE_HW = (64, 96)
SCENE_STEP_PX = 1


def scene(count: int) -> list[np.ndarray]:
    """Render a camera pan over a smooth random texture, one pixel per frame."""
    rng = np.random.default_rng(7)
    height, width = SCENE_HW
    wide = rng.integers(0, 256, (height, width + count * SCENE_STEP_PX, 3), dtype=np.uint8)
    wide = cv2.GaussianBlur(wide, (0, 0), 2.0)
    wide = cv2.normalize(wide, None, 0, 255, cv2.NORM_MINMAX)
    return [wide[:, i * SCENE_STEP_PX :][:, :width].copy() for i in range(count)]


def scene_labels(index: int) -> np.ndarray:
    """Return the labels of frame ``index`` of :func:`scene`: objects 1 and 2."""
    labels = np.zeros(SCENE_HW, np.uint8)
    for object_id, (y0, y1, x0, x1) in {1: (10, 34, 50, 80), 2: (40, 58, 30, 60)}.items():
        shift = index * SCENE_STEP_PX
        labels[y0:y1, max(x0 - shift, 0) : max(x1 - shift, 0)] = object_id
    return labels
