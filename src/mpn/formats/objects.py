"""Assign object ids to the labels, groups and tracks of annotation files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from mpn.types import MAX_OBJECT_ID

_MOST_CHARACTERS = 200
"""Of a label: the largest of COCO, LVIS and Open Images have 50."""


class ObjectKey(NamedTuple):
    """Identity of an object in annotation files.

    Attributes:
        label: Name that the user gave, also to other objects.
        instance: Group, track or number that distinguishes objects of one label; None if
            the label alone stands for the object.
    """

    label: str
    instance: Hashable = None


class ObjectIds:
    """Ids and names of the objects of a run, over all of its mask files.

    An object keeps its id in all files: by its label and instance, or by its label alone if no
    other object has that.
    """

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self._id_of: dict[ObjectKey, int] = {}
        self._unnamed: set[int] = set()

    def add_unnamed(self, ids: Iterable[int]) -> None:
        """Take note of ids of a mask without names, such as a palette PNG."""
        self._unnamed.update(set(ids) - set(self._id_of.values()))

    def assign(self, objects: Mapping[ObjectKey, int | None]) -> dict[ObjectKey, int]:
        """Return the id of each object of a file, and keep it for the files after.

        The ids are the labels if all of these are numbers of 1..254. Otherwise they are the
        numbers of the groups or tracks if each object has its own of 1..254, and else 1, 2, ...
        in the order of the file.

        Args:
            objects: Objects in the order of the file, each with the number of its group or track.

        Raises:
            ValueError: If an object may be one or another of the files before, or there are too
                many objects.
        """
        for key in objects:
            if len(key.label) > _MOST_CHARACTERS:
                raise ValueError(
                    f"its label {key.label[:20]!r}... has {len(key.label)} characters, more than "
                    f"{_MOST_CHARACTERS}"
                )
        numbered = _numbers_of({key: key.label for key in objects})
        if numbered is not None:  # two groups of one number are one object
            self._id_of.update(numbered)
            return numbered
        ids = self._known(list(objects))
        new = [key for key in objects if key not in ids]
        taken = {*self._id_of.values(), *self._unnamed}
        numbers = [objects[key] for key in new]
        usable = [n for n in numbers if n is not None and 0 < n <= MAX_OBJECT_ID]
        if len(set(usable)) == len(new) and not set(usable) & set(self._id_of.values()):
            ids.update(zip(new, usable, strict=True))
        elif new and self._unnamed:
            shown = ", ".join(map(str, sorted(self._unnamed)))
            raise ValueError(
                f"its object {new[0].label!r} may be a new one or one of the ids {shown} of "
                "another mask: use these ids as labels"
            )
        else:
            free = (k for k in range(1, MAX_OBJECT_ID + 1) if k not in taken)
            ids.update(zip(new, free, strict=False))
        if len(ids) < len(objects):
            raise ValueError(
                f"it has {len(objects)} objects, and ids end at {MAX_OBJECT_ID}: keep fewer"
            )
        self._id_of.update(ids)
        for key, object_id in ids.items():
            if key.label != str(object_id):
                self.names[object_id] = key.label
        return ids

    def _known(self, keys: Sequence[ObjectKey]) -> dict[ObjectKey, int]:
        """Return the ids of objects of the files before."""
        ids = {key: self._id_of[key] for key in keys if key in self._id_of}
        count = Counter(key.label for key in keys)
        for key in keys:
            same = {k for known, k in self._id_of.items() if known.label == key.label}
            if key in ids or not same:
                continue
            if len(same) > 1 or count[key.label] > 1:
                shown = ", ".join(map(str, sorted(same)))
                raise ValueError(
                    f"its object {key.label!r} may be {shown} of another mask, which have this "
                    "label, or a new one: give objects different labels"
                )
            ids[key] = next(iter(same))
        return ids


def _numbers_of(labels: Mapping[ObjectKey, str]) -> dict[ObjectKey, int] | None:
    """Return the labels as ids; None unless all are numbers of 1..254."""
    ids: dict[ObjectKey, int] = {}
    for key, label in labels.items():
        if not (label.isascii() and label.isdigit() and len(label) <= 3):
            return None
        ids[key] = int(label)
    return ids if all(0 < k <= MAX_OBJECT_ID for k in ids.values()) else None
