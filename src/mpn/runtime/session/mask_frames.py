"""Find the frame that a mask file belongs to, by its number and its name."""

from __future__ import annotations

import re
from pathlib import Path

from mpn.errors import InputError
from mpn.runtime.media.video import VideoSource
from mpn.runtime.media.video_images import ImageSequence

_ONE_NUMBER = re.compile(r"(\D*)(\d+)(\D*)")


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
    numbers = _numbers(names)
    named = _index_by_name(file.stem, names, numbers, video.folder.resolve().name)
    if given is None:
        return named
    numbered = [index for index, number in enumerate(numbers) if int(number) == given]
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


def _numbers(names: tuple[str, ...]) -> list[str]:
    """Return the digits of each name; empty unless names differ in one number."""
    matches = [_ONE_NUMBER.fullmatch(name) for name in names]
    found = [match for match in matches if match is not None]
    if len(found) < len(names) or len({(m[1].casefold(), m[3].casefold()) for m in found}) > 1:
        return []
    return [match[2] for match in found]


def _index_by_name(
    stem: str, names: tuple[str, ...], numbers: list[str], video_name: str
) -> int | None:
    """Return the index of the image with a name, or with these digits as its number."""
    if stem == video_name:  # named after its video, as one mask per video of a data set is
        return None
    folded = [name.casefold() for name in names]
    for texts, text in ((folded, stem.casefold()), (numbers, stem)):
        if text in texts:
            return texts.index(text)
    return None
