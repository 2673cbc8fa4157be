from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mpn.errors import CheckpointError
from mpn.networks.backbones import BackboneName, build_backbone
from mpn.networks.build import build_network
from mpn.networks.checkpoint import load_checkpoint
from mpn.networks.features import FeaturesConfig, FeaturesNet
from tests.networks.seeded import DEEPLAB_GAIN, seeded


def public_lite0() -> dict[str, Tensor]:
    """Return random weights with the keys of RangiLyu's file, classifier included."""
    trunk = seeded(build_backbone("efficientnet-lite0", output_stride=32), DEEPLAB_GAIN)
    return {
        **trunk.state_dict(),
        "fc.weight": torch.zeros(1000, 1280),
        "fc.bias": torch.zeros(1000),
    }


@pytest.mark.parametrize(
    ("backbone", "output_stride", "channels"),
    [
        ("efficientnet-lite0", 16, 24 + 40 + 112),
        ("efficientnet-lite2", 32, 24 + 48 + 120 + 352),
        ("resnet50", 16, 256 + 512 + 2048),
    ],
)
def test_features_join_maps_on_grid_of_stride_8(
    backbone: BackboneName, output_stride: int, channels: int
) -> None:
    with torch.device("meta"):
        network = FeaturesNet(FeaturesConfig(backbone, output_stride))
        features = network(torch.zeros(1, 3, 65, 97))
    assert network.channels == channels
    assert features.shape == (1, channels, 9, 13)


def test_features_are_maps_of_backbone() -> None:
    network = seeded(FeaturesNet(), DEEPLAB_GAIN)
    image = torch.rand(1, 3, 65, 97, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, maps = network(image), network.backbone(image)
    assert torch.equal(features[:, 24:64], maps[8])
    # Every second point of the grid is a point of the map of stride 16, corners included.
    assert torch.allclose(features[:, 64:, ::2, ::2], maps[16], atol=1e-5)
    inner = maps[4][:, :, 3:6, 5:8].mean(dim=(2, 3))
    assert torch.allclose(features[:, :24, 2, 3], inner, atol=1e-5)
    assert not torch.allclose(features[:, :24, 2, 4], inner, atol=1e-2)


def test_imagenet_file_is_loaded_as_features(tmp_path: Path) -> None:
    state = public_lite0()
    path = tmp_path / "efficientnet_lite0.pth"
    torch.save(state, path)
    weights = load_checkpoint(path).roles["features"]
    assert weights.variant == "EfficientNetLite0-Features"
    network = build_network(weights)
    rgb = torch.rand(1, 3, 161, 161, generator=torch.Generator().manual_seed(1))
    own_mean, own_std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    original = build_backbone("efficientnet-lite0", output_stride=32).eval()
    original.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    with torch.no_grad():
        features = network((rgb - own_mean) / own_std)
        expected = original((255 * rgb - 127) / 128)[8]
    # Padding has another colour: only points whose receptive field is inside can agree.
    inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    assert torch.allclose(features[:, 24:64][inside], expected[inside], rtol=1e-3, atol=1e-3)
    assert expected[inside].abs().max() > 0.05


def test_damaged_imagenet_file_is_refused(tmp_path: Path) -> None:
    state = public_lite0()
    state["stem.0.weight"] = state["stem.0.weight"][:, :2]
    path = tmp_path / "efficientnet_lite0.pth"
    torch.save(state, path)
    with pytest.raises(
        CheckpointError, match=r"'stem\.0\.weight' of ImageNet's efficientnet-lite0"
    ):
        load_checkpoint(path)


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
