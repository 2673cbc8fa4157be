"""Where the objects are expected in a frame, before the propagation network has looked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mpn.runtime.device.readback import Told
from mpn.runtime.state import State
from mpn.types import Float32Array, Roi, TrackBranch, TrackEvent


@dataclass(frozen=True)
class Candidates:
    """Where each object is expected in the current frame.

    Attributes:
        prob: (K, h, w) float32: warped from the previous frame, or from OSVOS if retrieved.
        supports: For each object a box outside which ``prob`` is exactly 0; None if it is lost.
        rois: For each object what the propagation network looks at; None if it is lost.
        branches: What ``prob`` comes from.
        events: What has happened in this frame so far, by the index of the object.
        denied: Indices of objects that OSVOS does not see where they are expected, nor elsewhere.
    """

    prob: Float32Array
    supports: tuple[Roi | None, ...]
    rois: tuple[Roi | None, ...]
    branches: tuple[TrackBranch, ...]
    events: Mapping[int, tuple[TrackEvent, ...]] = field(default_factory=dict)
    denied: frozenset[int] = frozenset()

    def present(self, object_ids: Sequence[int]) -> tuple[int, ...]:
        """Of these K ids those that are expected somewhere, in the order of their crops."""
        return tuple(i for i, roi in zip(object_ids, self.rois, strict=True) if roi is not None)

    def with_retrieved(self, k: int, plane: Float32Array, box: Roi, roi: Roi) -> Candidates:
        """These candidates with object ``k`` found by OSVOS.

        Args:
            k: Index of the object.
            plane: (h, w) float32, its probability, 0 outside ``box``.
            box: See ``supports``.
            roi: What the propagation network will look at.
        """
        prob = self.prob.copy()
        prob[k] = plane
        supports, rois, branches = list(self.supports), list(self.rois), list(self.branches)
        supports[k], rois[k], branches[k] = box, roi, "osvos"
        happened: tuple[TrackEvent, ...] = (
            ("retrieved",) if self.rois[k] is None else ("lost", "retrieved")
        )
        return replace(
            self,
            prob=prob,
            supports=tuple(supports),
            rois=tuple(rois),
            branches=tuple(branches),
            events={**self.events, k: happened},
        )

    def with_denied(self, k: int) -> Candidates:
        """These candidates with object ``k`` denied."""
        return replace(self, denied=self.denied | {k})

    def with_blended(self, k: int) -> Candidates:
        """These candidates with object ``k`` averaged with OSVOS."""
        branches = list(self.branches)
        if branches[k] == "propagation":
            branches[k] = "blended"
        happened: tuple[TrackEvent, ...] = (*self.events.get(k, ()), "blended")
        return replace(self, branches=tuple(branches), events={**self.events, k: happened})


_PROPAGATION: TrackBranch = "propagation"


def all_there(state: State) -> Candidates:
    """Candidates of which none is lost, for what is asked of them before the warp."""
    somewhere = Roi(0, 0, 1, 1)
    count = len(state.object_ids)
    return Candidates(
        prob=np.empty((count, 0, 0), np.float32),
        supports=state.supports,
        rois=(somewhere,) * count,
        branches=(_PROPAGATION,) * count,
    )


def found_from_told(told: Told, blended: tuple[bool, ...]) -> Candidates:
    """What happened in a frame that needed no decision of the host."""
    found = Candidates(
        prob=np.empty((len(told.rois), 0, 0), np.float32),
        supports=told.reach,
        rois=told.rois,
        branches=(_PROPAGATION,) * len(told.rois),
    )
    return blended_where(found, blended)


def blended_where(found: Candidates, wanted: tuple[bool, ...]) -> Candidates:
    """Candidates of which those that were not lost are averaged with OSVOS where it ran."""
    for k, is_wanted in enumerate(wanted):
        if is_wanted and found.rois[k] is not None:
            found = found.with_blended(k)
    return found


def events_by_id(found: Candidates, object_ids: Sequence[int]) -> dict[int, tuple[TrackEvent, ...]]:
    """What has happened in a frame, by the object's id instead of its index."""
    return {object_ids[k]: happened for k, happened in found.events.items()}
