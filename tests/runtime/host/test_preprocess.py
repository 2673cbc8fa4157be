from __future__ import annotations

import numpy as np
import pytest

from mpn.runtime.host.preprocess import (
    flow_input,
    one_hot,
    osvos_input,
    resize_prob,
    resize_rgb,
    working_size_hw,
)


@pytest.mark.parametrize(
    ("size_hw", "short_side", "expected"),
    [
        ((480, 854), 480, (480, 854)),
        ((1080, 1920), 480, (480, 853)),
        ((1920, 1080), 480, (853, 480)),
        ((240, 427), 480, (240, 427)),  # never enlarged
        ((1080, 1920), -1, (1080, 1920)),
        ((1, 1), 480, (1, 1)),
        ((1001, 3), 1, (334, 1)),
        ((481, 481), 480, (480, 480)),
    ],
)
def test_working_size(size_hw: tuple[int, int], short_side: int, expected: tuple[int, int]) -> None:
    assert working_size_hw(size_hw, short_side) == expected


def test_nothing_is_copied_at_the_size_itself() -> None:
    rgb = np.zeros((4, 6, 3), np.uint8)
    prob = np.zeros((2, 4, 6), np.float32)
    assert resize_rgb(rgb, (4, 6)) is rgb
    assert resize_prob(prob, (4, 6)) is prob


def test_shrinking_averages_and_growing_interpolates() -> None:
    columns = np.zeros((8, 8), np.float32)
    columns[:, ::4] = 1  # every fourth column: bilinear sampling would miss or double it
    assert np.allclose(resize_prob(columns[None], (2, 2))[0], 0.25)
    edge = np.array([[[0, 1]]], np.float32)
    assert np.allclose(resize_prob(edge, (1, 4))[0, 0], [0, 0.25, 0.75, 1])
    rgb = np.repeat((columns * 200).astype(np.uint8)[..., None], 3, axis=2)
    assert np.array_equal(resize_rgb(rgb, (2, 2)), np.full((2, 2, 3), 50, np.uint8))


def test_one_hot_follows_the_order_of_the_ids() -> None:
    labels = np.array([[0, 7], [2, 7]], np.uint8)
    assert np.array_equal(
        one_hot(labels, (2, 7)), np.array([[[0, 0], [1, 0]], [[0, 1], [0, 1]]], np.float32)
    )
    assert one_hot(labels, ()).shape == (0, 2, 2)


def test_flow_input_is_rgb_0_to_255_at_the_networks_size() -> None:
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[..., 0], rgb[..., 2] = 255, 10
    tensor = flow_input(rgb, (8, 8))
    assert tensor.shape == (1, 3, 8, 8)
    assert tensor.dtype == np.float32
    assert [float(plane.max()) for plane in tensor[0]] == [255, 0, 10]


@pytest.mark.parametrize(
    ("channel_order", "expected"), [("bgr", (29.0, 18.0, 7.0)), ("rgb", (9.0, 18.0, 27.0))]
)
def test_osvos_input_subtracts_mean_in_channel_order(
    channel_order: str, expected: tuple[float, float, float]
) -> None:
    rgb = np.empty((4, 6, 3), np.uint8)
    rgb[:] = (10, 20, 30)
    tensor = osvos_input(rgb, (4, 6), channel_order=channel_order, mean=(1, 2, 3))
    assert tensor.shape == (1, 3, 4, 6)
    assert tuple(float(plane.mean()) for plane in tensor[0]) == expected
    assert tensor.flags.c_contiguous
