from __future__ import annotations

import numpy as np
import pytest

from mpn.errors import MaskError
from mpn.runtime.backend import FrameMemory
from mpn.runtime.host.flow import PreparedFrame
from mpn.runtime.host.memory import empty_memory, with_given_labels
from mpn.runtime.state import VideoState, object_ids_from_labels
from mpn.types import Roi


def given(
    labels: np.ndarray,
    ids: tuple[int, ...],
    before: tuple[VideoState, FrameMemory] | None = None,
    *,
    working_hw: tuple[int, int] = (8, 12),
) -> tuple[VideoState, FrameMemory]:
    """Make the state of a video of 8x12 pixels after labels were given."""
    if before is None:
        frame = np.zeros((*working_hw, 3), np.uint8)
        memory = empty_memory(frame, PreparedFrame(np.zeros(0), working_hw), (8, 12))
        before = VideoState(0, (8, 12), working_hw), memory
    return with_given_labels(*before, labels, ids)


def labels_with(**boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Make labels from boxes, for example id3=(x0, y0, x1, y1)."""
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


def test_given_objects_have_the_boxes_of_the_labels() -> None:
    labels = labels_with(id5=(1, 2, 4, 6), id3=(6, 0, 12, 3))
    state, memory = given(labels, (3, 5))
    assert state.object_ids == (3, 5)
    assert np.array_equal(memory.prob, np.stack([labels == 3, labels == 5]))
    assert memory.result_prob is memory.prob  # nothing is resized
    assert state.bounds == (Roi(6, 0, 12, 3), Roi(1, 2, 4, 6))
    assert state.first_areas_px == (18, 12)
    assert state.branches == ("given", "given")


def test_half_size_probability_is_covered_share() -> None:
    labels = labels_with(id3=(1, 2, 4, 6))
    state, memory = given(labels, (3,), working_hw=(4, 6))
    assert memory.prob.shape == (1, 4, 6)
    assert np.allclose(memory.prob[0, 1], [0.5, 1, 0, 0, 0, 0])
    assert state.first_areas_px == (3,)
    assert np.array_equal(memory.result_prob[0], labels == 3)


@pytest.mark.parametrize("working_hw", [(8, 12), (4, 6)])
def test_other_objects_keep_all_but_the_pixels_given_away(working_hw: tuple[int, int]) -> None:
    state, memory = given(labels_with(id1=(0, 0, 6, 8)), (1,), working_hw=working_hw)
    added, planes = given(labels_with(id9=(4, 0, 8, 8)), (9,), (state, memory))
    assert added.object_ids == (1, 9)
    assert np.array_equal(planes.result_prob[0], labels_with(id1=(0, 0, 4, 8)) == 1)
    assert planes.prob.sum(axis=0).max() <= 1
    assert added.first_areas_px[0] == state.first_areas_px[0]
    assert added.branches == ("given", "given")


def test_frame_memory_is_never_changed() -> None:
    state, memory = given(labels_with(id1=(0, 0, 6, 8)), (1,))
    before = memory.prob.copy()
    given(labels_with(id1=(8, 0, 12, 8)), (1,), (state, memory))
    assert np.array_equal(memory.prob, before)
    with pytest.raises(ValueError, match="read-only"):
        memory.prob[0, 0, 0] = 1
