"""Collect what the review shows, frame by frame, in bounded memory."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mpn.runtime.review.pictures import (
    CorrectionPictures,
    FramePicture,
    correction_pictures,
    frame_picture,
    thumbnail,
)
from mpn.runtime.review.series import ObjectSeries, frame_reliability
from mpn.runtime.review.worst import WorstPictures, worst_positions
from mpn.types import Track, UInt8Array

SHEET_COUNT = 24
"""Most thumbnails of the contact sheet."""
_MOST_CORRECTIONS = 12


class FrameFacts(Protocol):
    """A frame of a run, without pixels."""

    @property
    def index(self) -> int:
        """Index of the frame in its video, from 0."""

    @property
    def name(self) -> str:
        """Name of its mask, without suffix."""

    @property
    def pts_s(self) -> float:
        """Presentation time in seconds."""

    @property
    def tracks(self) -> tuple[Track, ...]:
        """One entry per object."""


@dataclass(frozen=True)
class FrameInfo:
    """Implement :class:`FrameFacts` without tracks, for frames that are kept."""

    index: int
    name: str
    pts_s: float
    tracks: tuple[Track, ...] = ()


@dataclass(frozen=True)
class Thumbnail:
    """A frame of the contact sheet.

    Attributes:
        frame: The frame.
        jpeg: A small picture with the masks.
    """

    frame: FrameInfo
    jpeg: bytes


@dataclass(frozen=True)
class WorstFrame:
    """A frame that is worth a look.

    Attributes:
        frame: The frame, with its tracks.
        picture: A frame to paint on.
    """

    frame: FrameInfo
    picture: FramePicture


@dataclass(frozen=True)
class Correction:
    """A frame that the user corrected.

    Attributes:
        frame: The frame.
        pictures: Before and after.
    """

    frame: FrameInfo
    pictures: CorrectionPictures


@dataclass(frozen=True)
class RunFacts:
    """Facts about a run that the page shows.

    Attributes:
        title: Name of the video.
        video: Its address, as the user gave it.
        out: Output folder.
        size_hw: (height, width) of the frames.
        masks: Frame index -> file of the mask that the user gave.
        object_names: Names by id, of the objects that have one.
        state: State of the run; empty if it is not known yet.
        notes: Lines for the user.
    """

    title: str
    video: str
    out: Path
    size_hw: tuple[int, int]
    masks: Mapping[int, str] = field(default_factory=dict)
    object_names: Mapping[int, str] = field(default_factory=dict)
    state: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Review:
    """All that the page shows, except for the facts of the run.

    Attributes:
        indices: Index of each frame in the video.
        objects: Figures per object, by id.
        sheet: Frames of the contact sheet, in order.
        worst: Frames that are worth a look, the most useful first.
        corrections: Corrected frames, in order.
    """

    indices: Sequence[int]
    objects: Mapping[int, ObjectSeries]
    sheet: Sequence[Thumbnail]
    worst: Sequence[WorstFrame]
    corrections: Sequence[Correction]


def sheet_positions(frames: int) -> list[int]:
    """Return at most 24 positions, evenly spread over a number of frames."""
    every = 1
    while frames > every * 2 * SHEET_COUNT:
        every *= 2
    found = range(0, frames, every)
    return list(found[:: max(-(-len(found) // SHEET_COUNT), 1)])


def strongest_corrections(corrections: Sequence[Correction]) -> list[Correction]:
    """Return the 12 corrections that changed most, in order."""
    by_change = sorted(corrections, key=lambda correction: correction.pictures.iou)
    chosen = {correction.frame.index for correction in by_change[:_MOST_CORRECTIONS]}
    return [correction for correction in corrections if correction.frame.index in chosen]


class SeriesBuilder:
    """Collect the figures of all objects: 13 bytes per frame and object."""

    def __init__(self) -> None:
        self.indices = array("q")
        self.objects: dict[int, ObjectSeries] = {}

    def add(self, frame: FrameFacts) -> None:
        """Add the next frame."""
        position = len(self.indices)
        self.indices.append(frame.index)
        by_id = {track.object_id: track for track in frame.tracks}
        for object_id in by_id.keys() - self.objects.keys():
            self.objects[object_id] = ObjectSeries(object_id, position)
        for object_id, series in self.objects.items():
            series.add(by_id.get(object_id))


class ReviewBuilder:
    """Collect the frames of a run while it computes them, in bounded memory.

    That is 24 to 48 thumbnails, about 24 frames as JPEG, 12 corrections, and one frame with its
    pixels.
    """

    def __init__(self) -> None:
        self._series = SeriesBuilder()
        self._worst: WorstPictures[WorstFrame] = WorstPictures()
        self._sheet: dict[int, Thumbnail] = {}
        self._sheet_every = 1
        self._corrections: list[Correction] = []

    def add(
        self,
        frame: FrameFacts,
        labels: UInt8Array,
        rgb: UInt8Array,
        before: UInt8Array | None = None,
    ) -> None:
        """Add the next frame.

        Args:
            frame: The frame with its tracks.
            labels: (H, W) uint8 ids, which must not change.
            rgb: (H, W, 3) uint8 RGB, which must not change.
            before: (H, W) uint8 ids before the user's labels replaced them; None if the user gave
                none.
        """
        position = len(self._series.indices)
        self._series.add(frame)
        info = info_of(frame)
        self._worst.add(frame_reliability(frame.tracks), lambda: worst_frame(info, labels, rgb))
        if position % self._sheet_every == 0:
            self._sheet[position] = Thumbnail(info, thumbnail(rgb, labels))
            if len(self._sheet) > 2 * SHEET_COUNT:
                self._sheet_every *= 2
                kept = range(0, position + 1, self._sheet_every)
                self._sheet = {at: self._sheet[at] for at in kept}
        if before is not None:
            self._corrections.append(Correction(info, correction_pictures(rgb, before, labels)))
            self._corrections = strongest_corrections(self._corrections)

    def finish(self) -> Review:
        """Return the review of all frames so far."""
        pictures, indices = self._worst.pictures(), self._series.indices
        return Review(
            indices,
            self._series.objects,
            [self._sheet[at] for at in sheet_positions(len(indices))],
            [pictures[at] for at in worst_positions(self._worst.values)],
            self._corrections,
        )


def info_of(frame: FrameFacts) -> FrameInfo:
    """Return the facts of a frame alone, for one that is kept."""
    return FrameInfo(frame.index, frame.name, frame.pts_s, tuple(frame.tracks))


def worst_frame(frame: FrameInfo, labels: UInt8Array, rgb: UInt8Array | None) -> WorstFrame:
    """Encode a frame that is worth a look."""
    object_ids = [track.object_id for track in frame.tracks]
    return WorstFrame(frame, frame_picture(rgb, labels, object_ids))
