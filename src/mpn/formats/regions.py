"""Convert the regions of an annotation file to labels of frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from mpn.formats.frames import VideoFacts
from mpn.formats.objects import ObjectIds, ObjectKey
from mpn.types import BoolArray, UInt8Array

Place: TypeAlias = "int | str | None"
"""Frame of a region: its index, the name of its image, or None if the file has one frame."""

_MOST_BYTES = 2 << 30
"""Labels of all frames of a file: 1,000 frames of 1080p."""

_MOST_REGIONS_PER_FRAME = 10_000
_MOST_SHOWN = 8


@dataclass(frozen=True)
class Region:
    """Part of a frame that belongs to one object.

    Attributes:
        place: Its frame.
        label: Label of its object.
        draw: Returns its (H, W) bool mask, or raises ValueError.
        instance: See :class:`ObjectKey`; None if the file gives none.
        number: Number of its track or group, as a proposal for the object id.
    """

    place: Place
    label: str
    draw: Callable[[], BoolArray]
    instance: int | str | None = None
    number: int | None = None


@dataclass(frozen=True)
class Annotations:
    """Content of an annotation file.

    Attributes:
        kind: Noun phrase for messages, such as "a COCO file".
        regions: In the order in which they are drawn, later ones over earlier ones.
        sizes_hw: Sizes of the images, as far as the file has them.
        notes: Lines for the user.
        must_group: Whether shapes of one frame with one label and no group may be parts of one
            object or several objects, as in labelme. Otherwise they are several.
        is_folder: Whether the places are names of files in a folder, which stand for frames.
    """

    kind: str
    regions: list[Region]
    sizes_hw: Mapping[Place, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    must_group: bool = False
    is_folder: bool = False


@dataclass(frozen=True)
class GivenMasks:
    """Masks of a file or a folder.

    Attributes:
        labels: Frame index -> (H, W) uint8 ids; None stands for the frame that the user names,
            or the first frame.
        names: Object id -> name, of the objects that have one.
        notes: Lines for the user.
    """

    labels: Mapping[int | None, UInt8Array]
    names: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def masks_from_annotations(
    found: Annotations, facts: VideoFacts, frame: int | None, objects: ObjectIds, title: str
) -> GivenMasks:
    """Draw the regions of an annotation file.

    Args:
        found: The file.
        facts: The video.
        frame: Index of the only frame to use; None for all.
        objects: Ids of the objects so far; gets those of this file.
        title: Start of a note, such as "the mask FILE".

    Raises:
        ValueError: If regions, frames or objects cannot be decided or drawn; a clause about the
            file as "it".
    """
    if not found.regions:
        raise ValueError(f"it is {found.kind} without a mask, polygon or box")
    by_frame, notes = _by_frame(found, facts, frame)
    height, width = facts.size_hw
    if len(by_frame) * height * width > _MOST_BYTES:
        raise ValueError(
            f"it has masks of {len(by_frame)} frames, {len(by_frame) * height * width >> 20} MB of "
            f"labels, more than {_MOST_BYTES >> 20}: keep the masks of fewer frames"
        )
    keyed = _with_keys(by_frame, must_group=found.must_group)
    used: dict[ObjectKey, int | None] = {}
    for regions in keyed.values():
        for key, region in regions:
            used.setdefault(key, region.number)
    ids = objects.assign(used)
    labels = {index: _drawn(regions, ids, facts.size_hw) for index, regions in keyed.items()}
    names = {k: objects.names[k] for k in ids.values() if k in objects.names}
    if len(labels) > 1:
        notes.append(f"{title} has masks of {shown_frames(labels)}")
    return GivenMasks(labels, names, (*found.notes, *notes))


def shown_frames(indices: Iterable[int | None]) -> str:
    """Return the number of frames, and the first of them."""
    numbers = sorted(index for index in indices if index is not None)
    shown = ", ".join(map(str, numbers[:_MOST_SHOWN]))
    return f"{len(numbers)} frames: {shown}{', ...' if len(numbers) > _MOST_SHOWN else ''}"


def _by_frame(
    found: Annotations, facts: VideoFacts, frame: int | None
) -> tuple[dict[int | None, list[Region]], list[str]]:
    """Group the regions by the index of their frame."""
    by_place: dict[Place, list[Region]] = {}
    for region in found.regions:
        by_place.setdefault(region.place, []).append(region)
    by_frame, notes = frames_of_places(
        by_place, found.kind, facts, frame, is_folder=found.is_folder
    )
    for place in by_frame.values():
        size_hw = found.sizes_hw.get(place)
        if size_hw is not None and size_hw != facts.size_hw:
            where = f"the image {place} in it" if isinstance(place, str) else "it"
            raise ValueError(
                f"{where} is {size_hw[1]}x{size_hw[0]} but the video is {facts.size_hw[1]}x"
                f"{facts.size_hw[0]} (width x height): give masks of the video's size"
            )
    return {index: by_place[place] for index, place in by_frame.items()}, notes


def frames_of_places(
    places: Mapping[Place, object],
    kind: str,
    facts: VideoFacts,
    frame: int | None,
    *,
    is_folder: bool,
) -> tuple[dict[int | None, Place], list[str]]:
    """Find the frame of each place of a file, in the order of the frames.

    Args:
        places: Their keys are used.
        kind: Noun phrase for messages.
        facts: The video.
        frame: Index of the only frame to use; None for all.
        is_folder: See :class:`Annotations`.

    Returns:
        Frame index -> place; the index is None for a single place that stands for no frame. And
        notes about the places that are left out.

    Raises:
        ValueError: If no place is a frame of the run, or two are one frame.
    """
    if len(places) == 1:
        (place,) = places
        return {_index_of_single(place, facts, frame, is_folder): place}, []
    by_frame: dict[int, Place] = {}
    unknown: list[Place] = []
    outside = 0
    for place in places:
        index = facts.index_of(place) if isinstance(place, str) else place
        if index is None:
            unknown.append(place)
        elif frame is None and not facts.is_in_run(index):
            outside += 1
        elif index in by_frame:
            raise ValueError(
                f"{by_frame[index]} and {place} in it both stand for frame {index}: keep one"
            )
        else:
            by_frame[index] = place
    if not by_frame:
        raise ValueError(
            f"it is {kind} with masks of {len(places)} frames, and none is a frame of the video"
            f"{f', such as {unknown[0]!r}' if unknown else ''}: give the file of this video"
        )
    notes = []
    if unknown:
        notes.append(
            f"masks of {len(unknown)} images are left out, which are no frames of the video: "
            f"{unknown[0]!r}{' and others' if len(unknown) > 1 else ''}"
        )
    if outside:
        notes.append(f"masks of {outside} frames before or after those of the run are left out")
    if frame is None:
        return {index: by_frame[index] for index in sorted(by_frame)}, notes
    if frame not in by_frame:
        raise ValueError(f"it has no mask of frame {frame}, but of {shown_frames(by_frame)}")
    return {frame: by_frame[frame]}, notes


def _index_of_single(
    place: Place, facts: VideoFacts, frame: int | None, is_folder: bool
) -> int | None:
    """Return the frame of the only place of a file or folder.

    The image that a file names need not be a frame of a video file, whatever its number is.
    """
    if isinstance(place, int):
        index: int | None = place
    elif place is None or (facts.images is None and not is_folder):
        return None
    else:
        index = facts.index_of(place)
    if None not in (index, frame) and index != frame:
        raise ValueError(f"it has the mask of frame {index}, but was given for frame {frame}")
    return index


def _with_keys(
    by_frame: Mapping[int | None, list[Region]], *, must_group: bool
) -> dict[int | None, list[tuple[ObjectKey, Region]]]:
    """Find the object of each region.

    Raises:
        ValueError: If a region may belong to one or another object.
    """
    repeated: set[str] = set()
    for index, regions in by_frame.items():
        if len(regions) > _MOST_REGIONS_PER_FRAME:
            raise ValueError(
                f"it has {len(regions)} shapes in one frame: keep the objects to track"
            )
        alone = Counter(region.label for region in regions if region.instance is None)
        for label, count in alone.items():
            if count > 1 and must_group:
                raise ValueError(
                    f"{count} shapes have the label {label!r}: give parts of one object one "
                    "group_id, and different objects different labels"
                )
            if count > 1 and len(by_frame) > 1:
                raise ValueError(
                    f"{count} objects of frame {index} have the label {label!r} and neither track "
                    "nor group, so they cannot be found in its other frames: give each object a "
                    "label, or one frame with FRAME:FILE"
                )
            if count > 1:
                repeated.add(label)
    keyed: dict[int | None, list[tuple[ObjectKey, Region]]] = {}
    for index, regions in by_frame.items():
        for number, region in enumerate(regions, 1):
            instance = region.instance
            if instance is None and region.label in repeated:
                instance = f"shape {number}"
            keyed.setdefault(index, []).append((ObjectKey(region.label, instance), region))
    return keyed


def _drawn(
    regions: list[tuple[ObjectKey, Region]],
    ids: Mapping[ObjectKey, int],
    size_hw: tuple[int, int],
) -> UInt8Array:
    labels = np.zeros(size_hw, np.uint8)
    for key, region in regions:
        labels[region.draw()] = ids[key]
    return labels
