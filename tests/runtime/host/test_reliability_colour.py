from __future__ import annotations

import numpy as np
import pytest

from mpn.runtime.host.reliability import colour_table, mean_ratio, weigh_by_colour
from mpn.types import Roi
from tests.tolerances import FLOAT32_RESIZE

SIZE_HW = (80, 100)
WHOLE = Roi(0, 0, SIZE_HW[1], SIZE_HW[0])
RED, GREEN, BLUE = (200, 40, 40), (40, 160, 40), (40, 40, 200)


def _picture() -> tuple[np.ndarray, np.ndarray]:
    """Draw a red square on green, with a little noise."""
    rng = np.random.default_rng(0)
    rgb = np.full((*SIZE_HW, 3), GREEN, np.int32)
    mask = np.zeros(SIZE_HW, np.bool_)
    mask[30:50, 40:60] = True
    rgb[mask] = RED
    return np.clip(rgb + rng.integers(-4, 5, rgb.shape), 0, 255).astype(np.uint8), mask


def _frame_of(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((*SIZE_HW, 3), colour, np.uint8)


def _weighed(rgb: np.ndarray, table: np.ndarray, prob: float, weight: float = 0.5) -> float:
    out = weigh_by_colour(np.full(SIZE_HW, prob, np.float32), rgb, table, box=WHOLE, weight=weight)
    assert out.dtype == np.float32
    assert out.min() == out.max()
    return float(out[0, 0])


def test_colour_table_favours_object_colours() -> None:
    table = colour_table(*_picture())
    assert _weighed(_frame_of(RED), table, 0.5) > 0.7
    assert _weighed(_frame_of(GREEN), table, 0.5) < 0.3
    # control: a table of the inverse mask gives the opposite
    rgb, mask = _picture()
    turned = rgb.copy()
    turned[mask], turned[~mask] = GREEN, RED
    assert _weighed(_frame_of(RED), colour_table(turned, mask), 0.5) < 0.3


def test_unknown_colour_has_ratio_zero() -> None:
    assert _weighed(_frame_of(BLUE), colour_table(*_picture()), 0.6) == pytest.approx(0.6)


def test_the_odds_are_multiplied_by_the_bounded_ratio() -> None:
    table = colour_table(*_picture())
    assert np.abs(table).max() == 2
    for prob in (0.2, 0.5, 0.9):
        odds = prob / (1 - prob) * np.exp(0.5 * 2)
        expected = odds / (1 + odds)
        assert _weighed(_frame_of(RED), table, prob) == pytest.approx(expected, rel=1e-5)
    assert _weighed(_frame_of(RED), table, 0.4, weight=0.0) == pytest.approx(0.4, rel=1e-5)


def test_negligible_probability_stays_zero() -> None:
    table = colour_table(*_picture())
    assert _weighed(_frame_of(RED), table, 0.0) == 0.0
    assert _weighed(_frame_of(GREEN), table, 0.01) == 0.0
    assert _weighed(_frame_of(RED), table, float("nan")) == 0.0


def test_colour_weighting_of_box_equals_whole_frame() -> None:
    rgb, mask = _picture()
    table = colour_table(rgb, mask)
    prob = np.random.default_rng(1).uniform(0.05, 0.95, SIZE_HW).astype(np.float32)
    whole = weigh_by_colour(prob, rgb, table, box=WHOLE, weight=0.5)
    box = Roi(20, 10, 90, 70)
    part = weigh_by_colour(prob[10:70, 20:90], rgb, table, box=box, weight=0.5)
    edge = 8  # the blur reaches three to four sigmas of 2 px
    np.testing.assert_allclose(
        part[edge:-edge, edge:-edge],
        whole[10 + edge : 70 - edge, 20 + edge : 90 - edge],
        atol=FLOAT32_RESIZE,
    )


@pytest.mark.parametrize("filled", [False, True])
def test_colour_table_without_pixels_is_none(filled: bool) -> None:
    rgb, _ = _picture()
    table = colour_table(rgb, np.full(SIZE_HW, filled))
    assert table.shape == (8192,)
    assert not table.any()


def test_only_the_surroundings_count_not_the_whole_frame() -> None:
    rgb, mask = _picture()
    rgb[:, 95:] = RED  # red far away, beyond half the box and 30 px
    table = colour_table(rgb[:, :95], mask[:, :95])
    far = colour_table(rgb, mask)
    np.testing.assert_array_equal(far, table)
    near = rgb.copy()
    near[:, 62:75] = RED
    assert not np.array_equal(colour_table(near, mask), table)


def test_mean_colour_ratio_identifies_the_object() -> None:
    rgb, mask = _picture()
    table = colour_table(rgb, mask)
    box = Roi(40, 30, 60, 50)
    assert mean_ratio(rgb, table, mask, box=box) > 1.5
    assert mean_ratio(rgb, table, ~mask, box=WHOLE) < -1.5
    half = mask.copy()
    half[10:30, 40:60] = True
    both = mean_ratio(rgb, table, half, box=Roi(40, 10, 60, 50))
    assert abs(both) < 0.3
    assert mean_ratio(rgb, table, mask, box=WHOLE) == mean_ratio(rgb, table, mask, box=box)
