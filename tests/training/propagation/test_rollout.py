from __future__ import annotations

import numpy as np
import pytest

from mpn.training.propagation.clips import ClipMix, ClipSources
from mpn.training.propagation.rollout import Rollout, RolloutOptions

DAVIS_ONLY = ClipMix(1, 0, 0)
OPTIONS = RolloutOptions(roi_size=65, max_steps=6)


def _rollout(material: ClipSources, seed: int, **changes: object) -> Rollout:
    rollout = Rollout(material, DAVIS_ONLY, RolloutOptions(roi_size=65, **changes), seed)  # type: ignore[arg-type]
    rollout.set_max_steps(6)
    return rollout


def test_a_sample_has_the_network_s_shapes_and_ranges(material: ClipSources) -> None:
    sample = _rollout(material, 0).next_sample()
    assert sample.rgb.shape == (3, 65, 65)
    assert sample.prob.shape == sample.target.shape == (65, 65)
    assert {a.dtype for a in (sample.rgb, sample.prob, sample.target)} == {np.dtype(np.float32)}
    assert 1 < sample.rgb.max() <= 255
    assert 0 <= sample.prob.min() <= sample.prob.max() <= 1


def test_exact_output_is_warped_into_the_next_input(material: ClipSources) -> None:
    rollout = _rollout(material, 1, deform_share=0.0)
    overlaps = []
    for _ in range(30):
        sample = rollout.next_sample()
        seen, truth = sample.prob > 0.5, sample.target > 0.5
        overlaps.append(np.count_nonzero(seen & truth) / max(np.count_nonzero(seen | truth), 1))
        rollout.update(sample.target)
    assert np.median(overlaps) > 0.7

    # control: a network that segments everything gets its mistake as input
    rollout = _rollout(material, 1, deform_share=0.0)
    rollout.next_sample()
    state = rollout.state()
    rollout.update(np.ones((65, 65), np.float32))
    assert rollout.state()["prob"].sum() > 2 * state["prob"].sum()


def test_a_lost_object_starts_a_new_clip(material: ClipSources) -> None:
    rollout = _rollout(material, 2)
    rollout.next_sample()
    rollout.update(np.zeros((65, 65), np.float32))
    assert rollout.state()["clip_seed"] == -1
    rollout.next_sample()
    assert rollout.state()["clip_seed"] >= 0


def test_restored_rollout_continues_bit_for_bit(material: ClipSources) -> None:
    first = _rollout(material, 3)
    for _ in range(5):
        first.update(first.next_sample().target)
    state = first.state()
    second = _rollout(material, 99)
    second.restore(state)
    for _ in range(8):
        a, b = first.next_sample(), second.next_sample()
        np.testing.assert_array_equal(a.rgb, b.rgb)
        np.testing.assert_array_equal(a.prob, b.prob)
        np.testing.assert_array_equal(a.target, b.target)
        first.update(a.target)
        second.update(b.target)
    # control: another seed gives another sample
    assert not np.array_equal(
        _rollout(material, 4).next_sample().rgb, _rollout(material, 3).next_sample().rgb
    )


def test_absorb_without_observe_is_refused(material: ClipSources) -> None:
    with pytest.raises(RuntimeError, match=r"call next_sample"):
        _rollout(material, 0).update(np.zeros((65, 65), np.float32))


NEW_DAMAGE = {
    "blur_share": 1.0,
    "flow_error_share": 1.0,
    "misplaced_share": 1.0,
}


@pytest.mark.parametrize("name", NEW_DAMAGE)
def test_rollout_with_disturbances_resumes_exactly(material: ClipSources, name: str) -> None:
    damaged = _rollout(material, 5, **{name: 1.0})
    plain = _rollout(material, 5)
    differs = False
    for _ in range(12):
        state = damaged.state()
        a = damaged.next_sample()
        again = _rollout(material, 77, **{name: 1.0})
        again.restore(state)
        b = again.next_sample()
        np.testing.assert_array_equal(a.rgb, b.rgb)
        np.testing.assert_array_equal(a.prob, b.prob)
        c = plain.next_sample()
        differs |= not (np.array_equal(a.rgb, c.rgb) and np.array_equal(a.prob, c.prob))
        damaged.update(a.target)
        plain.update(c.target)
    assert differs


def test_misplaced_start_has_an_empty_target(material: ClipSources) -> None:
    empty = []
    for seed in range(20):
        for share in (0.0, 1.0):
            sample = _rollout(material, seed, misplaced_share=share, deform_share=0.0).next_sample()
            empty.append((share, not sample.target.any()))
    assert sum(is_empty for share, is_empty in empty if share) > 4
    assert not any(is_empty for share, is_empty in empty if not share)


def test_lost_object_has_an_empty_target(material: ClipSources) -> None:
    rollout = Rollout(material, ClipMix(0, 0, 0, 1), OPTIONS, 0)
    rollout.set_max_steps(6)
    targets = []
    for _ in range(60):
        sample = rollout.next_sample()
        targets.append(float(sample.target.max()))
        # The output of an identity network: the prior of the lost object remains.
        rollout.update(sample.prob)
    assert 0.0 in targets
    assert 1.0 in targets


def test_without_damage_the_prior_is_the_warped_probability(material: ClipSources) -> None:
    """The share of damaged crops is an option; none means none."""
    clean = [_rollout(material, s, damage_share=0.0).next_sample().prob for s in range(8)]
    usual = [_rollout(material, s).next_sample().prob for s in range(8)]
    all_of_them = [_rollout(material, s, damage_share=1.0).next_sample().prob for s in range(8)]
    same = sum(np.array_equal(a, b) for a, b in zip(clean, usual, strict=True))
    fewer = sum(np.array_equal(a, b) for a, b in zip(clean, all_of_them, strict=True))
    assert same > fewer
