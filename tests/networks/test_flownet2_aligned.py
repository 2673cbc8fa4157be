"""The form of FlowNet 2.0 that is faster on CPUs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mpn.networks.flownet2 import FlowNet2, FlowNet2Config, FlowVariant
from mpn.networks.flownet2_aligned import CHANNEL_MULTIPLE, align_channels
from tests.networks.seeded import FLOWNET2_GAIN, seeded
from tests.tolerances import PARITY_RELATIVE

_DIRECT_INPUTS = 16
"""onnxruntime's blocked convolutions read fewer channels than this without a reorder."""


@pytest.mark.parametrize("variant", ["FlowNet2", "FlowNet2S"])
@torch.no_grad()
def test_aligned_flownet2_returns_same_flow(variant: FlowVariant) -> None:
    network = seeded(FlowNet2(FlowNet2Config(variant, width=0.125)), FLOWNET2_GAIN)
    frames = torch.rand((2, 1, 3, 64, 128), generator=torch.Generator().manual_seed(0)) * 255
    expected = network(*frames)
    aligned = copy.deepcopy(network)
    align_channels(aligned)

    def difference() -> float:
        return float((aligned(*frames) - expected).abs().max() / expected.abs().max())

    assert difference() <= PARITY_RELATIVE
    layers = list(aligned.modules())
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert all(
        layer.in_channels % CHANNEL_MULTIPLE == 0 or layer.in_channels < _DIRECT_INPUTS
        for layer in convolutions
    )
    transposed = [layer for layer in layers if isinstance(layer, nn.ConvTranspose2d)]
    assert all(layer.in_channels == 2 for layer in transposed)
    last = next(layer for layer in reversed(layers) if isinstance(layer, nn.Sequential))
    last.get_parameter("0.weight").mul_(2)
    assert difference() > 10 * PARITY_RELATIVE
