"""Read the frames of an animated WebP file, which not every FFmpeg decodes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import ImageOps

from mpn._common.files import first_bytes
from mpn._common.images import open_image, os_errors_of_images
from mpn.errors import VideoError
from mpn.runtime.media.backwards import blocks_backwards, frames_per_block
from mpn.runtime.media.video import EndsEarlyError, VideoSource, start_beyond_end
from mpn.types import Frame

_MS_PER_S = 1000
_UNSTATED_MS = 100
"""Browsers show a frame without a duration for this time."""


class AnimatedWebp(VideoSource):
    """Frames of an animated WebP. Use :func:`mpn.runtime.media.video.open_video`.

    Args:
        path: The file.
        start: Index of the first frame.
        end: Index to stop before; None for all.
    """

    def __init__(self, path: Path, *, start: int, end: int | None) -> None:
        durations = _durations_ms(path)
        if not durations:
            raise VideoError(
                f"{path} is not a video that can be decoded (it is one image: give the folder of "
                "the images of a video)"
            )
        if start >= len(durations):
            raise start_beyond_end(str(path), start, len(durations))
        self._times = [Fraction(ms, _MS_PER_S) for ms in accumulate(durations, initial=0)][:-1]
        self._range = range(start, len(durations) if end is None else min(end, len(durations)))
        self._path = path
        self._opened = ExitStack()
        try:
            self._image = self._opened.enter_context(open_image(path, ("WEBP",)))
            super().__init__(
                name=path.stem,
                address=str(path),
                first_frame=self._frame(start),
                fps=Fraction(_MS_PER_S * len(durations), sum(durations)),
                time_base=Fraction(1, _MS_PER_S),
                frame_count_hint=len(self._range),
                end_index=self._range.stop,
            )
        except OSError as error:
            self._release()
            raise VideoError(
                f"{path} is not a video that can be decoded (damaged or cut short)"
            ) from error
        except BaseException:
            self._release()
            raise

    def backwards(self, first: int, end: int) -> Iterator[Frame]:
        """See :meth:`VideoSource.backwards`."""
        if end > len(self._times):
            raise EndsEarlyError(self.address, len(self._times), end - 1)
        at_once = frames_per_block(3 * self.size_hw[0] * self.size_hw[1])
        # Another decoder: Pillow goes back to the first frame to reach an earlier one.
        with AnimatedWebp(self._path, start=0, end=None) as again:
            yield from blocks_backwards(again._frames, first, end, at_once)

    def _frames_after_first(self) -> Iterator[Frame]:
        return self._frames(self._range.start + 1, self._range.stop)

    def _frames(self, first: int, end: int) -> Iterator[Frame]:
        for index in range(first, end):
            try:
                yield self._frame(index)
            except OSError as error:
                raise VideoError(
                    f"{self._path} cannot be decoded beyond frame {index - 1}: the video is "
                    "damaged or was cut short"
                ) from error

    def _frame(self, index: int) -> Frame:
        with os_errors_of_images():
            self._image.seek(index)
            upright = ImageOps.exif_transpose(self._image)
            rgb = np.array(upright.convert("RGB"), dtype=np.uint8)
        return Frame(index=index, rgb=rgb, pts_s=self._times[index], name=f"{index:05d}")

    def _release(self) -> None:
        self._opened.close()


def is_webp(path: Path) -> bool:
    """Return whether a file is a WebP image by its first bytes."""
    head = first_bytes(path, 12)
    return head[:4] == b"RIFF" and head[8:] == b"WEBP"


def _durations_ms(path: Path) -> list[int]:
    """Return the duration of each frame; empty if the file is one image.

    Layout: https://developers.google.com/speed/webp/docs/riff_container, chunks ``ANMF``: X, Y,
    width, height and duration, of 24 bits each.

    Raises:
        VideoError: If the file cannot be read.
    """
    durations = []
    try:
        with path.open("rb") as file:
            stated = struct.unpack("<4xI", file.read(8))[0] + 8  # other bytes after it are ignored
            length, position = min(path.stat().st_size, stated), 12
            while position + 8 <= length:
                file.seek(position)
                name, size = struct.unpack("<4sI", file.read(8))
                if name == b"ANMF":
                    field = file.read(15)[12:]
                    durations.append(int.from_bytes(field, "little") or _UNSTATED_MS)
                position += 8 + size + size % 2
    except OSError as error:
        raise VideoError(f"cannot read {path}: {error.strerror or error}") from error
    return durations
