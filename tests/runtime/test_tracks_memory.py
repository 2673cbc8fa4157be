from __future__ import annotations

import pytest

from mpn.runtime.tracks import TrackMemory, update_track_memory
from mpn.types import Track, TrackState


def track(area_px: int, confidence: float = 0.9, state: TrackState | None = None) -> Track:
    found: TrackState = "tracked" if area_px else "lost"
    return Track(1, state or found, "propagation", area_px, None, confidence)


def after(before: TrackMemory | None, now: Track) -> TrackMemory:
    return update_track_memory(now, before, confidence_min=0.7)


def history(*areas_px: float, confidence: float = 0.9) -> list[TrackMemory]:
    trusts: list[TrackMemory] = [after(None, track(int(areas_px[0]), 1, "given"))]
    for area_px in areas_px[1:]:
        trusts.append(after(trusts[-1], track(int(area_px), confidence if area_px else 0)))
    return trusts


@pytest.mark.parametrize(("confidence", "is_uncertain"), [(0.69, True), (0.71, False), (1, False)])
def test_an_object_that_the_network_is_not_sure_of_is_uncertain(
    confidence: float, is_uncertain: bool
) -> None:
    assert history(1000, 1000, confidence=confidence)[-1].is_uncertain == is_uncertain


@pytest.mark.parametrize(
    ("area_px", "is_uncertain"), [(480, True), (520, False), (1900, False), (2100, True)]
)
def test_an_area_that_halves_or_doubles_at_once_is_uncertain(
    area_px: int, is_uncertain: bool
) -> None:
    assert history(1000, 1000, area_px)[-1].is_uncertain == is_uncertain


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_slow_area_change_is_not_uncertain(factor: float) -> None:
    areas_px = [10_000 * factor**t for t in range(40)]
    assert not any(memory.is_uncertain for memory in history(*areas_px))


def test_uncertainty_ends_if_the_new_area_stays() -> None:
    uncertain = [memory.is_uncertain for memory in history(1000, *[400] * 12)]
    assert uncertain[1:3] == [True] * 2
    assert uncertain[-1] is False


def test_lost_object_is_certain_and_accepts_any_area() -> None:
    trusts = history(1000, 1000, 0, 0, 90, 95)
    assert [memory.state for memory in trusts[2:]] == ["lost", "lost", "tracked", "tracked"]
    assert not any(memory.is_uncertain for memory in trusts)
    assert trusts[3].mean_area_px == 1000


def test_given_object_is_not_uncertain() -> None:
    (*_, before) = history(1000, 1000)
    given = after(before, track(10, 0.1, "given"))
    assert given == TrackMemory("given", 10, False)
    assert after(None, track(0, 0, "given")) == TrackMemory("given", 0, False)
    assert not after(TrackMemory("given", 0, False), track(500)).is_uncertain


def test_rejected_object_is_uncertain_and_lost_is_not() -> None:
    (*_, before) = history(1000, 1000)
    rule = {"confidence_min": 0.7}
    assert update_track_memory(track(1000), before, **rule, is_rejected=True).is_uncertain
    assert not update_track_memory(track(0, 0), before, **rule, is_rejected=True).is_uncertain
