"""Heads: ASPP-L and pyramid pooling; the combinations have names and round trips."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mpn.networks.backbones import BACKBONES
from mpn.networks.checkpoint import build_network, load_checkpoint, save_checkpoint
from mpn.networks.heads import AsppL, PyramidPooling, _region_means
from mpn.networks.propagation import (
    HEADS,
    PROPAGATION_VARIANTS,
    HeadName,
    PropagationConfig,
    PropagationNet,
)
from tests.networks.seeded import seeded


@torch.inference_mode()
def test_region_means_are_adaptive_pooling() -> None:
    x = torch.rand(2, 3, 12, 18)
    for bins in (2, 3, 6):
        rows, columns = _region_means(12, bins, x), _region_means(18, bins, x)
        expected = F.adaptive_avg_pool2d(x, bins)
        torch.testing.assert_close(rows @ x @ columns.t(), expected)
    # Of other sizes every sample has the same weight, and the means of a constant are it.
    uneven = _region_means(15, 6, x)
    torch.testing.assert_close(uneven.sum(dim=1), torch.ones(6))
    torch.testing.assert_close(uneven.sum(dim=0), torch.full((15,), 6 / 15))


@torch.inference_mode()
def test_pyramid_pooling_has_a_global_context() -> None:
    head = PyramidPooling(16, 2, 0.125, dropout=False).eval()
    x = torch.rand(1, 16, 9, 9)
    changed = x.clone()
    changed[..., 8, 8] += 10.0
    far = head(changed)[..., :4, :4] - head(x)[..., :4, :4]
    assert float(far.abs().max()) > 1e-4
    # control: without the pooled maps the far corner does not change
    width = head.fuse[0].weight.shape[1] - 16
    head.fuse[0].weight[:, 16 : 16 + width] = 0.0
    assert torch.equal(head(changed)[..., :4, :4], head(x)[..., :4, :4])


@torch.inference_mode()
def test_aspp_l_is_the_sum_of_dilated_classifiers() -> None:
    head = AsppL(4, 2, output_stride=16)
    x = torch.zeros(1, 4, 31, 31)
    x[0, :, 15, 15] = 1.0
    reached = (head(x) - head(torch.zeros_like(x))).abs().sum(dim=(0, 1)) > 0
    offsets = {int(abs(row - 15)) for row, _ in reached.nonzero()}
    assert offsets == {0, 3, 6, 9, 12}


def test_every_combination_has_its_own_name() -> None:
    assert len(set(PROPAGATION_VARIANTS)) == len(BACKBONES) * len(HEADS) == 18
    assert "DeepLabXception" in PROPAGATION_VARIANTS
    assert "EfficientNetLite0-DeepLabV3Plus" in PROPAGATION_VARIANTS


@pytest.mark.parametrize("head", HEADS)
@torch.inference_mode()
def test_other_networks_survive_a_checkpoint(tmp_path: Path, head: HeadName) -> None:
    config = PropagationConfig(
        backbone="efficientnet-lite0",
        head=head,
        in_channels=5,
        width=0.125,
        head_width=0.125,
        prior_skip=True,
    )
    network = seeded(PropagationNet(config), 1.4)
    path = save_checkpoint(tmp_path / "p.pth", {"propagation": network}, {})
    weights = load_checkpoint(path).roles["propagation"]
    assert weights.variant.startswith("EfficientNetLite0-")
    crop = torch.rand(1, 5, 65, 65)
    loaded = build_network(weights)
    assert torch.equal(loaded(crop), network(crop))
    assert loaded(crop).shape == (1, 2, 65, 65)


def test_lite0_with_score_has_the_trained_keys() -> None:
    config = PropagationConfig(
        backbone="efficientnet-lite0", head_width=0.25, in_channels=5, prior_skip=True
    )
    with torch.device("meta"):
        state = PropagationNet(config).state_dict()
    shapes = {
        "backbone.stem.0.weight": (32, 5, 3, 3),
        "backbone.blocks.0.0._depthwise_conv.weight": (32, 1, 3, 3),
        "backbone.blocks.4.2._project_conv.weight": (112, 672, 1, 1),
        "backbone.blocks.4.2._bn2.running_var": (112,),
        "aspp.aspp2.atrous_conv.weight": (64, 112, 3, 3),
        "decoder.conv1.weight": (16, 24, 1, 1),
        "prior_gain": (2,),
    }
    assert {key: tuple(state[key].shape) for key in shapes} == shapes
    assert "backbone.blocks.5.0._bn0.weight" not in state
