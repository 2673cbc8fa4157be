"""Read single frames of a video as JPEG, in bounded memory."""

from __future__ import annotations

import threading
from collections import OrderedDict

import cv2

from mpn.runtime.media.random_access import FrameAccess
from mpn.types import UInt8Array

SIDES_PX: tuple[int | None, ...] = (320, 1280, 2560, None)
"""Longest side of a served frame by level; None: the size of the video."""

_QUALITY = 88
_CACHE_BYTES = 64 << 20
_KEPT = 16
"""Frames up to the wanted one that are encoded on the way, if the user steps backwards."""

_STEP_FRAMES = 2
"""A frame that is so near before the last one is a step backwards."""


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


class FrameReader:
    """Frames of a video as JPEG, for any thread; one is decoded at a time.

    Args:
        access: The video; it stays open.
    """

    def __init__(self, access: FrameAccess) -> None:
        self._access = access
        self._lock = threading.Lock()
        self._cache = ByteCache(_CACHE_BYTES)
        self._last = -1

    def jpeg(self, index: int, level: int) -> bytes:
        """Return a frame as JPEG.

        Args:
            index: Index of the frame.
            level: Index in :data:`SIDES_PX`.

        Raises:
            VideoError: If the frame cannot be decoded.
        """
        with self._lock:
            found = self._cache.get((index, level))
            kept = _KEPT if 0 < self._last - index <= _STEP_FRAMES else 1
            self._last = index
            if found is None:
                for frame in self._access.frames_up_to(index, kept=kept):
                    found = _encoded(frame.rgb, level)
                    self._cache.put((frame.index, level), found)
            assert found is not None
            return found


def _encoded(rgb: UInt8Array, level: int) -> bytes:
    side = SIDES_PX[level]
    height, width = rgb.shape[:2]
    if side is not None and max(height, width) > side:
        scale = side / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
