"""Read single frames of a video as JPEG, in bounded memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from fractions import Fraction

import cv2

from mpn._common.closeable import Closeable
from mpn.errors import VideoError
from mpn.runtime.media.video import open_video
from mpn.types import Frame, UInt8Array

SIDES_PX: tuple[int | None, ...] = (320, 1280, 2560, None)
"""Longest side of a served frame by level; None: the size of the video."""

_QUALITY = 88
_CACHE_BYTES = 64 << 20
_SKIP_FRAMES = 48
"""A frame that is so near after the last one is reached by decoding, not by opening again."""

_KEPT_BEFORE = 24
"""Frames before the wanted one that are encoded too: a user steps backwards through them."""


class ByteCache:
    """Latest used values up to a number of bytes.

    Args:
        most_bytes: Bytes of all values together.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._values: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    @property
    def bytes_held(self) -> int:
        """Bytes of all values together."""
        return self._bytes

    def get(self, key: tuple[int, int]) -> bytes | None:
        """Return a value and mark it as used; None if it is not held."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: tuple[int, int], value: bytes) -> None:
        """Add a value and drop the least recently used ones."""
        self._bytes -= len(self._values.pop(key, b""))
        self._values[key] = value
        self._bytes += len(value)
        while self._bytes > self._most_bytes and len(self._values) > 1:
            self._bytes -= len(self._values.popitem(last=False)[1])


class FrameReader(Closeable):
    """Frames of a video by index, as JPEG; for any thread, one at a time.

    Args:
        video: See :func:`mpn.runtime.media.video.open_video`; no live source.
        fps: Frame rate of a folder of images.

    Attributes:
        name: Name of the video.
        size_hw: (height, width) in pixels.
        frame_count: Number of frames.
    """

    def __init__(self, video: str, *, fps: Fraction | None = None) -> None:
        self._video, self._fps = video, fps
        self._lock = threading.Lock()
        self._cache = ByteCache(_CACHE_BYTES)
        self._frames: Iterator[Frame] = iter(())
        self._next: int | None = None
        self._source = open_video(video, fps=fps)
        self.name, self.size_hw = self._source.name, self._source.size_hw
        self.frame_count = self._source.frame_count_hint or 1

    def jpeg(self, index: int, level: int) -> bytes:
        """Return a frame as JPEG.

        Args:
            index: Index of the frame.
            level: Index in :data:`SIDES_PX`.

        Raises:
            VideoError: If the frame cannot be decoded.
        """
        with self._lock:
            if (found := self._cache.get((index, level))) is not None:
                return found
            for frame in self._up_to(index):
                if frame.index > index - _KEPT_BEFORE:
                    self._cache.put((frame.index, level), _encoded(frame.rgb, level))
            return self._cache.get((index, level)) or b""

    def _up_to(self, index: int) -> Iterator[Frame]:
        if self._next is None or not self._next <= index < self._next + _SKIP_FRAMES:
            self._source.close()
            self._source = open_video(self._video, start=index, fps=self._fps)
            self._frames, self._next = iter(self._source), index
        for frame in self._frames:
            self._next = frame.index + 1
            yield frame
            if frame.index == index:
                return
        raise VideoError(f"{self.name} has no frame {index}")

    def close(self) -> None:
        """Close the video."""
        with self._lock:
            self._source.close()


def _encoded(rgb: UInt8Array, level: int) -> bytes:
    side = SIDES_PX[level]
    height, width = rgb.shape[:2]
    if side is not None and max(height, width) > side:
        scale = side / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
