"""Find the frame of a video by the name of its image or its number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

_ONE_NUMBER = re.compile(r"(\D*)(\d+)(\D*)")
_LAST_NUMBER = re.compile(r"(?:.*\D)?(\d{1,9})", re.DOTALL)


class FrameNames:
    """Names of the images of a video without suffix, in the order of the frames.

    Args:
        names: One per frame.
        video_name: Name of the video. A file with this name belongs to no frame.
    """

    def __init__(self, names: Sequence[str], video_name: str) -> None:
        self.names = tuple(names)
        self._video_name = video_name

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """Digits of each name; empty unless the names differ in one number."""
        matches = [_ONE_NUMBER.fullmatch(name) for name in self.names]
        found = [match for match in matches if match is not None]
        texts = {(match[1].casefold(), match[3].casefold()) for match in found}
        if len(found) < len(self.names) or len(texts) > 1:
            return ()
        return tuple(match[2] for match in found)

    def index_of(self, stem: str) -> int | None:
        """Return the index of the image with a name, or with these digits as its number."""
        if stem == self._video_name:  # named after its video, as one mask per video of a data set
            return None
        by_name, by_number = self._indices
        return by_name.get(stem.casefold(), by_number.get(stem))

    @cached_property
    def _indices(self) -> tuple[dict[str, int], dict[str, int]]:
        # Reversed: the first of two frames with one name is the one that is found.
        by_name = {name.casefold(): index for index, name in reversed([*enumerate(self.names)])}
        by_number = {number: index for index, number in reversed([*enumerate(self.numbers)])}
        return by_name, by_number


@dataclass(frozen=True)
class VideoFacts:
    """Facts about a video that its masks must fit.

    Attributes:
        size_hw: Height and width of the frames in pixels.
        name: Name of the video.
        images: Names of the images of a sequence; None for a video file.
        first: Index of the first frame of the run.
        end: Index after its last frame, or an upper bound; None if unknown.
    """

    size_hw: tuple[int, int]
    name: str = ""
    images: FrameNames | None = None
    first: int = 0
    end: int | None = None

    def index_of(self, image: str) -> int | None:
        """Return the index of the frame that the name of an image stands for.

        In a sequence of images it is the image of that name. In a video file it is the last number
        in the name, counted from 0, as in ``frame_000012.png``.

        Args:
            image: Name or path of an image, with or without a suffix.
        """
        # Without a suffix, a dot in a name would cut it.
        path = PurePosixPath(image.replace("\\", "/"))
        for stem in dict.fromkeys((path.stem, path.name)):
            if self.images is not None:
                index = self.images.index_of(stem)
            else:
                match = _LAST_NUMBER.fullmatch(stem)
                index = int(match[1]) if match else None
            if index is not None:
                return index
        return None

    def is_in_run(self, index: int) -> bool:
        """Return whether the run has a frame."""
        return index >= self.first and (self.end is None or index < self.end)
