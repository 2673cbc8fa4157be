"""Read files, cameras and network streams as videos."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av

from mpn.errors import VideoError
from mpn.runtime.media.backwards import FileBackwards
from mpn.runtime.media.decoder import Orientation, StreamDecoder
from mpn.runtime.media.video import VideoSource, no_way_back, start_beyond_end
from mpn.types import Frame


def camera_address(index: int) -> tuple[str, str]:
    """Return FFmpeg's device name and input format of camera ``index``."""
    if sys.platform == "darwin":
        return (f"{index}:none", "avfoundation")
    if sys.platform == "win32":
        return (str(index), "vfwcap")
    return (f"/dev/video{index}", "v4l2")


_MOST_GAPS = 3
"""Warnings about missing frames."""

_UNKNOWN_COLOURS = frozenset({0, 2})
"""Codes of ISO/IEC 23091-2: reserved and unspecified."""


class VideoStream(VideoSource):
    """Frames of an FFmpeg input. Use :func:`mpn.runtime.media.video.open_video`.

    The iteration over a damaged or truncated video yields all complete frames and then raises
    VideoError. A file never skips frames, because their numbers are the names of the masks. A live
    stream continues after a bad packet.

    Args:
        url: The address for FFmpeg.
        address: The address for messages and reports, without a password.
        name: Name for outputs.
        container_format: FFmpeg's input format for devices; None to detect it.
        is_live: Camera or stream.
        start: Index of the first frame.
        end: Index to stop before; None for all.
    """

    def __init__(
        self,
        url: str,
        *,
        address: str,
        name: str,
        container_format: str | None = None,
        is_live: bool = False,
        start: int = 0,
        end: int | None = None,
    ) -> None:
        self._url, self._shown = url, address
        self._start, self._end, self._live = start, end, is_live
        self._decoder = StreamDecoder(
            url, address=address, container_format=container_format, is_live=is_live
        )
        self._backwards: FileBackwards | None = None
        try:
            stream = self._decoder.stream
            self._decoded = self._decoder.decode()
            super().__init__(
                name=name,
                address=address,
                first_frame=self._read_first(),
                fps=self._decoder.rate,
                time_base=Fraction(stream.time_base),
                frame_count_hint=self._count_hint(),
                end_index=end,
                is_live=is_live,
            )
            self.sample_aspect_ratio = self._upright_aspect_ratio()
            self.colour = self._colour()
        except BaseException:
            self._decoder.close()
            raise

    @property
    def path(self) -> Path:
        """The path of the file; not a file for a camera or a network stream."""
        return Path(self._url)

    @property
    def end(self) -> int | None:
        """Index of the frame to stop before; None: no limit."""
        return self._end

    @property
    def is_only_stream(self) -> bool:
        """Whether the file has no other video stream, such as a cover picture."""
        return len(self._decoder.container.streams.video) == 1

    @property
    def is_rotated(self) -> bool:
        """Whether stored frames have to be rotated or flipped."""
        return self._decoder.orientation != Orientation()

    @property
    def warnings(self) -> list[str]:
        """See :attr:`VideoSource.warnings`."""
        return [*self._concealed_warnings(), *self._gap_warnings(), *self._depth_warnings()]

    def _gap_warnings(self) -> list[str]:
        if self._live:
            return []
        return [
            f"{self._shown}: about {count} frame{' is' if count == 1 else 's are'} missing after "
            f"frame {index} (its time is followed by a jump): later frame numbers are lower than "
            "in the undamaged video"
            for index, count in self._decoder.gaps.found[:_MOST_GAPS]
        ]

    def _depth_warnings(self) -> list[str]:
        largest = self._decoder.largest
        if not largest or largest >> 14:
            return []
        bits = next(bits for bits in (8, 10, 12, 14) if not largest >> bits)
        return [
            f"{self._shown} has 16 bits per value and uses {bits} of them: its frames are read "
            f"{1 << (16 - bits)} times too dark if that is the depth of the camera; multiply the "
            f"values by {1 << (16 - bits)}, or give a folder of images, which is scaled by itself"
        ]

    def _concealed_warnings(self) -> list[str]:
        concealed = [index for index in self._decoder.concealed if index >= self._start]
        if not concealed:
            return []
        count, first = len(concealed), concealed[0]
        which = f"frame {first}" if count == 1 else f"{count} frames, the first is frame {first}"
        return [
            f"{self._shown} is damaged: the decoder concealed errors in {which}; masks from there "
            "to the next key frame may be wrong"
        ]

    def _colour(self) -> tuple[int, int] | None:
        context = self._decoder.stream.codec_context
        codes = int(context.color_primaries), int(context.color_trc)
        return None if _UNKNOWN_COLOURS & set(codes) else codes

    def _upright_aspect_ratio(self) -> Fraction | None:
        ratio = self._decoder.stream.sample_aspect_ratio
        if not ratio or ratio < 0 or ratio == 1:
            return None
        return 1 / Fraction(ratio) if self._decoder.orientation.is_transposed else Fraction(ratio)

    def backwards(self, first: int, end: int) -> Iterator[Frame]:
        """See :meth:`VideoSource.backwards`."""
        if self.is_live:
            raise no_way_back(self.address)
        if self._backwards is None:
            self._backwards = FileBackwards(self._reopened, self.address)
        yield from map(self._check_size, self._backwards.frames(first, end))

    def _reopened(self) -> StreamDecoder:
        return StreamDecoder(self._url, address=self._shown)

    def _release(self) -> None:
        self._decoded.close()
        self._decoder.close()
        if self._backwards is not None:
            self._backwards.close()

    def _count_hint(self) -> int | None:
        count, container, stream = None, self._decoder.container, self._decoder.stream
        if stream.frames and not self._live:
            count = int(stream.frames)
        elif container.duration and not self._live:
            count = round(Fraction(container.duration, av.time_base) * self._decoder.rate)
        if self._end is not None:
            count = self._end if count is None else min(count, self._end)
        return None if count is None else max(count - self._start, 1)

    def _read_first(self) -> Frame:
        for decoded in self._decoded:
            if decoded.index >= self._start:
                return self._decoder.frame_of(decoded)
        if self._decoder.decoded:
            raise start_beyond_end(self._shown, self._start, self._decoder.decoded)
        raise VideoError(f"{self._shown} holds no frame that can be decoded")

    def _frames_after_first(self) -> Iterator[Frame]:
        count = None if self._end is None else self._end - self._start - 1
        # Damage after the requested end must not raise.
        return map(self._decoder.frame_of, islice(self._decoded, count))
