from __future__ import annotations

import numpy as np
import pytest

from mpn.runtime.finetune.augment.mask import corrupt_mask
from mpn.types import Float32Array
from tests.builders.clips import iou


def disc(side: int = 80, radius: int = 24) -> Float32Array:
    y, x = np.mgrid[:side, :side]
    return (np.hypot(x - side / 2, y - side / 2) < radius).astype(np.float32)


def overlaps(half_share: float, seeds: int = 40) -> list[float]:
    return [
        iou(
            disc() > 0.5,
            corrupt_mask(disc(), np.random.default_rng(s), half_share=half_share) > 0.5,
        )
        for s in range(seeds)
    ]


def test_corrupted_mask_is_a_probability_of_the_same_size() -> None:
    for seed in range(20):
        prob = corrupt_mask(disc(), np.random.default_rng(seed), half_share=0.3)
        assert (prob.shape, prob.dtype) == ((80, 80), np.float32)
        assert prob.min() >= 0
        assert prob.max() <= 1
        assert prob.flags.c_contiguous


def test_most_masks_are_corrupted_and_keep_their_object() -> None:
    found = overlaps(half_share=0.0)
    assert np.mean([overlap < 0.97 for overlap in found]) > 0.5
    assert np.mean([overlap > 0.4 for overlap in found]) > 0.9


def test_half_share_removes_half_of_the_object() -> None:
    """Control: the same corruption with `half_share=0`."""
    assert np.median(overlaps(half_share=1.0)) < 0.75
    assert np.median(overlaps(half_share=0.0)) > 0.75


def test_same_seed_gives_the_same_corruption() -> None:
    first, again, other = (
        corrupt_mask(disc(), np.random.default_rng(seed), half_share=0.3) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


@pytest.mark.parametrize(
    "prob", [np.zeros((20, 20), np.float32), np.full((20, 20), 0.3, np.float32)]
)
def test_mask_without_object_is_returned_unchanged(prob: Float32Array) -> None:
    assert corrupt_mask(prob, np.random.default_rng(0), half_share=1.0) is prob
