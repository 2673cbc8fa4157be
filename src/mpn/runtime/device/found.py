"""Where the objects of a frame on a device were found, in the words of the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpn.runtime.candidates import Candidates
from mpn.runtime.device.told import Told
from mpn.runtime.state import State
from mpn.types import Roi, TrackBranch, TrackEvent

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
