from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mpn.errors import TrainingError
from mpn.networks.osvos import OsvosConfig, OsvosVgg
from mpn.training.osvos import trainer as osvos_trainer
from mpn.training.osvos.options import OsvosTrainingOptions, OsvosTrainingReport
from mpn.training.osvos.recipe import train_osvos
from mpn.training.osvos.samples import CropOptions
from mpn.training.osvos.trainer import OsvosTrainer
from mpn.training.propagation.clips import ClipSources

TINY = OsvosTrainingOptions(
    network=OsvosConfig(width=0.0625),
    crop=CropOptions(size_px=64),
    salient_steps=3,
    davis_steps=3,
    warmup_steps=2,
    batch=2,
    holdout=("gamma",),
    validate_every=6,
    threads=1,
)


def _run(material: ClipSources, out: Path, options: OsvosTrainingOptions, **kw: object):
    reports: list[OsvosTrainingReport] = []
    weights = train_osvos(
        material.sequences, material.stills, out, options, report=reports.append, **kw
    )
    return weights, reports


@pytest.fixture(scope="module")
def unbroken(material: ClipSources, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("run")
    return out, *_run(material, out, TINY)


def test_a_run_leaves_state_log_score_and_plain_weights(unbroken) -> None:
    out, weights, reports = unbroken
    assert [(r.step, r.stage) for r in reports] == [(6, "davis")]
    assert 0 <= reports[-1].validation_j <= 1
    with (out / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["step"] == "6"
    assert float(rows[-1]["validation_j"]) == pytest.approx(reports[-1].validation_j, abs=1e-4)
    assert torch.load(out / "last.pth", weights_only=True)["step"] == 6
    OsvosVgg(TINY.network).load_state_dict(weights)


@pytest.mark.parametrize("died_at_loss", [2 * 6, 4 * 6 + 1], ids=["stage 1", "stage 2"])
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(
    died_at_loss: int,
    unbroken,
    material: ClipSources,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Save after every step, then die in the middle of one (each step takes six losses).
    often = replace(TINY, save_every_s=0.0)
    real = osvos_trainer.class_balanced_loss
    calls = iter(range(1000))

    def dying(*args: object, **kw: object) -> torch.Tensor:
        if next(calls) == died_at_loss:
            raise KeyboardInterrupt
        return real(*args, **kw)  # type: ignore[arg-type]

    monkeypatch.setattr(osvos_trainer, "class_balanced_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        _run(material, tmp_path / "run", often)
    monkeypatch.setattr(osvos_trainer, "class_balanced_loss", real)
    resumed, _ = _run(material, tmp_path / "run", often, resume=True)
    for key, value in unbroken[1].items():
        assert torch.equal(value, resumed[key]), key
    # control: another seed ends elsewhere
    other, _ = _run(material, tmp_path / "other", replace(TINY, seed=1))
    assert any(not torch.equal(value, other[key]) for key, value in unbroken[1].items())


def test_each_stage_can_be_trained_by_itself(material: ClipSources, tmp_path: Path) -> None:
    salient = replace(TINY, davis_steps=0)
    first = train_osvos((), material.stills, tmp_path / "a", salient)
    davis = replace(TINY, salient_steps=0)
    second = train_osvos(material.sequences, (), tmp_path / "b", davis, start_from=first)
    assert any(not torch.equal(v, second[k]) for k, v in first.items())


def test_train_osvos_starts_from_matching_weights_only(
    unbroken, material: ClipSources, tmp_path: Path
) -> None:
    weights = unbroken[1]
    frozen = replace(TINY, salient_steps=0, davis_steps=1, davis_rate=0.0, ema_decay=0.0)
    started, _ = _run(material, tmp_path / "a", frozen, start_from=weights)
    for key, value in weights.items():
        assert torch.equal(value, started[key]), key
    fresh, _ = _run(material, tmp_path / "b", frozen)
    assert any(not torch.equal(v, fresh[k]) for k, v in weights.items())
    wider = replace(frozen, network=OsvosConfig(width=0.25))
    with pytest.raises(TrainingError, match="the weights to start from do not fit"):
        _run(material, tmp_path / "c", wider, start_from=weights)
    # the run that started from weights has no batch normalisation, and is resumed without
    _run(material, tmp_path / "a", replace(frozen, davis_steps=2), resume=True)


@pytest.mark.parametrize(
    ("changes", "stills", "sequences", "message"),
    [
        ({}, False, True, "stage 1 needs salient-object images"),
        ({"holdout": ("alpha", "beta", "gamma")}, True, True, "all are held out"),
        ({"salient_steps": 0, "davis_steps": 0}, True, True, "both stages have 0 steps"),
    ],
)
def test_a_stage_without_data_is_refused(
    changes: dict[str, object],
    stills: bool,
    sequences: bool,
    message: str,
    material: ClipSources,
    tmp_path: Path,
) -> None:
    with pytest.raises(TrainingError, match=message):
        train_osvos(
            material.sequences if sequences else (),
            material.stills if stills else (),
            tmp_path / "run",
            replace(TINY, **changes),  # type: ignore[arg-type]
        )
    assert not (tmp_path / "run").exists()


def test_train_osvos_refuses_used_folder_and_network(unbroken, material: ClipSources) -> None:
    with pytest.raises(TrainingError, match=r"already holds a training run: add --resume"):
        _run(material, unbroken[0], TINY)
    wider = replace(TINY, network=OsvosConfig(width=0.25))
    with pytest.raises(TrainingError, match="the run to resume has network"):
        _run(material, unbroken[0], wider, resume=True)


def test_non_finite_loss_stops_and_keeps_last_state(
    material: ClipSources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = osvos_trainer.class_balanced_loss
    calls = iter(range(1000))
    monkeypatch.setattr(
        osvos_trainer,
        "class_balanced_loss",
        lambda *a, **k: real(*a, **k) * (float("nan") if next(calls) == 2 * 6 else 1.0),
    )
    with pytest.raises(TrainingError, match="the loss is nan at step 2"):
        _run(material, tmp_path / "run", replace(TINY, save_every_s=0.0))
    assert torch.load(tmp_path / "run/last.pth", weights_only=True)["step"] == 2


def test_rates_rise_and_fall_and_side_losses_fade_in_each_stage() -> None:
    options = replace(TINY, salient_steps=20, davis_steps=30)
    trainer = OsvosTrainer(OsvosVgg(TINY.network), {}, options)
    rates, weights = [], []
    for step in range(50):
        trainer.step = step
        rates.append(trainer.learning_rate())
        weights.append(trainer.loss_weights())
    for stage, first, last in ((rates[:20], 0, 19), (rates[20:], 20, 49)):
        assert stage[0] < stage[1]
        assert stage[1:] == sorted(stage[1:], reverse=True)
        assert weights[first] == (1.0,) * 6
        assert 0 < weights[last][0] < 0.1
        assert weights[last][5] == 1
    assert rates[19] > 0.1 * TINY.salient_rate
    assert rates[49] < 0.01 * TINY.davis_rate
