"""Read frames of a video backwards, in blocks of bounded memory."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np

from mpn._common.closeable import Closeable
from mpn.errors import VideoError
from mpn.runtime.media.decoder import Decoded, StreamDecoder
from mpn.runtime.media.video import EndsEarlyError
from mpn.types import Frame

BLOCK_BYTES = 256 << 20
"""Largest size of a block of frames: 400 frames of a file at 480p, 20 at 4K."""

_PLANES_OF_BYTES = frozenset({"gray", "yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p"})
"""Pixel formats of one byte per value, in separate planes."""

_KEY_FRAMES_TRIED = 3

T = TypeVar("T")


def frames_per_block(frame_bytes: int) -> int:
    """Return how many frames of this size a block may hold, at least 1."""
    return max(BLOCK_BYTES // max(frame_bytes, 1), 1)


def blocks_backwards(
    read: Callable[[int, int], Iterable[T]], first: int, end: int, frames_at_once: int
) -> Iterator[T]:
    """Yield items ``end - 1`` to ``first`` of a source that is read forwards.

    Args:
        read: Yields the items of a range ``first``..``end - 1``.
        first: First item of the range, yielded last.
        end: Index after the item that is yielded first.
        frames_at_once: Largest number of items that are held.
    """
    while end > first:
        begin = max(first, end - frames_at_once)
        block = list(read(begin, end))
        end = begin
        while block:
            yield block.pop()


@dataclass(frozen=True)
class _Entry:
    pts: int | None
    pts_s: Fraction
    is_key: bool
    checksum: int


class FileBackwards(Closeable):
    """Frames of a video file, backwards.

    The file is decoded once from its beginning, which gives the number, time and checksum of each
    frame; the last frames stay in memory. Each block before them is decoded from a key frame. If
    its times or checksums are not those of the first decoding (broken index, intra refresh, a
    container without exact seeking), this block and all others are decoded from the beginning.

    Args:
        reopen: Opens the file again.
        address: The file, for messages.

    Attributes:
        most_held: Largest number of frames that were held at once.
        is_seekable: False if a block could not be decoded from a key frame.
    """

    def __init__(self, reopen: Callable[[], StreamDecoder], address: str) -> None:
        self._reopen, self._address = reopen, address
        self._entries: list[_Entry] = []
        self._scanner: StreamDecoder | None = None
        self._scanned: Generator[Decoded, None, None] | None = None
        self.most_held = 0
        self.is_seekable = True

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        if self._scanned is not None:
            self._scanned.close()
        if self._scanner is not None:
            self._scanner.close()

    def frames(self, first: int, end: int) -> Iterator[Frame]:
        """Yield frames ``end - 1`` to ``first``.

        Raises:
            EndsEarlyError: If the file has no frame ``end - 1``.
            VideoError: If a frame cannot be decoded.
        """
        block = self._scan(first, end)
        assert self._scanner is not None
        while True:
            while block:
                decoded = block.pop()
                end = decoded.index
                yield self._scanner.frame_of(decoded)
                del decoded
            if end <= first:
                return
            block = self._block(first, end)

    def _scan(self, first: int, end: int) -> deque[Decoded]:
        """Decode up to a frame for the first time, and return the last frames before it."""
        if self._scanned is None:
            self._scanner = self._reopen()
            self._scanned = self._scanner.decode()
        block: deque[Decoded] = deque()
        while len(self._entries) < end:
            decoded = next(self._scanned, None)
            if decoded is None:
                raise EndsEarlyError(self._address, len(self._entries), end - 1)
            picture = decoded.picture
            entry = _Entry(
                picture.pts, decoded.pts_s, bool(picture.key_frame), checksum_of(picture)
            )
            self._entries.append(entry)
            if decoded.index >= first:
                self._hold(block, decoded)
        return block

    def _hold(self, block: deque[Decoded], decoded: Decoded) -> None:
        block.append(decoded)
        at_once = frames_per_block(sum(plane.buffer_size for plane in decoded.picture.planes))
        while len(block) > at_once:
            block.popleft()
        self.most_held = max(self.most_held, len(block))

    def _block(self, first: int, end: int) -> deque[Decoded]:
        """Return the last frames before ``end`` that fit into the memory."""
        if self.is_seekable:
            begin = max(first, end - max(self.most_held, 1))
            keys = [k for k in range(begin + 1) if self._entries[k].is_key]
            # Some containers, such as MPEG-TS, arrive after the requested key frame.
            for key in reversed(keys[-_KEY_FRAMES_TRIED:]):
                if block := self._block_from_key_frame(key, begin, end):
                    return block
            self.is_seekable = False
        block = deque()
        with self._reopen() as decoder, closing(decoder.decode()) as frames:
            for decoded in frames:
                if first <= decoded.index < end:
                    self._hold(block, decoded)
                if decoded.index + 1 >= end:
                    break
        if not block:
            raise VideoError(f"{self._address} has changed: frame {end - 1} is gone")
        return block

    def _block_from_key_frame(self, key: int, begin: int, end: int) -> deque[Decoded]:
        """Decode a block from a key frame; empty if it differs from the first time."""
        key_pts = self._entries[key].pts
        if key_pts is None:
            return deque()
        position = {entry.pts: k for k, entry in enumerate(self._entries[key:end], key)}
        block: deque[Decoded] = deque()
        following = begin
        with self._reopen() as decoder, closing(decoder.decode_from(key_pts)) as pictures:
            for picture in pictures:
                index = position.get(picture.pts)
                if index is None or index < begin:  # before the key frame, or before the block
                    continue
                entry = self._entries[index]
                if index != following or checksum_of(picture) != entry.checksum:
                    return deque()
                self._hold(block, Decoded(index, picture, entry.pts_s))
                following += 1
                if following == end:
                    return block
        return deque()


def checksum_of(picture: Any) -> int:
    """Return a checksum of the pixels of a frame of PyAV."""
    if picture.format.name not in _PLANES_OF_BYTES:
        # Rows are padded if the picture is RGB already.
        return zlib.crc32(np.ascontiguousarray(picture.to_ndarray(format="rgb24")).data)
    checksum = 0
    for plane in picture.planes:
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        # Bytes after the width and height are padding.
        used = np.ascontiguousarray(rows[: plane.height, : plane.width])
        checksum = zlib.crc32(used.data, checksum)
    return checksum
