"""Choice of the frames that are worth a look."""

from __future__ import annotations

import numpy as np
import pytest

from mpn.runtime.review.worst import WORST_COUNT, WorstPictures, worst_positions


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


def test_worst_frames_are_spread_and_lowest_first() -> None:
    values = np.full(240, 0.9)
    values[40:70] = 0.3
    values[47] = 0.1
    values[200] = 0.05
    chosen = worst_positions(values.tolist())
    assert chosen[0] == 47, "a long failure is worth more than one frame"
    assert 200 in chosen
    assert 0.9 not in values[chosen]
    assert min(np.diff(sorted(chosen))) >= 10


def test_frames_of_the_user_are_not_chosen() -> None:
    assert worst_positions([1.0] * 30) == []
    assert worst_positions([1.0, 0.2, 1.0]) == [1]
    assert len(worst_positions([0.9] * 400)) == 3, "some are shown even if all are reliable"
