"""Features network: the maps of a frozen backbone on one grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpn.engines.directory.entries import PropagationPreprocessing
from mpn.engines.spec import FEATURES_STRIDE
from mpn.errors import InputError
from mpn.networks.backbones import BACKBONE_TITLES, BackboneName, build_backbone, check_backbone
from mpn.networks.layers import run_layer

_FINEST_STRIDE = 4

FEATURES_VARIANTS: tuple[str, ...] = tuple(f"{name}-Features" for name in BACKBONE_TITLES.values())


def features_variant(config: Mapping[str, Any]) -> str:
    """Name the network of a config, as ``"EfficientNetLite0-Features"``."""
    backbone = config.get("backbone", "efficientnet-lite0")
    return f"{BACKBONE_TITLES.get(backbone, backbone)}-Features"


@dataclass(frozen=True)
class FeaturesConfig:
    """Shape of the network.

    Attributes:
        backbone: One of :data:`mpn.networks.backbones.BACKBONES`.
        output_stride: Stride of the deepest map, see
            :data:`mpn.networks.backbones.OUTPUT_STRIDES`. At 16 EfficientNet-Lite0 costs two
            thirds, and its features separate objects as well.
        width: Multiplier of the published channels.
    """

    backbone: BackboneName = "efficientnet-lite0"
    output_stride: int = 16
    width: float = 1.0

    def __post_init__(self) -> None:
        check_backbone(self.backbone, self.output_stride)


class NormalisedRgb(nn.Module):
    """Convert RGB 0..255 to the normalised RGB of our networks, in float32."""

    gain: Tensor
    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        values = PropagationPreprocessing()
        mean, std = torch.tensor(values.mean_rgb), torch.tensor(values.std_rgb)
        self.register_buffer("gain", (1 / (255 * std))[:, None, None], persistent=False)
        self.register_buffer("offset", (-mean / std)[:, None, None], persistent=False)

    def forward(self, rgb: Tensor) -> Tensor:
        """Convert (B, 3, H, W)."""
        return rgb * self.gain + self.offset


class FeaturesNet(nn.Module):
    """Features of a whole frame for the target model.

    Args:
        config: Shape of the network.
    """

    def __init__(self, config: FeaturesConfig | None = None) -> None:
        super().__init__()
        self.config = config = FeaturesConfig() if config is None else config
        self.backbone = build_backbone(
            config.backbone,
            in_channels=3,
            output_stride=config.output_stride,
            width=config.width,
        )
        if _FINEST_STRIDE not in self.backbone.channels:
            raise InputError(f"{config.backbone} has no map at stride {_FINEST_STRIDE}")
        self._strides = tuple(s for s in self.backbone.channels if s >= _FINEST_STRIDE)

    @property
    def channels(self) -> int:
        """Channels of all maps together."""
        return sum(self.backbone.channels[stride] for stride in self._strides)

    def forward(self, rgb: Tensor) -> Tensor:
        """Compute the maps of all strides, joined on the grid of stride 8.

        The map of stride 4 is averaged over 3x3 points, those over stride 8 are interpolated.

        Args:
            rgb: (B, 3, H, W): RGB / 255 normalised by mean (.485, .456, .406) and std (.229, .224,
                .225). Sides of 32 n + 1 are exact, because the interpolations align corners.

        Returns:
            (B, channels, ceil(H / 8), ceil(W / 8)).
        """
        maps = run_layer(self.backbone, rgb)
        size = tuple((side - 1) // FEATURES_STRIDE + 1 for side in rgb.shape[2:])
        joined = []
        for stride in self._strides:
            found = maps[stride]
            if stride < FEATURES_STRIDE:
                found = F.avg_pool2d(found, 3, 2, 1, count_include_pad=False)
            elif stride > FEATURES_STRIDE:
                found = F.interpolate(found, size=size, mode="bilinear", align_corners=True)
            joined.append(found)
        return torch.cat(joined, dim=1)
