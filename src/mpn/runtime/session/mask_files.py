"""Read the mask files of a run: each has masks of one frame or of several."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mpn.errors import InputError, VideoError
from mpn.formats import GivenMasks, ObjectIds, VideoFacts, read_masks
from mpn.formats.regions import shown_frames
from mpn.runtime.media.video import EndsEarlyError, VideoSource
from mpn.runtime.media.video_images import ImageSequence
from mpn.runtime.session.mask_frames import frame_names, frame_of_mask
from mpn.types import UInt8Array


def facts_of(video: VideoSource) -> VideoFacts:
    """Return the facts that the masks of a video must fit."""
    images = None
    if isinstance(video, ImageSequence):
        images = frame_names(video)
    return VideoFacts(video.size_hw, video.name, images, video.first_frame.index, video.end_index)


def read_mask_files(
    files: Mapping[int | None, Path], video: VideoSource | VideoFacts
) -> tuple[GivenMasks, dict[int | None, Path]]:
    """Read all masks that a user gave for a video.

    Args:
        files: Frame index -> file or folder, see :func:`mpn.formats.read_masks`; None for a file
            that has the frames in it, or is the mask of the first frame.
        video: The video, or its facts alone.

    Returns:
        The masks by frame, the names of the objects, and lines for the user; and the file of each
        mask. None stands for the first frame.

    Raises:
        InputError: If a frame has two masks, or the frame of a mask is ambiguous.
        MaskError: If a file cannot be used as a mask of this video.
    """
    facts = video if isinstance(video, VideoFacts) else facts_of(video)
    objects = ObjectIds()
    labels: dict[int | None, UInt8Array] = {}
    paths: dict[int | None, Path] = {}
    notes: list[str] = []
    listed: set[int] = set()
    for given, path in files.items():
        frame = given
        if isinstance(video, VideoSource) and not os.path.isdir(path):
            frame = frame_of_mask(given, path, video)
            if given is None and frame not in (None, video.first_frame.index):
                notes.append(f"the mask {path} is used for frame {frame}, the image of its name")
        found = read_masks(path, facts, frame=frame, objects=objects)
        notes += found.notes
        for own, mask in found.labels.items():
            index = frame if own is None else own
            if index in labels:
                which = "the first frame" if index is None else f"frame {index}"
                raise InputError(
                    f"two masks were given for {which}, {paths[index]} and {path}: give one per "
                    "frame"
                )
            labels[index], paths[index] = mask, path
            if given is None and own is not None:
                listed.add(own)
    if isinstance(video, VideoSource) and listed:
        end = _end_of(max(listed), video)
        late = {index for index in listed if end is not None and index >= end}
        if late and late != labels.keys():
            notes.append(f"masks of {shown_frames(late)} are left out: they are after the end")
            for index in late:
                del labels[index], paths[index]
    return GivenMasks(labels, dict(objects.names), tuple(notes)), paths


def _end_of(index: int, video: VideoSource) -> int | None:
    """Return the end of a run, exact if it is not after an index.

    The number of frames in the header of a file may be wrong, so they are counted if a mask is
    after them.
    """
    hint = video.frame_count_hint
    if video.is_live or (hint is not None and index < video.first_frame.index + hint):
        return video.end_index
    try:
        next(video.backwards(index, index + 1), None)
    except EndsEarlyError as error:
        return error.count if video.end_index is None else min(error.count, video.end_index)
    except VideoError:  # the run itself raises it, after the frames before it
        pass
    return video.end_index
