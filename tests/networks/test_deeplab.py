from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpn.errors import MpnError
from mpn.networks.propagation import PropagationConfig, PropagationNet
from tests.networks.seeded import DEEPLAB_GAIN, seeded
from tests.tolerances import PARITY_RELATIVE

TINY = PropagationConfig(width=0.125, head_width=0.125, middle_blocks=2)
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def _largest_difference(actual: Tensor, expected: Tensor) -> float:
    """Relative to the largest expected magnitude."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="module")
def golden_case(golden: Path) -> tuple[Tensor, Tensor]:
    """The input as the network takes it, and its logits."""
    data = np.load(golden / "networks" / "deeplab_xception.npz")
    rgb = (data["rgb_prob"][..., :3] - IMAGENET_MEAN) / IMAGENET_STD
    rgb_prob = np.concatenate((rgb, data["rgb_prob"][..., 3:]), axis=-1)
    return torch.from_numpy(rgb_prob).permute(2, 0, 1)[None], torch.from_numpy(data["logits"])[None]


@pytest.fixture(scope="module")
def paper_size() -> nn.Module:
    with torch.device("meta"):
        net = PropagationNet()
    return seeded(net, DEEPLAB_GAIN)


@torch.inference_mode()
def test_paper_size_network_matches_the_public_one(
    paper_size: nn.Module, golden_case: tuple[Tensor, Tensor]
) -> None:
    rgb_prob, expected = golden_case
    logits = paper_size(rgb_prob)
    assert logits.shape == expected.shape
    assert _largest_difference(logits, expected) <= PARITY_RELATIVE
    # Controls: another channel order and an ignored probability are detected.
    assert _largest_difference(paper_size(rgb_prob[:, [2, 1, 0, 3]]), expected) > 0.01
    blind = torch.cat((rgb_prob[:, :3], torch.zeros_like(rgb_prob[:, 3:])), dim=1)
    assert _largest_difference(paper_size(blind), expected) > 0.01


@pytest.mark.parametrize(
    "change", [{"residual_relu": False}, {"output_stride": 8}], ids=["residual", "stride"]
)
@torch.inference_mode()
def test_golden_comparison_detects_other_wiring_of_same_keys(
    paper_size: nn.Module, golden_case: tuple[Tensor, Tensor], change: dict[str, int]
) -> None:
    rgb_prob, expected = golden_case
    with torch.device("meta"):
        other = PropagationNet(replace(PropagationConfig(), **change))
    other.load_state_dict(paper_size.state_dict(), strict=True, assign=True)
    assert _largest_difference(other.eval()(rgb_prob), expected) > 0.01


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (PropagationConfig(), 54_700_722),
        (PropagationConfig(output_stride=8), 54_700_722),
        (PropagationConfig(in_channels=3), 54_700_434),
        (PropagationConfig(in_channels=3, classes=21), 54_705_317),
    ],
)
def test_parameters_and_entries_are_the_public_ones(
    config: PropagationConfig, parameters: int
) -> None:
    with torch.device("meta"):
        net = PropagationNet(config)
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    assert len(net.state_dict()) == 848


PUBLIC_SHAPES = {
    "backbone.conv1.weight": (32, 4, 3, 3),
    "backbone.block1.rep.0.conv1.weight": (64, 1, 3, 3),
    "backbone.block1.skipbn.running_var": (128,),
    "backbone.block4.rep.1.conv1.weight": (728, 1, 3, 3),
    "backbone.block4.rep.1.bn.running_mean": (728,),
    "backbone.block4.rep.1.pointwise.weight": (728, 728, 1, 1),
    "backbone.block4.rep.2.weight": (728,),
    "backbone.block20.rep.7.pointwise.weight": (1024, 1024, 1, 1),
    "aspp.aspp2.atrous_conv.weight": (256, 2048, 3, 3),
    "aspp.global_avg_pool.1.weight": (256, 2048, 1, 1),
    "aspp.global_avg_pool.2.bias": (256,),
    "decoder.last_conv.0.weight": (256, 304, 3, 3),
    "decoder.last_conv.8.bias": (2,),
}


def test_keys_and_shapes_are_the_public_ones() -> None:
    with torch.device("meta"):
        state = PropagationNet().state_dict()
    assert {key: tuple(state[key].shape) for key in PUBLIC_SHAPES} == PUBLIC_SHAPES


@pytest.mark.parametrize(("stride", "deep"), [(16, 5), (8, 9)])
@torch.inference_mode()
def test_output_stride_sets_the_size_of_the_deepest_features(stride: int, deep: int) -> None:
    net = PropagationNet(replace(TINY, output_stride=stride)).eval()
    seen: list[tuple[int, ...]] = []
    net.aspp.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape[2:]))
    assert net(torch.rand((2, 4, 65, 65))).shape == (2, 2, 65, 65)
    assert seen == [(deep, deep)]


@torch.inference_mode()
def test_residual_relu_matters_from_block3_on() -> None:
    with_relu = seeded(PropagationNet(TINY), DEEPLAB_GAIN)
    without = PropagationNet(replace(TINY, residual_relu=False)).eval()
    without.load_state_dict(with_relu.state_dict(), strict=True)
    rgb_prob = torch.randn((1, 4, 65, 65), generator=torch.Generator().manual_seed(7))
    assert torch.equal(
        with_relu.backbone.block2(with_relu.backbone.block1(torch.ones((1, 8, 17, 17)))),
        without.backbone.block2(without.backbone.block1(torch.ones((1, 8, 17, 17)))),
    )
    assert _largest_difference(without(rgb_prob), with_relu(rgb_prob)) > 0.01


@pytest.mark.parametrize(
    "change",
    [
        {"output_stride": 32},
        {"backbone": "vgg16", "output_stride": 32},
        {"width": 0.0},
        {"head_width": 9.0},
        {"middle_blocks": 0},
    ],
)
def test_unknown_shapes_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MpnError, match=r"must be"):
        replace(PropagationConfig(), **change)


def test_unknown_backbones_and_heads_list_the_known_ones() -> None:
    with pytest.raises(MpnError, match=r"'vgg19': there are xception, .*, resnet101, vgg16"):
        PropagationConfig(backbone="vgg19")  # type: ignore[arg-type]
    with pytest.raises(MpnError, match=r"'fcn': there are deeplab-v3\+, deeplab-v2, pspnet"):
        PropagationConfig(head="fcn")  # type: ignore[arg-type]
