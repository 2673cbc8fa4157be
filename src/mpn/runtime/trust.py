"""Memory of an object's track: whether its last frames make it uncertain.

The *confidence* of an object is the mean probability of its pixels, before CRF. With one object
it is above 0.5, since a pixel belongs to the object if its probability does. A network that fits
the object returns 0.9 and more inside it; one that only copies an old outline returns less. An
*area* that halves or doubles against the mean of the last frames means an occlusion or a leaking
mask. And OSVOS may have *rejected* the object: it finds something else at the object's place and
has no better candidate yet.

An uncertain object is not lost: OSVOS runs for it in each frame until it is certain again.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpn.types import Track, TrackState

_AREA_MEMORY = 0.2
"""Weight of the newest frame in the mean area: a memory of about five frames. An object that
shrinks by a tenth per frame has 0.56 of that mean, which a factor of 2 still accepts."""


@dataclass(frozen=True)
class TrackMemory:
    """State of an object's track that the next frame needs.

    Attributes:
        state: In the last frame.
        mean_area_px: Exponential mean over the last frames with the object, in pixels of the
            labels at input size.
        is_uncertain: True if its confidence was too low, its area changed too fast, or OSVOS
            rejected it.
    """

    state: TrackState
    mean_area_px: float
    is_uncertain: bool


def update_track_memory(
    track: Track,
    before: TrackMemory | None,
    *,
    doubt_confidence: float,
    doubt_area_factor: float,
    is_rejected: bool = False,
) -> TrackMemory:
    """Compute the memory of an object after a frame.

    Args:
        track: The object in this frame.
        before: Its memory before the frame; None for a new object.
        doubt_confidence: See :class:`mpn.runtime.options.PipelineOptions`.
        doubt_area_factor: See there.
        is_rejected: Whether OSVOS rejected the object in this frame.

    Returns:
        An object that the user gave is certain, and its mean area restarts. A lost object is lost,
        not uncertain, and keeps its mean area.
    """
    area_px = float(track.area_px)
    if before is None or track.state == "given":
        return TrackMemory(track.state, area_px, False)
    mean_px = before.mean_area_px
    if track.state == "lost":
        return TrackMemory(track.state, mean_px, False)
    if before.state == "lost" or mean_px == 0:
        mean_px = area_px  # after an absence it may have any size
    is_sudden = not mean_px / doubt_area_factor <= area_px <= mean_px * doubt_area_factor
    return TrackMemory(
        track.state,
        mean_px + _AREA_MEMORY * (area_px - mean_px),
        is_rejected or is_sudden or track.confidence < doubt_confidence,
    )
