"""Find the frame that a mask file belongs to, by its number and its name."""

from __future__ import annotations

from pathlib import Path

from mpn.errors import InputError
from mpn.formats import FrameNames
from mpn.runtime.media.video import VideoSource
from mpn.runtime.media.video_images import ImageSequence


def frame_names(video: ImageSequence) -> FrameNames:
    """Return the names of all images of a sequence."""
    return FrameNames(video.names, video.folder.resolve().name)


def frame_of_mask(given: int | None, file: Path, video: VideoSource) -> int | None:
    """Return the index of the frame that a mask belongs to.

    In a sequence of images a mask with the name of an image belongs to that image. A number that is
    an index and the number of another image is ambiguous without such a name.

    Args:
        given: Frame number that the user gave; None for the first frame.
        file: The mask; only its name is used.
        video: The video. Only a sequence of images has named frames.

    Returns:
        The index; None for the first frame, if the mask has the name of no image.

    Raises:
        InputError: If number and name stand for two frames, or the number for two.
    """
    if not isinstance(video, ImageSequence):
        return given
    names = video.names
    frames = frame_names(video)
    named = frames.index_of(file.stem)
    if given is None:
        return named
    numbered = [index for index, number in enumerate(frames.numbers) if int(number) == given]
    possible = {*numbered, *([given] if given < len(names) else [])}
    if named is not None:
        if named in possible:
            return named
        which = f" ({names[given]})" if given < len(names) else ""
        raise InputError(
            f"the mask {file} has the name of frame {named} ({names[named]}), but was given for "
            f"frame {given}{which}: give {named}:{file.name}, or rename the mask"
        )
    if len(possible) > 1:
        other = next(index for index in numbered if index != given)
        raise InputError(
            f"frame {given} of the mask {file} may be the image {names[given]} (index {given}) or "
            f"{names[other]} (index {other}): give the mask the name of its image, such as "
            f"{names[other]}{file.suffix}"
        )
    return next(iter(possible), given)
