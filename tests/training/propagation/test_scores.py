"""Scores of the target model in rollouts, and the cache of its features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mpn.errors import CheckpointError, MpnError, TrainingError
from mpn.networks.features import FeaturesNet
from mpn.runtime.host.target import warp_scores
from mpn.training.propagation.clips import ClipMix, ClipSources, DavisClip
from mpn.training.propagation.features import ClipFeatures, load_features
from mpn.training.propagation.rollout import Rollout, RolloutOptions, Sample
from mpn.training.propagation.scores import RolloutScore, ScoreOptions, ScoreSource

SIZE_HW = (97, 129)
PLAIN = ScoreOptions(
    size_hw=SIZE_HW,
    short_side_px=97,
    interval_max=1,
    absent_share=0.0,
    foreign_share=0.0,
    stale_share=0.0,
)
DAVIS_ONLY = ClipMix(1, 0, 0)


@pytest.fixture(scope="module")
def network(features_file: Path) -> FeaturesNet:
    return load_features(features_file)


@pytest.fixture(scope="module")
def features(
    network: FeaturesNet, material: ClipSources, tmp_path_factory: pytest.TempPathFactory
) -> ClipFeatures:
    clips = ClipFeatures(network, SIZE_HW, 97, tmp_path_factory.mktemp("cache"))
    clips.fill(material.sequences)
    return clips


def _source(features: ClipFeatures, material: ClipSources, **changes: object) -> ScoreSource:
    return ScoreSource(features, material.sequences, replace(PLAIN, **changes))


def _rollout(
    material: ClipSources, source: ScoreSource, seed: int, mix: ClipMix = DAVIS_ONLY
) -> Rollout:
    rollout = Rollout(material, mix, RolloutOptions(roi_size=65), seed, source)
    rollout.set_max_steps(6)
    return rollout


def _contrast(sample: Sample) -> float:
    """Return the mean score in the object minus that outside."""
    assert sample.score is not None
    inside = sample.target > 0.5
    return float(sample.score[inside].mean() - sample.score[~inside].mean())


def _samples(material: ClipSources, source: ScoreSource, **kw: ClipMix) -> list[Sample]:
    samples = [_rollout(material, source, seed, **kw).next_sample() for seed in range(8)]
    return [sample for sample in samples if 0.1 < (sample.target > 0.5).mean() < 0.9]


@pytest.mark.parametrize("mix", [DAVIS_ONLY, ClipMix(0, 1, 0)])
def test_score_separates_the_object_of_the_crop(
    features: ClipFeatures, material: ClipSources, mix: ClipMix
) -> None:
    """Mirrored crops are among them. Features come from the cache, or are computed."""
    own = [_contrast(s) for s in _samples(material, _source(features, material), mix=mix)]
    assert len(own) > 3
    assert min(own) > 0.25
    # control: that of another object, which is at about the same place, does less
    foreign = _source(features, material, foreign_share=1.0)
    others = [_contrast(s) for s in _samples(material, foreign, mix=mix)]
    assert np.mean(others) < 0.7 * np.mean(own)


def test_absent_score_is_a_half_everywhere(features: ClipFeatures, material: ClipSources) -> None:
    rollout = _rollout(material, _source(features, material, absent_share=1.0), 0)
    for _ in range(4):
        sample = rollout.next_sample()
        assert sample.score is not None
        assert (sample.score == 0.5).all()
        rollout.update(sample.target)


def test_score_is_warped_until_the_interval_ends(
    features: ClipFeatures, material: ClipSources
) -> None:
    source = _source(features, material)
    clip = DavisClip(material.sequences[0], 1, 0, 1)
    start = source.start(clip, 0, *clip.frame(0), np.random.default_rng(0))
    every_third = replace(start, interval=3)
    flow_px = np.full((2, 96, 128), -5.0, np.float32)
    scores = []
    for t in range(1, 6):
        before, rgb = every_third, clip.frame(t)[0]
        every_third = source.advanced(before, clip, t, rgb, flow_px)
        fresh = source.advanced(start, clip, t, rgb, flow_px).scores
        if t in (1, 4):
            np.testing.assert_array_equal(every_third.scores, fresh)
        else:
            warped = warp_scores(before.scores, flow_px, SIZE_HW)
            np.testing.assert_array_equal(every_third.scores, warped)
            assert not np.array_equal(fresh, warped)  # control
        scores.append(every_third.scores)
    assert scores[0].shape == (1, 13, 17)


def test_stale_classifier_is_solved_on_another_frame(
    features: ClipFeatures, material: ClipSources
) -> None:
    clip = DavisClip(material.sequences[0], 1, 0, 1)

    def weights(seed: int, **changes: object) -> bytes:
        source = _source(features, material, **changes)
        start = source.start(clip, 2, *clip.frame(2), np.random.default_rng(seed))
        assert start.targets is not None
        return start.targets.weights[1].tobytes()

    fresh = weights(0)
    assert {weights(seed) for seed in range(4)} == {fresh}
    assert {weights(seed, stale_share=1.0, stale_frames=0) for seed in range(4)} == {fresh}
    assert len({weights(seed, stale_share=1.0, stale_frames=2) for seed in range(12)}) == 5


def test_restored_rollout_continues_its_score(
    features: ClipFeatures, material: ClipSources
) -> None:
    source = ScoreSource(
        features, material.sequences, replace(ScoreOptions(), size_hw=SIZE_HW, short_side_px=97)
    )
    mix = ClipMix(0.5, 0.2, 0.3)
    first, differs = _rollout(material, source, 3, mix), 0
    for _ in range(12):
        state = first.state()
        second, without = (_rollout(material, source, 99, mix) for _ in range(2))
        second.restore(state)
        without.restore(state | {"score": RolloutScore(1, 0, None).state()})
        sample, again = first.next_sample(), second.next_sample()
        np.testing.assert_array_equal(sample.score, again.score)
        np.testing.assert_array_equal(sample.prob, again.prob)
        differs += not np.array_equal(sample.score, without.next_sample().score)
        first.update(sample.target)
    assert differs > 0  # control: the score is part of the state


def test_cache_computes_only_the_missing_sequences(
    network: FeaturesNet, material: ClipSources, tmp_path: Path
) -> None:
    notices: list[str] = []
    clips = ClipFeatures(network, SIZE_HW, 97, tmp_path / "cache")
    clips.fill(material.sequences[:2], notices.append)
    (first, second) = sorted((tmp_path / "cache").iterdir())
    second.unlink()
    (tmp_path / f"cache/.{second.name}.{16 * '0'}.partial").write_bytes(b"killed")
    before = first.stat().st_mtime_ns
    clips.fill(material.sequences[:2], notices.append)
    assert sorted((tmp_path / "cache").iterdir()) == [first, second]
    assert first.stat().st_mtime_ns == before
    assert [notice.rpartition(", ")[2] for notice in notices] == [
        "2 to compute",
        "1 to compute",
    ]

    read = clips.of_sequence(material.sequences[1], 3)
    assert read.dtype == np.float32
    computed = clips.of_frame(material.sequences[1].rgb(3))  # of the same size
    half = np.abs(computed).max() * 2.0**-10
    np.testing.assert_allclose(read, computed, atol=half)
    assert np.abs(read - clips.of_frame(material.sequences[1].rgb(4))).max() > 10 * half


def test_cache_names_depend_on_weights_and_size(
    network: FeaturesNet, material: ClipSources, tmp_path: Path
) -> None:
    alpha = material.sequences[:1]
    ClipFeatures(network, SIZE_HW, 97, tmp_path).fill(alpha)
    ClipFeatures(network, (65, 97), 97, tmp_path).fill(alpha)
    torch.manual_seed(1)
    other = ClipFeatures(FeaturesNet().eval(), SIZE_HW, 97, tmp_path)
    other.fill(alpha)
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(TrainingError, match=r"beta-.*\.npy cannot be read as features"):
        other.of_sequence(material.sequences[1], 0)


def test_other_clips_have_a_size_of_their_shape(features: ClipFeatures) -> None:
    assert features.frame_size_hw((480, 854)) == (97, 161)
    assert features.frame_size_hw((400, 300)) == (129, 97)
    assert features.frame_size_hw((300, 300)) == (97, 97)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size_hw": (384, 672)}, r"must be 32 n \+ 1"),
        ({"short_side_px": 288}, r"must be 32 n \+ 1"),
        ({"interval_max": 0}, "interval_max must be"),
        ({"stale_share": 1.5}, "stale_share must be"),
        ({"absent_share": 0.6, "foreign_share": 0.5}, "sum to at most 1, got 0.6 and 0.5"),
    ],
)
def test_score_options_out_of_range_are_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(MpnError, match=message):
        ScoreOptions(**changes)  # type: ignore[arg-type]


def test_features_of_another_role_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "osvos.pth"
    torch.save({"stages.0.0.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError):
        load_features(path)
