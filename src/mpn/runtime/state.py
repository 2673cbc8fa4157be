"""What a pipeline remembers between two frames, and how the user's labels change it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mpn.errors import InputError, MaskError
from mpn.runtime.host.flow import FlowFrame
from mpn.runtime.host.preprocess import one_hot, resize_prob
from mpn.runtime.host.reliability import colour_table
from mpn.runtime.host.roi import box_from_prob
from mpn.runtime.tracks import Trust
from mpn.types import (
    MAX_OBJECT_ID,
    Float32Array,
    Roi,
    TrackBranch,
    TrackEvent,
    UInt8Array,
    check_labels,
    check_rgb,
)


@dataclass(frozen=True)
class State:
    """The current frame, segmented. Replaced as a whole, never changed.

    Attributes:
        index: Number of the frame, from 0.
        input_hw: (H, W) of the input.
        working_hw: (h, w) that frames are worked on at.
        frame: (h, w, 3) uint8 RGB, the frame at working size.
        flow_frame: The frame, prepared for flow.
        object_ids: The K ids, ascending.
        prob: (K, h, w) float32, merged; what is propagated further. Read-only.
        supports: For each object a box outside which ``prob`` is exactly 0; None: 0 everywhere.
        first_areas_px: Area of each object when the user last gave it, in working pixels.
        branches: What each object's probability came from.
        events: What the stages did in this frame, by the object's id.
        denied_ids: Objects that OSVOS does not see where they are, nor elsewhere.
        trust: What is remembered of each object's track, by its id.
        colour_tables: Colours of each object in the frame where the user last gave it.
        result_prob: (K, H, W) float32, what the labels are made of: ``prob`` at input size (the
            same array if the sizes agree), or what CRF made of it. Read-only, since the user gets
            it.
        result_boxes: ``supports`` for ``result_prob``.
        soft_prob: ``result_prob`` before CRF; the same array where there is none.
    """

    index: int
    input_hw: tuple[int, int]
    working_hw: tuple[int, int]
    frame: UInt8Array
    flow_frame: FlowFrame
    object_ids: tuple[int, ...]
    prob: Float32Array
    supports: tuple[Roi | None, ...]
    first_areas_px: tuple[float, ...]
    branches: tuple[TrackBranch, ...]
    events: Mapping[int, tuple[TrackEvent, ...]]
    denied_ids: frozenset[int]
    trust: Mapping[int, Trust]
    colour_tables: tuple[Float32Array, ...]
    result_prob: Float32Array
    result_boxes: tuple[Roi | None, ...]
    soft_prob: Float32Array

    def __post_init__(self) -> None:
        self.prob.setflags(write=False)
        self.result_prob.setflags(write=False)

    @classmethod
    def without_objects(
        cls,
        frame: UInt8Array,
        flow_frame: FlowFrame,
        input_hw: tuple[int, int],
        working_hw: tuple[int, int],
    ) -> State:
        """Frame 0 before any object was given."""
        prob = np.zeros((0, *working_hw), np.float32)
        result_prob = resize_prob(prob, input_hw)
        return cls(
            index=0,
            input_hw=input_hw,
            working_hw=working_hw,
            frame=frame,
            flow_frame=flow_frame,
            object_ids=(),
            prob=prob,
            supports=(),
            first_areas_px=(),
            branches=(),
            events={},
            denied_ids=frozenset(),
            trust={},
            colour_tables=(),
            result_prob=result_prob,
            result_boxes=(),
            soft_prob=result_prob,
        )

    def known_ids(self, labels: UInt8Array) -> tuple[int, ...]:
        """The ids in labels that correct objects.

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
        """The ids in labels that add objects.

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

    def check_frame(self, rgb: UInt8Array) -> None:
        """Raise InputError unless a frame is (H, W, 3) uint8 and of the video's size."""
        check_rgb(rgb)
        self.check_size(rgb.shape)

    def check_size(self, shape: Sequence[int]) -> None:
        """Raise InputError unless a frame of this shape is of the video's size."""
        if tuple(shape[:2]) != self.input_hw:
            raise InputError(
                f"the frame is {shape[1]}x{shape[0]} but the video began with "
                f"{self.input_hw[1]}x{self.input_hw[0]} (width x height): start anew for "
                "another video"
            )

    @property
    def lost_ids(self) -> frozenset[int]:
        """Ids of the objects without a pixel in the labels."""
        return frozenset(k for k, trust in self.trust.items() if trust.state == "lost")

    @property
    def _listed_ids(self) -> str:
        return ", ".join(map(str, self.object_ids))

    def with_given(self, labels: UInt8Array, given_ids: Sequence[int]) -> State:
        """The state after the user has said where some objects are.

        They are exactly where the labels say, old or new; every other object keeps what it had,
        except for the pixels that the labels give to one of them.

        Args:
            labels: (H, W) uint8 ids at input size.
            given_ids: The ids in ``labels``, without 0.
        """
        object_ids = tuple(sorted({*self.object_ids, *given_ids}))
        given = one_hot(labels, given_ids)
        given_small = resize_prob(given, self.working_hw)
        replaced: dict[int, Float32Array] = {}  # prob, soft_prob and result_prob may be one array

        def with_given(prob: Float32Array, planes: Float32Array) -> Float32Array:
            if id(prob) not in replaced:
                replaced[id(prob)] = self._replaced(prob, object_ids, planes, given_ids)
            return replaced[id(prob)]

        prob = with_given(self.prob, given_small)
        result_prob = with_given(self.result_prob, given)
        given_area = _areas_px(given_small, given_ids)
        first_area = dict(zip(self.object_ids, self.first_areas_px, strict=True)) | given_area
        branch = dict(zip(self.object_ids, self.branches, strict=True))
        branch |= dict.fromkeys(given_ids, "given")
        table = dict(zip(self.object_ids, self.colour_tables, strict=True))
        for object_id, plane in zip(given_ids, given_small, strict=True):
            table[object_id] = colour_table(self.frame, plane > 0.5)
        return replace(
            self,
            object_ids=object_ids,
            prob=prob,
            supports=tuple(box_from_prob(plane, 0.0) for plane in prob),
            first_areas_px=tuple(first_area[object_id] for object_id in object_ids),
            branches=tuple(branch[object_id] for object_id in object_ids),
            events={k: happened for k, happened in self.events.items() if k not in given_ids},
            denied_ids=self.denied_ids - set(given_ids),
            colour_tables=tuple(table[object_id] for object_id in object_ids),
            result_prob=result_prob,
            result_boxes=tuple(box_from_prob(plane, 0.0) for plane in result_prob),
            soft_prob=with_given(self.soft_prob, given),
        )

    def with_found(self, frame: UInt8Array, flow_frame: FlowFrame, labels: UInt8Array) -> State:
        """The state at another frame whose labels were segmented earlier.

        What was learned where the user gave the objects stays: first areas and colours.

        Args:
            frame: (h, w, 3) uint8 RGB at working size.
            flow_frame: The frame, prepared for flow.
            labels: (H, W) uint8 at input size; ids that the state does not have count for nothing.
        """
        result_prob = one_hot(labels, self.object_ids)
        prob = resize_prob(result_prob, self.working_hw)
        result_boxes = tuple(box_from_prob(plane, 0.0) for plane in result_prob)
        found: list[TrackBranch] = [
            "none" if box is None else "propagation" for box in result_boxes
        ]
        return replace(
            self,
            index=self.index + 1,
            frame=frame,
            flow_frame=flow_frame,
            prob=prob,
            supports=tuple(box_from_prob(plane, 0.0) for plane in prob),
            branches=tuple(found),
            events={},
            denied_ids=frozenset(),
            result_prob=result_prob,
            result_boxes=result_boxes,
            soft_prob=result_prob,
        )

    def _replaced(
        self,
        prob: Float32Array,
        object_ids: Sequence[int],
        given: Float32Array,
        given_ids: Sequence[int],
    ) -> Float32Array:
        """``prob`` with the given planes in it, and the others cleared where those are."""
        unclaimed = 1 - given.sum(axis=0)
        replaced = np.empty((len(object_ids), *prob.shape[1:]), np.float32)
        for plane, object_id in zip(replaced, object_ids, strict=True):
            if object_id in given_ids:
                plane[:] = given[given_ids.index(object_id)]
            else:
                np.multiply(prob[self.object_ids.index(object_id)], unclaimed, out=plane)
        return replaced


def object_ids_from_labels(labels: UInt8Array) -> tuple[int, ...]:
    """The ids in labels, ascending, without the background.

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


def _areas_px(prob: Float32Array, object_ids: Sequence[int]) -> dict[int, float]:
    areas = prob.sum(axis=(1, 2), dtype=np.float64)
    return {object_id: float(area) for object_id, area in zip(object_ids, areas, strict=True)}
