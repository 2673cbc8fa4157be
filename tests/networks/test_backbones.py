"""Backbones: maps at named strides, dilation, TensorFlow's padding."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpn.errors import InputError
from mpn.networks.backbones import (
    BACKBONES,
    FIRST_LAYERS,
    OUTPUT_STRIDES,
    BackboneName,
    build_backbone,
)
from tests.networks.seeded import seeded
from tests.tolerances import PARITY_RELATIVE

CASES = [(name, stride) for name in BACKBONES for stride in OUTPUT_STRIDES[name]]
PUBLISHED: dict[BackboneName, tuple[dict[int, int], int]] = {
    "xception": ({4: 128, 16: 2048}, 37_867_312),
    "efficientnet-lite0": ({4: 24, 8: 40, 16: 112}, 700_768),
    "efficientnet-lite2": ({4: 24, 8: 48, 16: 120}, 1_161_584),
    "resnet50": ({4: 256, 8: 512, 16: 2048}, 23_508_032),
    "resnet101": ({4: 256, 8: 512, 16: 2048}, 42_500_160),
    "vgg16": ({4: 256, 8: 512, 16: 512}, 14_714_688),
}


@pytest.mark.parametrize(("name", "stride"), CASES)
@torch.inference_mode()
def test_backbone_has_the_named_maps(name: BackboneName, stride: int) -> None:
    network = build_backbone(
        name, in_channels=5, output_stride=stride, width=0.125, middle_blocks=1
    ).eval()
    assert network.state_dict()[FIRST_LAYERS[name]].shape[1] == 5
    maps = network(torch.rand(2, 5, 65, 97))
    assert list(maps) == list(network.channels) == sorted(network.channels)
    assert {4, stride} <= set(maps)
    for step, found in maps.items():
        size_hw = (64 // step + 1, 96 // step + 1)
        assert found.shape == (2, network.channels[step], *size_hw)
    assert all(float(found.std()) > 0 for found in maps.values())


@pytest.mark.parametrize("name", BACKBONES)
def test_published_size_has_the_public_parameters(name: BackboneName) -> None:
    channels, parameters = PUBLISHED[name]
    with torch.device("meta"):
        network = build_backbone(name)
    assert network.channels == channels
    assert sum(value.numel() for value in network.parameters()) == parameters


@pytest.mark.parametrize("name", ["efficientnet-lite0", "resnet50"])
@torch.inference_mode()
def test_dilation_keeps_the_samples_of_the_stride(name: BackboneName) -> None:
    """The dilated network computes the same at every second sample, and more between."""
    coarse = seeded(build_backbone(name, width=0.125), 1.0)
    fine = build_backbone(name, output_stride=8, width=0.125).eval()
    fine.load_state_dict(coarse.state_dict(), strict=True)
    image = torch.rand(1, 3, 65, 65)
    expected = coarse(image)[16]
    found = fine(image)[8]
    scale = float(expected.abs().max())
    torch.testing.assert_close(found[..., ::2, ::2], expected, rtol=0, atol=PARITY_RELATIVE * scale)
    assert float((found[..., 1::2, 1::2] - expected[..., :-1, :-1]).abs().max()) > 0.01 * scale


class _Same(nn.Module):
    """Convolution with TensorFlow's padding "SAME", which depends on the size."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.layer.kernel_size[0], self.layer.stride[0]
        pads: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            missing = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [missing // 2, missing - missing // 2]
        weight, groups = self.layer.weight, self.layer.groups
        return F.conv2d(F.pad(x, pads), weight, None, stride, 0, 1, groups)


@torch.inference_mode()
def test_lite_padding_is_same_at_32n_plus_1() -> None:
    ours = seeded(build_backbone("efficientnet-lite0", output_stride=32, width=0.125), 1.4)
    same = seeded(build_backbone("efficientnet-lite0", output_stride=32, width=0.125), 1.4)
    for module in list(same.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d):
                setattr(module, name, _Same(child))
    image = torch.rand(1, 3, 65, 97)
    for stride, found in ours(image).items():
        torch.testing.assert_close(found, same(image)[stride])
    # control: at other sizes the two differ
    even = image[..., :64, :96]
    assert not torch.allclose(ours(even)[32], same(even)[32], rtol=1e-3)


def test_unknown_backbone_or_stride_is_one_line() -> None:
    with pytest.raises(InputError, match="unknown backbone 'vgg19': there are xception"):
        build_backbone("vgg19")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="output_stride of vgg16 must be one of 8, 16, got 32"):
        build_backbone("vgg16", output_stride=32)
