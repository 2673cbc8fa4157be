"""Hold the candidates of a frame: objects before the propagation network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mpn.types import Float32Array, Roi, TrackBranch, TrackEvent

_PROPAGATION: TrackBranch = "propagation"


@dataclass(frozen=True)
class Candidates:
    """Expected probability and region of each object in the current frame.

    Attributes:
        prob: (K, h, w) float32: warped from the previous frame, or from OSVOS if re-detected. Its
            planes are empty if the probabilities stay in device memory.
        bounds: Per object a box outside which ``prob`` is exactly 0; None if it is lost.
        rois: Per object the input region of the propagation network; None if it is lost.
        branches: Per object the source of ``prob``.
        events: Events of this frame so far, by the index of the object.
        rejected: Indices of objects that OSVOS finds neither at their candidate nor elsewhere.
    """

    prob: Float32Array
    bounds: tuple[Roi | None, ...]
    rois: tuple[Roi | None, ...]
    branches: tuple[TrackBranch, ...]
    events: Mapping[int, tuple[TrackEvent, ...]] = field(default_factory=dict)
    rejected: frozenset[int] = frozenset()

    def present(self, object_ids: Sequence[int]) -> tuple[int, ...]:
        """Return the ids of the objects that are not lost, in the order of their crops."""
        return tuple(i for i, roi in zip(object_ids, self.rois, strict=True) if roi is not None)

    def with_redetected(self, k: int, plane: Float32Array, box: Roi, roi: Roi) -> Candidates:
        """Return a copy in which OSVOS has found object ``k``.

        Args:
            k: Index of the object.
            plane: (h, w) float32, its probability, 0 outside ``box``.
            box: See ``bounds``.
            roi: Input region of the propagation network.
        """
        prob = self.prob.copy()
        prob[k] = plane
        bounds, rois, branches = list(self.bounds), list(self.rois), list(self.branches)
        bounds[k], rois[k], branches[k] = box, roi, "osvos"
        happened: tuple[TrackEvent, ...] = (
            ("redetected",) if self.rois[k] is None else ("lost", "redetected")
        )
        return replace(
            self,
            prob=prob,
            bounds=tuple(bounds),
            rois=tuple(rois),
            branches=tuple(branches),
            events={**self.events, k: happened},
        )

    def with_lost(self, k: int) -> Candidates:
        """Return a copy in which object ``k`` is lost."""
        prob = self.prob.copy()
        prob[k] = 0
        bounds, rois = list(self.bounds), list(self.rois)
        bounds[k] = rois[k] = None
        events = {**self.events, k: (*self.events.get(k, ()), "lost")}
        return replace(self, prob=prob, bounds=tuple(bounds), rois=tuple(rois), events=events)

    def with_rejected(self, k: int) -> Candidates:
        """Return a copy in which OSVOS rejects object ``k``."""
        return replace(self, rejected=self.rejected | {k})

    def with_blended(self, k: int) -> Candidates:
        """Return a copy in which object ``k`` is averaged with OSVOS."""
        branches = list(self.branches)
        if branches[k] == "propagation":
            branches[k] = "blended"
        happened: tuple[TrackEvent, ...] = (*self.events.get(k, ()), "blended")
        return replace(self, branches=tuple(branches), events={**self.events, k: happened})

    def events_by_id(self, object_ids: Sequence[int]) -> dict[int, tuple[TrackEvent, ...]]:
        """Return the events of the frame by object id instead of index."""
        return {object_ids[k]: happened for k, happened in self.events.items()}


def candidates_from_rois(rois: Sequence[Roi | None]) -> Candidates:
    """Make the candidates of a frame whose probabilities stay in device memory."""
    return Candidates(
        prob=np.empty((len(rois), 0, 0), np.float32),
        bounds=tuple(rois),
        rois=tuple(rois),
        branches=(_PROPAGATION,) * len(rois),
    )


def mark_blended(found: Candidates, osvos_for: Sequence[bool]) -> Candidates:
    """Mark as blended each object that OSVOS ran for and that is not lost."""
    for k, has_map in enumerate(osvos_for):
        if has_map and found.rois[k] is not None:
            found = found.with_blended(k)
    return found
