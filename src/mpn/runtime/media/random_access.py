"""Read single frames of a video by index."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av

from mpn._common.closeable import Closeable
from mpn.errors import VideoError
from mpn.runtime.media.decoder import Decoded, StreamDecoder
from mpn.runtime.media.video import VideoSource, no_way_back, open_video
from mpn.runtime.media.video_file import VideoStream
from mpn.runtime.media.video_images import ImageSequence
from mpn.types import Frame


@dataclass(frozen=True)
class _Index:
    """Times of the frames of a file, from its packets.

    Attributes:
        pts: Presentation times in the unit of the stream, ascending.
        keys: Indices of the key frames, ascending.
    """

    pts: tuple[int, ...]
    keys: tuple[int, ...]


class FrameAccess(Closeable):
    """Frames of a video by index; for one thread at a time.

    A file is read from the key frame before the wanted frame, or from the last one that was read if
    that is nearer. If its packets do not give the number of each frame, or the container does not
    seek to key frames, it is decoded from the beginning.

    Args:
        video: See :func:`mpn.runtime.media.video.open_video`.
        fps: Frame rate of a folder of images.

    Attributes:
        source: The facts of the video; its frames cannot be iterated over.
        frame_count: Number of frames, as far as it is known without decoding all of them.
        is_seekable: Whether no decoding from the beginning is needed.

    Raises:
        VideoError: If the video is live or cannot be opened.
    """

    def __init__(self, video: str, *, fps: Fraction | None = None) -> None:
        self._video, self._fps = video, fps
        self.source = open_video(video, fps=fps)
        self._decoder: StreamDecoder | None = None
        self._decoded: Generator[Decoded, None, None] | None = None
        self._next = 0
        self._index: _Index | None = None
        self.is_seekable = True
        try:
            if self.source.is_live:
                raise no_way_back(self.source.address)
            self.frame_count = self._count(self.source)
            if isinstance(self.source, VideoStream):
                self.source.close()  # its decoder holds frames: 100 MB at 4K
        except BaseException:
            self.source.close()
            raise

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all frames, which are the stems of their masks."""
        if isinstance(self.source, ImageSequence):
            return self.source.names
        return tuple(f"{index:05d}" for index in range(self.frame_count))

    def frames_up_to(self, index: int, *, kept: int = 1) -> Iterator[Frame]:
        """Yield some frames before a frame, and the frame, in order.

        Args:
            index: The wanted frame.
            kept: Largest number of frames to yield. Fewer if no others are decoded on the way.

        Raises:
            VideoError: If the frame does not exist or cannot be decoded.
        """
        if not isinstance(self.source, VideoStream):
            yield from self.source.backwards(index, index + 1)
            return
        last = index - kept
        for decoded in self._decoded_up_to(index):
            if decoded.index > last:
                last = decoded.index
                assert self._decoder is not None
                yield self._decoder.frame_of(decoded)
        if last != index:
            raise VideoError(f"{self.source.address} has no frame {index} that can be decoded")

    def close(self) -> None:
        """Close the video. A second call does nothing."""
        self._stop()
        if self._decoder is not None:
            self._decoder.close()
        self.source.close()

    def _count(self, source: VideoSource) -> int:
        if not isinstance(source, VideoStream):
            return source.frame_count_hint or 1
        with StreamDecoder(self._video, address=source.address) as decoder:
            self._index = _index_from_packets(decoder)
        self._restart()
        if self._index is not None and self._first_pts() == self._index.pts[0]:
            return len(self._index.pts)
        self._index, self.is_seekable = None, False
        self._restart()
        assert self._decoded is not None
        assert self._decoder is not None
        try:
            for _ in self._decoded:
                pass
        except VideoError:  # the frames before the damage can be shown
            pass
        count = self._decoder.decoded
        self._restart()
        return count

    def _first_pts(self) -> int | None:
        assert self._decoded is not None
        with closing(self._decoded) as decoded:
            pts: int | None = next(decoded).picture.pts
        self._decoded = None
        return pts

    def _restart(self) -> None:
        """Decode from the beginning."""
        self._stop()
        if self._decoder is not None:
            self._decoder.close()
        self._decoder = StreamDecoder(self._video, address=self.source.address)
        self._decoded, self._next = self._decoder.decode(), 0

    def _stop(self) -> None:
        if self._decoded is not None:
            self._decoded.close()
            self._decoded = None

    def _decoded_up_to(self, index: int) -> Iterator[Decoded]:
        """Yield the frames from the nearest one that can be decoded to the wanted one."""
        if self._index is not None:
            key = self._index.keys[bisect_right(self._index.keys, index) - 1]
            if self._decoded is None or not key <= self._next <= index:
                self._seek(key)
            yield from self._continued(index)
            if self._next == index + 1:
                return
            self._index, self.is_seekable = None, False  # it does not seek to its key frames
            self._restart()
        elif self._next > index:
            self._restart()
        yield from self._continued(index)

    def _seek(self, key: int) -> None:
        assert self._index is not None
        assert self._decoder is not None
        self._stop()
        self._decoded, self._next = self._from_key(self._decoder, self._index, key), key

    def _from_key(
        self, decoder: StreamDecoder, index: _Index, key: int
    ) -> Generator[Decoded, None, None]:
        position = {pts: number for number, pts in enumerate(index.pts[key:], key)}
        following = key
        with closing(decoder.decode_from(index.pts[key])) as pictures:
            for picture in pictures:
                number = position.get(picture.pts)
                if number is None:  # before the key frame
                    continue
                if number != following:
                    return
                following += 1
                pts_s = picture.pts * Fraction(picture.time_base or decoder.stream.time_base)
                yield Decoded(number, picture, pts_s)

    def _continued(self, index: int) -> Iterator[Decoded]:
        assert self._decoded is not None
        while self._next <= index:
            decoded = next(self._decoded, None)
            if decoded is None:
                return
            self._next = decoded.index + 1
            yield decoded


def _index_from_packets(decoder: StreamDecoder) -> _Index | None:
    """Return the times of the frames; None if the packets do not give them."""
    times: list[int] = []
    keys: list[int] = []
    try:
        for packet in decoder.container.demux(decoder.stream):
            if not packet.size or packet.is_discard:
                continue
            if packet.pts is None:
                return None
            if packet.is_keyframe:
                keys.append(packet.pts)
            if keys:  # frames before the first key frame cannot be decoded
                times.append(packet.pts)
    except (av.error.FFmpegError, OSError):
        return None
    pts = sorted(set(times))
    # Two packets of one time are no two frames. Frames before the first key frame in time need
    # packets before it.
    if not keys or len(pts) != len(times) or pts[0] != keys[0] or _is_interlaced(decoder):
        return None
    number = {time: index for index, time in enumerate(pts)}
    return _Index(tuple(pts), tuple(sorted(number[time] for time in keys)))


def _is_interlaced(decoder: StreamDecoder) -> bool:
    """Return whether two packets can make one frame."""
    context: Any = decoder.stream.codec_context
    return context.name in ("mpeg1video", "mpeg2video")
