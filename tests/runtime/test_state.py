from __future__ import annotations

import numpy as np
import pytest

from mpn.errors import MaskError
from mpn.runtime.host.flow import FlowFrame
from mpn.runtime.state import State, object_ids_from_labels
from mpn.types import Roi


def empty_state(working_hw: tuple[int, int] = (8, 12)) -> State:
    frame = np.zeros((*working_hw, 3), np.uint8)
    return State.without_objects(frame, FlowFrame(np.zeros(0), working_hw), (8, 12), working_hw)


def labels_with(**boxes: tuple[int, int, int, int]) -> np.ndarray:
    """For example id3=(x0, y0, x1, y1)."""
    labels = np.zeros((8, 12), np.uint8)
    for name, (x0, y0, x1, y1) in boxes.items():
        labels[y0:y1, x0:x1] = int(name.removeprefix("id"))
    return labels


@pytest.mark.parametrize(
    ("values", "ids"), [([1], (1,)), ([0, 254, 7, 7], (7, 254)), (range(255), tuple(range(1, 255)))]
)
def test_object_ids_are_the_values_of_the_labels(values: list[int], ids: tuple[int, ...]) -> None:
    assert object_ids_from_labels(np.array([values], np.uint8)) == ids


@pytest.mark.parametrize(
    ("values", "message"), [([0, 0], "holds no object"), ([1, 255], "holds the value 255")]
)
def test_labels_without_objects_or_with_void_are_refused(values: list[int], message: str) -> None:
    with pytest.raises(MaskError, match=message):
        object_ids_from_labels(np.array([values], np.uint8))


def test_given_objects_are_where_the_labels_say() -> None:
    labels = labels_with(id5=(1, 2, 4, 6), id3=(6, 0, 12, 3))
    state = empty_state().with_given(labels, (3, 5))
    assert state.object_ids == (3, 5)
    assert np.array_equal(state.prob, np.stack([labels == 3, labels == 5]))
    assert state.result_prob is state.prob  # nothing is resized
    assert state.supports == (Roi(6, 0, 12, 3), Roi(1, 2, 4, 6))
    assert state.first_areas_px == (18, 12)
    assert state.branches == ("given", "given")


def test_at_half_the_size_the_working_probability_is_the_covered_share() -> None:
    labels = labels_with(id3=(1, 2, 4, 6))
    state = empty_state((4, 6)).with_given(labels, (3,))
    assert state.prob.shape == (1, 4, 6)
    assert np.allclose(state.prob[0, 1], [0.5, 1, 0, 0, 0, 0])
    assert state.first_areas_px == (3,)
    assert np.array_equal(state.result_prob[0], labels == 3)


@pytest.mark.parametrize("working_hw", [(8, 12), (4, 6)])
def test_other_objects_keep_all_but_the_pixels_given_away(working_hw: tuple[int, int]) -> None:
    state = empty_state(working_hw).with_given(labels_with(id1=(0, 0, 6, 8)), (1,))
    added = state.with_given(labels_with(id9=(4, 0, 8, 8)), (9,))
    assert added.object_ids == (1, 9)
    assert np.array_equal(added.result_prob[0], labels_with(id1=(0, 0, 4, 8)) == 1)
    assert added.prob.sum(axis=0).max() <= 1
    assert added.first_areas_px[0] == state.first_areas_px[0]
    assert added.branches == ("given", "given")


def test_a_state_is_never_changed() -> None:
    state = empty_state().with_given(labels_with(id1=(0, 0, 6, 8)), (1,))
    before = state.prob.copy()
    state.with_given(labels_with(id1=(8, 0, 12, 8)), (1,))
    assert np.array_equal(state.prob, before)
    with pytest.raises(ValueError, match="read-only"):
        state.prob[0, 0, 0] = 1
