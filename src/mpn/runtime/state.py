"""Hold the state of a video between two frames, without its planes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mpn.errors import InputError, MaskError
from mpn.runtime.tracks import TrackMemory
from mpn.types import (
    MAX_OBJECT_ID,
    Float32Array,
    Roi,
    TrackBranch,
    TrackEvent,
    UInt8Array,
    check_labels,
)


@dataclass(frozen=True)
class VideoState:
    """Objects of a video in its current frame. Replaced as a whole, never changed.

    The planes of the objects are in the backend, see :class:`mpn.runtime.backend.FrameMemory`.

    Attributes:
        index: Number of the frame, from 0.
        input_hw: (H, W) of the input.
        working_hw: (h, w) of the stages.
        object_ids: The K ids, ascending.
        bounds: Per object a box at working size outside which its probability is exactly 0; None:
            0 everywhere.
        first_areas_px: Per object its area when the user last gave it, in working pixels.
        branches: Per object the source of its probability.
        events: Events of the stages in this frame, by object id.
        rejected_ids: Objects that OSVOS finds neither at their candidate nor elsewhere.
        track_memory: Memory of each object's track, by object id.
        colour_tables: Per object its colours in the frame where the user last gave it; see
            :func:`mpn.runtime.host.reliability.colour_table`.
    """

    index: int
    input_hw: tuple[int, int]
    working_hw: tuple[int, int]
    object_ids: tuple[int, ...] = ()
    bounds: tuple[Roi | None, ...] = ()
    first_areas_px: tuple[float, ...] = ()
    branches: tuple[TrackBranch, ...] = ()
    events: Mapping[int, tuple[TrackEvent, ...]] = field(default_factory=dict)
    rejected_ids: frozenset[int] = frozenset()
    track_memory: Mapping[int, TrackMemory] = field(default_factory=dict)
    colour_tables: tuple[Float32Array, ...] = ()

    def known_ids(self, labels: UInt8Array) -> tuple[int, ...]:
        """Return the ids in labels that correct objects.

        Args:
            labels: (H, W) uint8 at input size.

        Raises:
            InputError: If the labels have another shape or dtype.
            MaskError: If there is none, 255, or one that does not exist yet.
        """
        check_labels(labels, self.input_hw)
        given_ids = object_ids_from_labels(labels)
        for object_id in given_ids:
            if object_id not in self.object_ids:
                raise MaskError(
                    f"object {object_id} does not exist (there are {self._listed_ids}): "
                    "use add_objects for new objects"
                )
        return given_ids

    def new_ids(self, labels: UInt8Array) -> tuple[int, ...]:
        """Return the ids in labels that add objects.

        Args:
            labels: (H, W) uint8 at input size.

        Raises:
            InputError: If the labels have another shape or dtype.
            MaskError: If there is none, 255, or one that exists.
        """
        check_labels(labels, self.input_hw)
        given_ids = object_ids_from_labels(labels)
        for object_id in given_ids:
            if object_id in self.object_ids:
                raise MaskError(
                    f"object {object_id} exists already (there are {self._listed_ids}): "
                    "use correct for it, or give the new object another id"
                )
        return given_ids

    def check_size(self, shape: Sequence[int]) -> None:
        """Raise InputError unless a frame of this shape has the video's size."""
        if tuple(shape[:2]) != self.input_hw:
            raise InputError(
                f"the frame is {shape[1]}x{shape[0]} but the video began with "
                f"{self.input_hw[1]}x{self.input_hw[0]} (width x height): call start for "
                "another video"
            )

    @property
    def lost_ids(self) -> frozenset[int]:
        """Ids of the objects without a pixel in the labels."""
        return frozenset(k for k, memory in self.track_memory.items() if memory.state == "lost")

    @property
    def _listed_ids(self) -> str:
        return ", ".join(map(str, self.object_ids))


def object_ids_from_labels(labels: UInt8Array) -> tuple[int, ...]:
    """Return the ids in labels, ascending, without the background.

    Raises:
        MaskError: If there is none, or 255, which DAVIS keeps for "void".
    """
    ids = tuple(int(i) for i in np.flatnonzero(np.bincount(labels.ravel(), minlength=256)) if i)
    if not ids:
        raise MaskError(
            "the mask holds no object, every pixel is 0: mark at least one object with an id from 1"
        )
    if ids[-1] > MAX_OBJECT_ID:
        raise MaskError(
            f"the mask holds the value {ids[-1]}, but object ids go from 1 to {MAX_OBJECT_ID} (255 "
            "means 'void' in DAVIS): set those pixels to 0, or to the id of their object"
        )
    return ids
