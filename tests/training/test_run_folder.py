from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mpn.errors import CheckpointError, OutputError, TrainingError
from mpn.networks.checkpoint import save_checkpoint
from mpn.networks.imagenet import vgg16_stages
from mpn.networks.osvos import OsvosConfig, OsvosVgg
from mpn.networks.propagation import PropagationConfig, PropagationNet
from mpn.training.flow.recipe import FlowRecipe
from mpn.training.run_folder import keep_recipe, open_run, osvos_start, propagation_start
from tests.networks.test_imagenet import public_like, vgg16_like, xception_like


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(vgg16_like(), path)
    return path


@pytest.fixture(scope="module")
def xception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("xception") / "xception.pth"
    torch.save(xception_like(), path)
    return path


def test_osvos_starts_from_vgg16_with_branches_drawn_by_the_seed(vgg16: Path) -> None:
    config = OsvosConfig()
    first, again, other = (osvos_start(vgg16, config, seed=seed) for seed in (0, 0, 1))
    OsvosVgg(config).load_state_dict(first)
    stages = vgg16_stages(torch.load(vgg16, weights_only=True))
    for key, value in first.items():
        assert torch.equal(value, again[key]), key
        if key in stages:
            assert torch.equal(value, stages[key]), key
    assert not torch.equal(first["fuse.weight"], other["fuse.weight"])


def test_a_trunk_of_another_width_or_network_is_one_line(vgg16: Path, xception: Path) -> None:
    with pytest.raises(TrainingError, match=r"is of width 1, the network to train is not"):
        osvos_start(vgg16, OsvosConfig(width=0.25), seed=0)
    narrow = PropagationConfig(width=0.25)
    with pytest.raises(TrainingError, match=r"is of width 1, the network to train is not"):
        propagation_start(xception, narrow, fourth="zero", seed=0)
    with pytest.raises(CheckpointError, match="is ImageNet's vgg16, but xception is needed"):
        propagation_start(vgg16, narrow, fourth="zero", seed=0)
    with pytest.raises(TrainingError, match="lacks 1 of 4 input channels"):
        propagation_start(xception, narrow, fourth=None, seed=0)


def test_osvos_of_four_branches_starts_one_of_five(tmp_path: Path) -> None:
    four = OsvosVgg(OsvosConfig(branches=4, width=0.0625))
    path = save_checkpoint(tmp_path / "four.pth", {"osvos": four}, provenance={})
    state = osvos_start(path, OsvosConfig(width=0.0625), seed=0)
    OsvosVgg(OsvosConfig(width=0.0625)).load_state_dict(state)
    same = osvos_start(path, OsvosConfig(branches=4, width=0.0625), seed=0)
    assert same.keys() == four.state_dict().keys()


def test_invalid_checkpoint_is_a_one_line_error(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match="holds no state dict"):
        osvos_start(path, OsvosConfig(), seed=0)


def test_propagation_starts_from_imagenet_with_a_random_head(tmp_path: Path) -> None:
    path = tmp_path / "lite0.pth"
    torch.save(public_like("efficientnet-lite0", flat=True), path)
    config = PropagationConfig(
        backbone="efficientnet-lite0", in_channels=5, head_width=0.125, prior_skip=True
    )
    first, again, other = (
        propagation_start(path, config, fourth="zero", seed=seed) for seed in (0, 0, 1)
    )
    PropagationNet(config).load_state_dict(first)
    stem = first["backbone.stem.0.weight"]
    assert stem.shape == (32, 5, 3, 3)
    assert not stem[:, 3:].any()
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    head = "decoder.last_conv.8.weight"
    assert torch.equal(stem, other["backbone.stem.0.weight"])
    assert not torch.equal(first[head], other[head])
    message = "is ImageNet's efficientnet-lite0, but efficientnet-lite2 is needed"
    with pytest.raises(CheckpointError, match=message):
        propagation_start(path, replace(config, backbone="efficientnet-lite2"), fourth=None, seed=0)


def test_own_checkpoint_of_another_network_is_named(tmp_path: Path) -> None:
    config = PropagationConfig(backbone="efficientnet-lite0", width=0.125, head_width=0.125)
    path = save_checkpoint(tmp_path / "p.pth", {"propagation": PropagationNet(config)}, {})
    same = propagation_start(path, replace(config, in_channels=5), fourth="mean", seed=0)
    PropagationNet(replace(config, in_channels=5)).load_state_dict(same)
    message = "holds EfficientNetLite0-DeepLabV3Plus, but EfficientNetLite0-PspNet is to be trained"
    with pytest.raises(CheckpointError, match=message):
        propagation_start(path, replace(config, head="pspnet"), fourth=None, seed=0)


def test_second_training_in_a_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpn.training.run_folder.keep_recipe", lambda *args, **options: ())

    def open_again() -> None:
        with open_run(None, "flow", tmp_path, resume=True, notice=print):
            pass

    with (
        open_run(None, "flow", tmp_path, resume=False, notice=print),
        pytest.raises(OutputError, match=f"in use by another run .process {os.getpid()}."),
    ):
        open_again()
    open_again()  # control
    monkeypatch.setenv("RANK", "1")  # another process of one training
    with open_run(None, "flow", tmp_path, resume=False, notice=print):
        open_again()


def test_damaged_recipe_of_a_run_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(b"[training\xff")
    with pytest.raises(TrainingError, match=r"recipe\.toml cannot be read .*; remove it"):
        keep_recipe(FlowRecipe(), "flow", tmp_path, resume=True)
