from __future__ import annotations

import numpy as np
import pytest

from mpn.training.clips import ClipMix, Material
from mpn.training.rollout import Rollout, RolloutOptions

DAVIS_ONLY = ClipMix(1, 0, 0)
OPTIONS = RolloutOptions(roi_size=65, max_steps=6)


def _rollout(material: Material, seed: int, **changes: object) -> Rollout:
    rollout = Rollout(material, DAVIS_ONLY, RolloutOptions(roi_size=65, **changes), seed)  # type: ignore[arg-type]
    rollout.set_max_steps(6)
    return rollout


def test_a_sample_has_the_network_s_shapes_and_ranges(material: Material) -> None:
    sample = _rollout(material, 0).observe()
    assert sample.rgb.shape == (3, 65, 65)
    assert sample.prob.shape == sample.target.shape == (65, 65)
    assert {a.dtype for a in (sample.rgb, sample.prob, sample.target)} == {np.dtype(np.float32)}
    assert 1 < sample.rgb.max() <= 255
    assert 0 <= sample.prob.min() <= sample.prob.max() <= 1


def test_a_network_that_answers_the_truth_sees_it_again_warped(material: Material) -> None:
    rollout = _rollout(material, 1, deform_share=0.0)
    overlaps = []
    for _ in range(30):
        sample = rollout.observe()
        seen, truth = sample.prob > 0.5, sample.target > 0.5
        overlaps.append(np.count_nonzero(seen & truth) / max(np.count_nonzero(seen | truth), 1))
        rollout.absorb(sample.target)
    assert np.median(overlaps) > 0.7

    # control: a network that answers everything is shown its own mistake
    rollout = _rollout(material, 1, deform_share=0.0)
    rollout.observe()
    state = rollout.state()
    rollout.absorb(np.ones((65, 65), np.float32))
    assert rollout.state()["prob"].sum() > 2 * state["prob"].sum()


def test_a_lost_object_starts_a_new_clip(material: Material) -> None:
    rollout = _rollout(material, 2)
    rollout.observe()
    rollout.absorb(np.zeros((65, 65), np.float32))
    assert rollout.state()["clip_seed"] == -1
    rollout.observe()
    assert rollout.state()["clip_seed"] >= 0


def test_a_restored_rollout_goes_on_bit_for_bit(material: Material) -> None:
    first = _rollout(material, 3)
    for _ in range(5):
        first.absorb(first.observe().target)
    state = first.state()
    second = _rollout(material, 99)
    second.restore(state)
    for _ in range(8):
        a, b = first.observe(), second.observe()
        np.testing.assert_array_equal(a.rgb, b.rgb)
        np.testing.assert_array_equal(a.prob, b.prob)
        np.testing.assert_array_equal(a.target, b.target)
        first.absorb(a.target)
        second.absorb(b.target)
    # control: another seed sees something else
    assert not np.array_equal(
        _rollout(material, 4).observe().rgb, _rollout(material, 3).observe().rgb
    )


def test_absorb_without_observe_is_refused(material: Material) -> None:
    with pytest.raises(RuntimeError, match=r"follows observe"):
        _rollout(material, 0).absorb(np.zeros((65, 65), np.float32))
