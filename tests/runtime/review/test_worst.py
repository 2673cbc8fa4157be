"""Choice of the frames that are worth a look."""

from __future__ import annotations

import numpy as np
import pytest

from mpn.runtime.review.worst import (
    WORST_COUNT,
    WorstPictures,
    mended_error,
    worst_positions,
)


@pytest.mark.parametrize("frames", [1, 7, 192, 193, 1000])
def test_pictures_hold_all_chosen_frames(frames: int) -> None:
    """Frames come one by one, their number unknown; the choice needs all of them."""
    rng = np.random.default_rng(frames)
    values = np.clip(0.5 + np.cumsum(rng.normal(0, 0.05, frames)), 0, 1).round(2).tolist()
    pictures: WorstPictures[int] = WorstPictures()
    for position, value in enumerate(values):
        pictures.add(value, lambda at=position: at)  # type: ignore[misc]
    kept, chosen = pictures.pictures(), worst_positions(values)
    assert chosen
    assert {at: kept[at] for at in chosen} == {at: at for at in chosen}
    assert len(kept) <= 4 * WORST_COUNT
    assert len(chosen) <= WORST_COUNT


def test_worst_frames_are_spread_and_most_mended_first() -> None:
    """A correction reaches farther back, so the end of a long failure is worth most."""
    values = np.full(240, 0.9)
    values[0] = 1
    values[40:70] = 0.3
    values[47] = 0.1
    values[64], values[200] = 0.2, 0.05
    chosen = worst_positions(values.tolist())
    assert 55 < chosen[0] < 70
    assert {47, 64, 200} <= set(chosen), "the least reliable frames are shown too"
    assert chosen.index(47) < chosen.index(200), "the surrounding frames are mended as well"
    assert 0.9 not in values[chosen]
    assert min(np.diff(sorted(chosen[1:]))) >= 10


def test_worst_first_frame_may_be_above_the_limit() -> None:
    """Many frames of middle reliability are worth more than a few of low."""
    values = np.full(80, 0.35)
    values[0] = 1
    values[20:] = 0.55
    chosen = worst_positions(values.tolist())
    assert chosen[0] > 40
    assert max(chosen[1:]) < 20, "the others are the least reliable ones"


@pytest.mark.parametrize(
    ("given", "before", "after"), [([0], 0.5, 0.2), ([0, 4], 0.5, 0.5), ([4], 0.2, 0.5)]
)
def test_mended_error_is_shared_between_masks(
    given: list[int], before: float, after: float
) -> None:
    """Halfway between two masks each has half the weight; without one it decays."""
    values = np.array([0.6, 0.8, 0.5, 0.8, 0.6])
    values[given] = 1
    away = np.exp(-1 / np.array([100, 10]))
    side = {0.5: 0.04 * 0.5 * away[0], 0.2: 0.04 * away[1] + 0.16 * away[1] ** 2}
    assert mended_error(values, 2) == pytest.approx(0.25 + side[before] + side[after])
    values[[1, 3]] = 1
    assert mended_error(values, 2) == 0.25, "masks of the user end it"


def test_frames_of_the_user_are_not_chosen() -> None:
    assert worst_positions([1.0] * 30) == []
    assert worst_positions([1.0, 0.2, 1.0]) == [1]
    assert len(worst_positions([0.9] * 400)) == 3, "some are shown even if all are reliable"
