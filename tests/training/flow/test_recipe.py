from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mpn.engines.directory.manifest import DIS_SOURCE, FlowSource
from mpn.errors import TrainingError
from mpn.networks.flownet2 import FlowNet2, FlowNet2Config
from mpn.runtime.host.flow import DisFlow
from mpn.training.flow import trainer as flow_trainer
from mpn.training.flow.options import FlowTrainingOptions, FlowTrainingReport
from mpn.training.flow.pairs import FlowPairs, FlowSamples
from mpn.training.flow.recipe import init_flow_weights, train_flow
from mpn.training.flow.trainer import FlowTrainer, warp_mean_j
from mpn.training.propagation.clips import ClipSources

TINY = FlowTrainingOptions(
    network=FlowNet2Config("FlowNet2S", 0.0625),
    size_hw=(64, 64),
    steps_by_member=(4,),
    warmup_steps=2,
    batch=2,
    holdout=("gamma",),
    validate_every=4,
    validation_hw=(64, 128),
    validation_frames=4,
    synthetic_validation=1,
    threads=1,
)
STACK = replace(
    TINY, network=FlowNet2Config("FlowNet2", 0.0625), steps_by_member=(1, 1, 1, 1, 1), batch=1
)
NO_PAIRS = FlowPairs((), ())


def _run(material: ClipSources, out: Path, options: FlowTrainingOptions, **kw: object):
    reports: list[FlowTrainingReport] = []
    weights = train_flow(
        material.sequences, material.stills, NO_PAIRS, out, options, report=reports.append, **kw
    )
    return weights, reports


@pytest.fixture(scope="module")
def unbroken(material: ClipSources, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("run")
    return out, *_run(material, out, TINY)


def test_a_run_leaves_state_log_and_scores(unbroken) -> None:
    out, weights, reports = unbroken
    assert [(r.step, r.stage) for r in reports] == [(4, "alone")]
    assert reports[-1].validation_epe_px > 0
    assert 0 <= reports[-1].validation_j <= 1
    with (out / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["step"] == "4"
    assert float(rows[-1]["validation_epe_px"]) == pytest.approx(
        reports[-1].validation_epe_px, abs=1e-4
    )
    FlowNet2(TINY.network).load_state_dict(weights)


def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(
    unbroken, material: ClipSources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = replace(TINY, save_every_s=0.0)
    real = flow_trainer.multiscale_epe
    calls = iter(range(100))

    def dying(*args: object, **kw: object) -> torch.Tensor:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kw)  # type: ignore[arg-type]

    monkeypatch.setattr(flow_trainer, "multiscale_epe", dying)
    with pytest.raises(KeyboardInterrupt):
        _run(material, tmp_path / "run", often)
    monkeypatch.setattr(flow_trainer, "multiscale_epe", real)
    # Data do not depend on the number of threads that make them.
    resumed, _ = _run(material, tmp_path / "run", replace(often, workers=3), resume=True)
    for key, value in unbroken[1].items():
        assert torch.equal(value, resumed[key]), key
    # control: another seed ends elsewhere
    other, _ = _run(material, tmp_path / "other", replace(TINY, seed=1))
    assert any(not torch.equal(value, other[key]) for key, value in unbroken[1].items())


def test_flownet2_is_trained_member_by_member(material: ClipSources, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = FlowNet2(STACK.network, small_flow_scale=20.0)
    init_flow_weights(network)
    trainer = FlowTrainer(network, FlowSamples(material.stills, (), STACK), STACK)

    changed = []
    with ThreadPoolExecutor(1) as pool:
        for _ in range(5):
            before = {k: v.clone() for k, v in network.state_dict().items()}
            trainer.train_step(pool)
            stage, _, _ = STACK.stage_at(trainer.step - 1)
            now = network.state_dict()
            moved = {k.split(".")[0] for k, v in now.items() if not torch.equal(v, before[k])}
            changed.append((stage, stage in moved))
    assert changed == [(member, True) for member in STACK.members]
    # The deployed weights give the output of the trained network.
    frames = torch.rand(2, 1, 3, 64, 64) * 255
    network.load_state_dict(trainer.average.state)
    with torch.no_grad():
        torch.testing.assert_close(
            trainer.averaged_network()(*frames), network.eval()(*frames), rtol=1e-3, atol=1e-3
        )


def test_train_flow_starts_from_public_weights(
    unbroken, material: ClipSources, tmp_path: Path
) -> None:
    weights = unbroken[1]
    frozen = replace(TINY, steps_by_member=(1,), learning_rate=0.0, ema_decay=0.0)
    started, _ = _run(material, tmp_path / "a", frozen, start_from=weights)
    for key, value in weights.items():
        assert torch.equal(value, started[key]), key
    wider = replace(frozen, network=FlowNet2Config("FlowNet2S", 0.25))
    with pytest.raises(TrainingError, match="the weights to start from do not fit"):
        _run(material, tmp_path / "b", wider, start_from=weights)


def test_train_flow_reduces_loss_of_one_batch(material: ClipSources, tmp_path: Path) -> None:
    """The loss of one batch falls: the gradients point the right way."""
    options = replace(TINY, steps_by_member=(20,), learning_rate=3e-3, warmup_steps=1)
    torch.manual_seed(0)
    network = FlowNet2(options.network)
    init_flow_weights(network)

    class Same(FlowSamples):
        def sample(self, step: int, index: int):
            return super().sample(0, index)

    trainer = FlowTrainer(network, Same(material.stills, (), options), options)

    losses = []
    with ThreadPoolExecutor(1) as pool:
        for _ in range(20):
            trainer.train_step(pool)
            losses.append(trainer.take_report({}).loss)
    assert losses[-1] < 0.8 * losses[0]


def test_warp_mean_j_is_high_for_true_flow_only(material: ClipSources) -> None:
    dis = DisFlow(FlowSource(DIS_SOURCE, "medium", 1.0))
    assert warp_mean_j(dis, material.sequences[:1], 6) > 0.65

    class Still(DisFlow):
        def estimate(self, frame0, frame1):
            return 0 * super().estimate(frame0, frame1)

    still = warp_mean_j(Still(FlowSource(DIS_SOURCE, "medium", 1.0)), material.sequences[:1], 6)
    assert still < 0.5
    assert warp_mean_j(dis, (), 6) != warp_mean_j(dis, (), 6)  # NaN


def test_missing_training_data_is_a_one_line_error(material: ClipSources, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="give at least one folder"):
        train_flow((), (), NO_PAIRS, tmp_path / "run", TINY)
    assert not (tmp_path / "run").exists()


def test_resuming_with_another_network_is_refused(unbroken, material: ClipSources) -> None:
    other = replace(TINY, network=FlowNet2Config("FlowNet2SD", 0.0625))
    with pytest.raises(TrainingError, match="the run to resume has network"):
        _run(material, unbroken[0], other, resume=True)
