"""How far an object's track can be believed, from what its last frames looked like.

The *confidence* of an object is the mean probability of its own pixels, before CRF: at most 1, and
with one object above 0.5, since a pixel is the object's if its probability is. A network that is
sure of an object says 0.9 and more inside it; one that follows something else by its old outline
alone says less. An *area* that halves or doubles against the mean of the last frames is an
occlusion, or a mask that leaks. And OSVOS may have *denied* the object: it sees something else
where propagation follows it, and has nowhere else to propose yet.

None of these says that the object is lost: it says that OSVOS should be asked, again and again.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpn.types import Track, TrackState

_AREA_MEMORY = 0.2
"""Weight of the newest frame in the mean area: a memory of about five frames. An object that
shrinks by a tenth in every frame has 0.56 of that mean, and is not yet suspicious at a half."""


@dataclass(frozen=True)
class Trust:
    """What is remembered of an object's track.

    Attributes:
        state: In the last frame.
        mean_area_px: Of the last frames with the object, exponentially forgotten; pixels of the
            labels at input size.
        is_doubtful: Whether its confidence was too low, its area changed too suddenly, or OSVOS
            denied it.
    """

    state: TrackState
    mean_area_px: float
    is_doubtful: bool


def trust_from_track(
    track: Track,
    before: Trust | None,
    *,
    doubt_confidence: float,
    doubt_area_factor: float,
    is_denied: bool = False,
) -> Trust:
    """What to remember after a frame.

    Args:
        track: The object in this frame.
        before: What was remembered so far; None for a new object.
        doubt_confidence: See :class:`mpn.runtime.options.PipelineOptions`.
        doubt_area_factor: See there.
        is_denied: Whether OSVOS saw something else where it is.

    Returns:
        An object that the user gave is beyond doubt, and its area starts anew. One that is lost is
        not doubtful but lost, and keeps the area that it had.
    """
    area_px = float(track.area_px)
    if before is None or track.state == "given":
        return Trust(track.state, area_px, False)
    mean_px = before.mean_area_px
    if track.state == "lost":
        return Trust(track.state, mean_px, False)
    if before.state == "lost" or mean_px == 0:
        mean_px = area_px  # after an absence it may have any size
    is_sudden = not mean_px / doubt_area_factor <= area_px <= mean_px * doubt_area_factor
    return Trust(
        track.state,
        mean_px + _AREA_MEMORY * (area_px - mean_px),
        is_denied or is_sudden or track.confidence < doubt_confidence,
    )
