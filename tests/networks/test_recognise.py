from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mpn.errors import CheckpointError
from mpn.networks.flownet2 import FLOW_VARIANTS, FlowVariant
from mpn.networks.recognise import recognise, unwrapped_state_dict
from tests.networks.public_files import deeplab_state, flow_state, osvos_state

FILE = Path("given.pth")
ONE = torch.zeros(1)


@pytest.mark.parametrize("variant", FLOW_VARIANTS)
def test_flow_variants_are_recognised(variant: FlowVariant) -> None:
    found = recognise(flow_state(variant), FILE)
    assert (found.role, found.variant) == ("flow", variant)
    assert found.config == {"variant": variant, "width": 1.0}
    assert found.kind == "NVIDIA/flownet2-pytorch"


@pytest.mark.parametrize(("channels", "classes"), [(4, 2), (3, 2), (3, 21)])
def test_deeplab_channels_and_classes_are_read_from_the_shapes(channels: int, classes: int) -> None:
    found = recognise(deeplab_state(in_channels=channels, classes=classes), FILE)
    assert (found.role, found.variant) == ("propagation", "DeepLabXception")
    assert (found.config["in_channels"], found.config["classes"]) == (channels, classes)
    assert found.config["residual_relu"] is True
    assert found.kind == "jfzhang95/pytorch-deeplab-xception"


def test_osvos_parent_is_the_four_branch_form() -> None:
    found = recognise(osvos_state(), FILE)
    assert (found.role, found.variant) == ("osvos", "OsvosVgg")
    assert found.config == {"branches": 4, "upsample": "deconv_center_crop", "width": 1.0}
    assert found.kind == "kmaninis/OSVOS-PyTorch"


def _without(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(prefix)}


REFUSED: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "no fusion": (
        lambda: _without(flow_state("FlowNet2"), "flownetfusion."),
        r"no key starts with 'flownetfusion\.': take a whole file",
    ),
    "SD only": (
        lambda: {"flownets_d.conv0.0.weight": ONE},
        r"holds flownets_d of FlowNet 2.0 but no key starts with 'flownetc\.'",
    ),
    "Pinard's FlowNetS": (
        lambda: _without(flow_state("FlowNet2S"), "predict_flow6.bias"),
        r"ClementPinard/FlowNetPytorch \(no 'predict_flow6.bias'\)",
    ),
    "Pinard's FlowNetC": (
        lambda: _without(flow_state("FlowNet2C"), "predict_flow6.bias"),
        "ClementPinard/FlowNetPytorch",
    ),
    "batch normalisation": (
        lambda: {**flow_state("FlowNet2S"), "conv1.1.running_mean": ONE},
        "with batch normalisation",
    ),
    "ResNet": (
        lambda: {"backbone.layer1.0.conv1.weight": ONE, "aspp.conv1.weight": ONE},
        "ResNet backbone .* but Xception is needed",
    ),
    "MobileNet": (
        lambda: {"backbone.features.0.0.weight": ONE, "decoder.conv1.weight": ONE},
        "MobileNet v2 backbone",
    ),
    "VainF": (
        lambda: {"backbone.conv1.weight": ONE, "classifier.project.0.weight": ONE},
        "VainF/DeepLabV3Plus-Pytorch .*not the aligned one",
    ),
    "ImageNet": (
        lambda: {"layer1.0.conv1.weight": ONE, "layer4.0.conv2.weight": ONE},
        "holds ImageNet's resnet6, not a segmentation network",
    ),
    "something else": (
        lambda: {"fc.weight": ONE, "fc.bias": ONE, "a": ONE, "b": ONE},
        "of no known layout: its first keys are 'fc.weight', 'fc.bias', 'a' and 1 more",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_networks_are_named_and_refused(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        recognise(make(), FILE)
    assert str(FILE) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        {"a.weight": ONE},
        {"module.a.weight": ONE},
        {"module.module._orig_mod.a.weight": ONE},
        {"state_dict": {"a.weight": ONE}, "epoch": 1, "best_EPE": 2.0},
        {"model_state": {"module.a.weight": ONE}, "cur_itrs": 1},
        {"epoch": 1, "model": {"a.weight": ONE}, "optimizer": {"state": {}}},
        {"net": {"state_dict": {"a.weight": ONE}}},
        {"state_dict": {"model.a.weight": ONE}, "pytorch-lightning_version": "2.1.0"},
        {"state_dict": {"net.module.model.a.weight": ONE}},
        {"state_dict": {"model.a.weight": ONE, "criterion.weight": ONE, "train_loss.w": ONE}},
    ],
)
def test_wrappers_and_prefixes_come_off(content: dict[str, Any]) -> None:
    assert list(unwrapped_state_dict(content, FILE)) == ["a.weight"]


def test_a_prefix_that_only_some_keys_have_stays() -> None:
    content = {"module.a": ONE, "b": ONE}
    assert list(unwrapped_state_dict(content, FILE)) == ["module.a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a state dict"),
        (7, "holds a int, not a state dict"),
        (ONE, "holds a Tensor, not a state dict"),
        ({}, "holds no state dict: it has nothing"),
        ({"state_dict": {}}, "holds no state dict: it has nothing"),
        ({"epoch": 1, "optimizer": {"lr": 1}}, "it has 'epoch', 'optimizer', but tensors"),
        ({"a": ONE, "epoch": 1}, "it has 'epoch' and tensors"),
        ({"state_dict": [1]}, "it has 'state_dict', but"),
    ],
)
def test_file_without_state_dict_raises(content: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        unwrapped_state_dict(content, FILE)
    assert str(FILE) in str(caught.value)


def test_wrapper_that_holds_itself_raises() -> None:
    content: dict[str, object] = {"epoch": 1}
    content["model"] = {"state_dict": content}
    with pytest.raises(CheckpointError, match="holds no state dict"):
        unwrapped_state_dict(content, FILE)
