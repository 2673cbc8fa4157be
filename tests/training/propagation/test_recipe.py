from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mpn.errors import TrainingError
from mpn.networks.propagation import PropagationConfig, PropagationNet
from mpn.training.propagation import trainer
from mpn.training.propagation.clips import ClipSources
from mpn.training.propagation.features import load_features
from mpn.training.propagation.options import PropagationTrainingOptions, TrainingReport
from mpn.training.propagation.recipe import train_propagation
from mpn.training.propagation.rollout import RolloutOptions
from mpn.training.propagation.scores import ScoreOptions

TINY = PropagationTrainingOptions(
    network=PropagationConfig(width=0.0625, head_width=0.0625, middle_blocks=1, prior_skip=True),
    rollout=RolloutOptions(roi_size=65, max_steps=4),
    steps=6,
    decay_steps=2,
    warmup_steps=2,
    batch=2,
    curriculum_steps=4,
    holdout=("gamma",),
    validate_every=6,
    validation_frames=4,
    threads=1,
)


def _run(material: ClipSources, out: Path, options: PropagationTrainingOptions, **kw: object):
    reports: list[TrainingReport] = []
    trained = ClipSources(material.sequences[:2], material.stills)
    averaged = train_propagation(
        material.sequences, trained, out, options, report=reports.append, **kw
    )
    return averaged, reports


@pytest.fixture(scope="module")
def unbroken(material: ClipSources, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("run")
    return out, *_run(material, out, TINY)


def test_a_run_leaves_state_log_and_a_validation_score(unbroken) -> None:
    out, averaged, reports = unbroken
    assert reports[-1].step == 6
    assert 0 <= reports[-1].validation_j <= 1
    with (out / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["step"] == "6"
    assert float(rows[-1]["validation_j"]) == pytest.approx(reports[-1].validation_j, abs=1e-4)
    state = torch.load(out / "last.pth", weights_only=True)
    assert state["step"] == 6
    torch.testing.assert_close(state["averaged"], averaged)


def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(
    unbroken, material: ClipSources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Save after every step, then die in the middle of the fourth.
    often = replace(TINY, save_every_s=0.0)
    real = trainer.segmentation_loss
    calls = iter(range(100))

    def dying(*args: object, **kw: object) -> torch.Tensor:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kw)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "segmentation_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        _run(material, tmp_path / "run", often)
    monkeypatch.setattr(trainer, "segmentation_loss", real)
    resumed, _ = _run(material, tmp_path / "run", often, resume=True)
    for key, value in unbroken[1].items():
        assert torch.equal(value, resumed[key]), key
    # control: another seed ends elsewhere
    other, _ = _run(material, tmp_path / "other", replace(TINY, seed=1))
    assert any(not torch.equal(value, other[key]) for key, value in unbroken[1].items())


def test_a_second_run_in_the_same_folder_is_refused(unbroken, material: ClipSources) -> None:
    with pytest.raises(TrainingError, match=r"already holds a training run: add --resume"):
        _run(material, unbroken[0], TINY)


def test_resuming_with_another_network_is_refused(unbroken, material: ClipSources) -> None:
    other = replace(
        TINY, network=PropagationConfig(width=0.125, head_width=0.0625, middle_blocks=1)
    )
    with pytest.raises(TrainingError, match="the run to resume has network"):
        _run(material, unbroken[0], other, resume=True)


def test_non_finite_loss_stops_and_keeps_last_state(
    material: ClipSources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainer.segmentation_loss
    calls = iter(range(100))
    monkeypatch.setattr(
        trainer,
        "segmentation_loss",
        lambda *a, **k: real(*a, **k) * (float("nan") if next(calls) == 2 else 1.0),
    )
    with pytest.raises(TrainingError, match="the loss is nan at step 2"):
        _run(material, tmp_path / "run", replace(TINY, save_every_s=0.0))
    assert torch.load(tmp_path / "run/last.pth", weights_only=True)["step"] == 2


def test_missing_training_clips_raise(material: ClipSources, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="all are held out"):
        train_propagation(material.sequences, ClipSources(()), tmp_path / "run", TINY)


def test_the_rate_rises_stays_and_falls_to_zero(material: ClipSources) -> None:
    schedule = trainer.Trainer(
        PropagationNet(TINY.network), material, replace(TINY, steps=20, decay_steps=8)
    )
    rates = []
    for step in range(21):
        schedule.step = step
        rates.append(schedule.learning_rate())
    assert rates[0] == TINY.learning_rate / 2
    assert rates[2:13] == [TINY.learning_rate] * 11
    assert rates[13:] == sorted(rates[13:], reverse=True)
    assert rates[20] == 0


def test_train_propagation_needs_matching_start_weights(
    unbroken, material: ClipSources, tmp_path: Path
) -> None:
    weights = unbroken[1]
    frozen = replace(TINY, steps=1, learning_rate=0.0, ema_decay=0.0)
    started, _ = _run(material, tmp_path / "a", frozen, start_from=weights)
    assert torch.equal(started["decoder.conv1.weight"], weights["decoder.conv1.weight"])
    fresh, _ = _run(material, tmp_path / "b", frozen)
    assert not torch.equal(fresh["decoder.conv1.weight"], weights["decoder.conv1.weight"])

    without_gain = {key: value for key, value in weights.items() if key != "prior_gain"}
    _run(material, tmp_path / "c", frozen, start_from=without_gain)
    wider = replace(frozen, network=PropagationConfig(width=0.25, head_width=0.25, middle_blocks=1))
    with pytest.raises(TrainingError, match="the weights to start from do not fit"):
        _run(material, tmp_path / "d", wider, start_from=weights)


def test_a_state_of_an_earlier_version_is_resumed(unbroken, material: ClipSources) -> None:
    state = torch.load(unbroken[0] / "last.pth", weights_only=True)
    earlier = {k: v for k, v in state.items() if k not in ("random", "scale")}
    earlier["torch_rng"] = state["random"][0]["cpu"]
    resumed = trainer.Trainer(
        PropagationNet(TINY.network), ClipSources(material.sequences[:2], material.stills), TINY
    )
    resumed.restore(earlier)
    assert resumed.step == 6
    torch.testing.assert_close(resumed.averaged, unbroken[1])
    with pytest.raises(TrainingError, match="has batches of 2, not 4"):
        trainer.Trainer(PropagationNet(TINY.network), material, replace(TINY, batch=4)).restore(
            state
        )


def test_frozen_normalisation_keeps_its_statistics(material: ClipSources, tmp_path: Path) -> None:
    for frozen in (True, False, "backbone"):
        options = replace(TINY, steps=1, freeze_norm=frozen, ema_decay=0.0)
        weights, _ = _run(material, tmp_path / str(frozen), options)
        means = [(k, v) for k, v in weights.items() if k.endswith("running_mean")]
        changed = {k.startswith("backbone.") for k, v in means if v.any()}
        assert changed == {True: set(), False: {True, False}, "backbone": {False}}[frozen]


def test_backbone_rate_is_a_share_except_in_the_first_layer(material: ClipSources) -> None:
    """AdamW moves a weight by about its rate, so a rate near 0 moves nothing."""
    schedule = trainer.Trainer(
        PropagationNet(TINY.network), material, replace(TINY, backbone_rate=1e-9, weight_decay=0.0)
    )
    before = {k: v.clone() for k, v in schedule.network.named_parameters()}
    with ThreadPoolExecutor(1) as pool:
        schedule.train_step(pool)
    moved = {
        k
        for k, v in schedule.network.named_parameters()
        if (v - before[k]).abs().max() > 1e-3 * TINY.learning_rate
    }
    assert {k for k in moved if k.startswith("backbone.")} == {"backbone.conv1.weight"}
    assert "decoder.conv1.weight" in moved
    state = schedule.state()
    with pytest.raises(TrainingError, match="has other groups of parameters"):
        trainer.Trainer(PropagationNet(TINY.network), material, TINY).restore(state)


def test_network_of_five_channels_trains_and_validates(
    material: ClipSources, features_file: Path, tmp_path: Path
) -> None:
    five = replace(TINY.network, in_channels=5)
    score = ScoreOptions(size_hw=(97, 129), short_side_px=97)
    options = replace(TINY, network=five, score=score, steps=2, decay_steps=1, ema_decay=0.0)
    notices: list[str] = []
    averaged, reports = _run(
        material,
        tmp_path / "run",
        options,
        features=load_features(features_file),
        notice=notices.append,
    )
    assert "features of 2 sequences: 0.00 GB in" in notices[0]
    assert len(list((tmp_path / "run/features").iterdir())) == 2
    assert reports[-1].validation_j > 0
    # control: the gain of the score is trained
    assert averaged["prior_gain"][1] != 1
