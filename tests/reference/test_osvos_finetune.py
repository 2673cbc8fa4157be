from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mpn.errors import InputError
from mpn.networks.osvos import OsvosConfig, OsvosVgg
from mpn.training.losses import class_balanced_loss
from mpn.training.osvos.samples import CropOptions, init_weights, weights_for_larger_input
from tests.reference import osvos_finetune
from tests.reference.osvos_finetune import (
    OsvosFinetuneOptions,
    finetune_optimiser,
    finetune_osvos,
    finetune_step,
)
from tests.tolerances import OPTIMISER_RELATIVE

WIDTH = OsvosConfig(width=0.0625)
QUICK = OsvosFinetuneOptions(steps=30, batch=2, crop=CropOptions(size_px=64, recolour=0.0))


def _network(seed: int = 0) -> OsvosVgg:
    torch.manual_seed(seed)
    network = OsvosVgg(WIDTH)
    init_weights(network)
    network.load_state_dict(weights_for_larger_input(network.state_dict(), 64.0))
    return network


def _frame() -> tuple[np.ndarray, np.ndarray]:
    """Draw an object of a distinct colour, which thirty steps can fit."""
    rng = np.random.default_rng(0)
    mask = np.zeros((96, 128), bool)
    mask[20:70, 30:90] = True
    colours = np.where(mask[..., None], (200, 60, 40), (40, 90, 160))
    return np.clip(colours + rng.normal(0, 20, colours.shape), 0, 255).astype(np.uint8), mask


@pytest.mark.parametrize(
    ("optimizer", "rate"), [("sgd", 3e-2), ("adamw", 1e-2)], ids=["sgd", "adamw"]
)
def test_the_loss_falls_and_the_same_seed_gives_the_same_weights(
    optimizer: str, rate: float
) -> None:
    options = replace(QUICK, optimizer=optimizer, learning_rate=rate)  # type: ignore[arg-type]
    done = finetune_osvos(_network(), *_frame(), options)
    assert done.stopped is None
    assert np.mean(done.losses[-5:]) < 0.2 * np.mean(done.losses[:5])
    again = finetune_osvos(_network(), *_frame(), options)
    assert all(torch.equal(v, again.state_dict[k]) for k, v in done.state_dict.items())
    other = finetune_osvos(_network(), *_frame(), replace(options, seed=1))
    assert any(not torch.equal(v, other.state_dict[k]) for k, v in done.state_dict.items())


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return 60 * torch.randn(2, 3, 32, 48), (torch.rand(2, 1, 32, 48) < 0.3).float()


def test_finetune_sgd_steps_match_published_groups() -> None:
    options = replace(QUICK, optimizer="sgd", weight_decay=0.1)
    network, by_hand = _network(), _network()
    optimiser = finetune_optimiser(network, options)
    images, masks = _batch()
    rate = 1e-3
    velocity = {k: torch.zeros_like(v) for k, v in by_hand.named_parameters()}
    for _ in range(2):
        value = finetune_step(network, optimiser, images, masks, options, rate=rate)
        loss = class_balanced_loss(by_hand.logits(images), masks)
        assert value == pytest.approx(float(loss.detach()), rel=OPTIMISER_RELATIVE)
        by_hand.zero_grad()
        loss.backward()
        with torch.no_grad():
            for name, parameter in by_hand.named_parameters():
                if name.startswith("score_dsn"):
                    continue
                is_bias = name.endswith("bias")
                factor = (0.01 if name.startswith("fuse") else 1) * (2 if is_bias else 1)
                assert parameter.grad is not None
                gradient = parameter.grad + (0 if is_bias else 0.1) * parameter
                velocity[name] = 0.9 * velocity[name] + gradient
                parameter -= rate * factor * velocity[name]
    start = _network().state_dict()
    for name, value in network.state_dict().items():
        moved = (by_hand.state_dict()[name] - start[name]).abs().max()
        difference = (value - by_hand.state_dict()[name]).abs().max()
        assert difference <= OPTIMISER_RELATIVE * max(moved, value.abs().max()), name
        assert (moved > 0) != name.startswith("score_dsn"), name


def test_the_head_alone_leaves_the_trunk_as_it_was() -> None:
    network, options = _network(), replace(QUICK, scope="head")
    images, masks = _batch()
    optimiser = finetune_optimiser(network, options)
    finetune_step(network, optimiser, images, masks, options, rate=1e-2)
    for name, value in _network().state_dict().items():
        same = torch.equal(value, network.state_dict()[name])
        assert same == name.startswith(("stages", "score_dsn")), name


def test_non_finite_loss_keeps_last_good_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, calls = class_balanced_loss, iter(range(100))
    monkeypatch.setattr(
        osvos_finetune,
        "class_balanced_loss",
        lambda *a, **k: real(*a, **k) * (float("inf") if next(calls) == 3 else 1.0),
    )
    kept: list[dict[str, torch.Tensor]] = []
    done = finetune_osvos(
        _network(),
        *_frame(),
        QUICK,
        after_step=lambda _, n: kept.append({k: v.clone() for k, v in n.state_dict().items()}),
    )
    assert done.stopped == "the loss is inf at step 3"
    assert len(done.losses) == len(kept) == 3
    assert all(torch.equal(v, kept[-1][k]) for k, v in done.state_dict.items())


def test_the_rate_rises_and_falls_to_zero() -> None:
    options = replace(QUICK, steps=20, warmup_steps=4, learning_rate=1.0)
    rates = [options.learning_rate_at(step) for step in range(21)]
    assert rates[:4] == sorted(rates[:4])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[0] == pytest.approx(0.25)
    assert rates[20] == pytest.approx(0)


def test_unusable_first_frame_raises() -> None:
    rgb, mask = _frame()
    for wrong in (np.zeros_like(mask), mask[:-1]):
        with pytest.raises(InputError, match="must be of one size, and the object visible"):
            finetune_osvos(_network(), rgb, wrong, QUICK)
    for change in ({"optimizer": "adam"}, {"scope": "trunk"}, {"steps": 0}):
        with pytest.raises(InputError):
            replace(QUICK, **change)  # type: ignore[arg-type]
