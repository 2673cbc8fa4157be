from __future__ import annotations

import numpy as np

from mpn.runtime.host import ops as cpu
from mpn.runtime.host.reliability import (
    FLOW_CHECK_FRAC,
    colour_table,
    suppress_unreliable,
    weigh_by_colour,
)
from mpn.types import Roi

SIZE_HW = (40, 50)
BOX = Roi(5, 4, 45, 36)


def _scene() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Make frame, colours, flow, a flow back that is wrong on the right, probability."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)
    mask = np.zeros(SIZE_HW, np.bool_)
    mask[10:25, 10:30] = True
    there = np.full((2, *SIZE_HW), 2, np.float32)
    back = -there
    back[:, :, 30:] = 5
    prob = np.zeros(SIZE_HW, np.float32)
    prob[BOX.y0 : BOX.y1, BOX.x0 : BOX.x1] = rng.uniform(0.2, 0.9, BOX.size_hw)
    return rgb, colour_table(rgb, mask), there, back, prob


def _weighed(**changes: object) -> np.ndarray:
    rgb, table, there, back, prob = _scene()
    given: dict[str, object] = {
        "flow_to_prev_px": there,
        "flow_from_prev_px": back,
        "flow_check_px": 1.0,
        "rgb": rgb,
        "colour_table": table,
        "colour_weight": 0.5,
    }
    suppress_unreliable(prob, BOX, **{**given, **changes})  # type: ignore[arg-type]
    return prob


def test_without_evidence_nothing_changes() -> None:
    np.testing.assert_array_equal(_weighed(flow_from_prev_px=None, colour_table=None), _scene()[-1])


def test_the_flow_is_checked_first_then_the_colours_speak() -> None:
    rgb, table, there, back, prob = _scene()
    rows, columns = slice(BOX.y0, BOX.y1), slice(BOX.x0, BOX.x1)
    confidence = cpu.flow_confidence(there, back, box=BOX, sigma_px=1.0, sigma_frac=FLOW_CHECK_FRAC)
    expected = weigh_by_colour(prob[rows, columns] * confidence, rgb, table, box=BOX, weight=0.5)
    weighed = _weighed()
    np.testing.assert_array_equal(weighed[rows, columns], expected)
    # controls: each of the two changes the result
    assert not np.array_equal(weighed, _weighed(flow_from_prev_px=None))
    assert not np.array_equal(weighed, _weighed(colour_table=None))


def test_nothing_outside_the_box_is_touched() -> None:
    outside = np.ones(SIZE_HW, np.bool_)
    outside[BOX.y0 : BOX.y1, BOX.x0 : BOX.x1] = False
    assert not _weighed()[outside].any()
