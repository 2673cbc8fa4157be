"""OSVOS: a VGG16 trunk with side branches, fused at full resolution.

One class has two forms. The public one (S. Caelles et al., "One-Shot Video Object Segmentation",
CVPR 2017; state-dict keys of OSVOS-PyTorch) has four side branches, from the second stage on,
upsampled by fixed bilinear transposed convolutions. The modified one of the Mask Propagation
Network paper has a branch from every map before a pooling, including conv1_2, and resizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpn.errors import InputError
from mpn.networks.layers import check_width, run_layer, scaled_channels

Upsample = Literal["deconv_center_crop", "resize"]
UPSAMPLES: tuple[Upsample, ...] = get_args(Upsample)

STAGE_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SIDE_CHANNELS = 16


@dataclass(frozen=True)
class OsvosConfig:
    """Shape of the network; the defaults are the paper's modified form.

    Attributes:
        branches: 5: from every map before a pooling; 4: all except the first, as in the public
            form.
        upsample: ``"resize"``: bilinear, half-pixel centres. ``"deconv_center_crop"``: as in the
            public network, for weights trained with it. It fades to zero at the borders and, at
            widths not divisible by 16, shifts the coarse maps by up to 5 px.
        width: Multiplier of the channels.
    """

    branches: int = 5
    upsample: Upsample = "resize"
    width: float = 1.0

    def __post_init__(self) -> None:
        if self.branches not in (4, 5):
            raise InputError(f"OSVOS has 4 or 5 side branches, got {self.branches}")
        if self.upsample not in UPSAMPLES:
            raise InputError(
                f"unknown upsampling '{self.upsample}': there are {', '.join(UPSAMPLES)}"
            )
        check_width(self.width)


class OsvosVgg(nn.Module):
    """One-shot video object segmentation network.

    Accepts any size: pooling rounds up, and upsampled maps are cropped to the image.

    Args:
        config: Shape of the network.
    """

    def __init__(self, config: OsvosConfig | None = None) -> None:
        super().__init__()
        self.config = config = OsvosConfig() if config is None else config

        def ch(channels: int) -> int:
            return scaled_channels(channels, config.width)

        self.stages = nn.ModuleList()
        inputs = 3
        for number, channels in enumerate(STAGE_CHANNELS):
            self.stages.append(_stage(inputs, [ch(c) for c in channels], pool=number > 0))
            inputs = ch(channels[-1])
        self.first_stage = len(STAGE_CHANNELS) - config.branches
        """First stage with a side branch."""
        side = ch(SIDE_CHANNELS)
        self.side_prep = nn.ModuleList()
        self.score_dsn = nn.ModuleList()
        for channels in STAGE_CHANNELS[self.first_stage :]:
            self.side_prep.append(nn.Conv2d(ch(channels[-1]), side, 3, padding=1))
            self.score_dsn.append(nn.Conv2d(side, 1, 1))
        if config.upsample == "deconv_center_crop":
            halvings = range(self.first_stage, len(STAGE_CHANNELS))
            self.upscale = nn.ModuleList(_bilinear_deconv(side, n) for n in halvings)
            self.upscale_ = nn.ModuleList(_bilinear_deconv(1, n) for n in halvings)
        self.fuse = nn.Conv2d(side * config.branches, 1, 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute the logits of every side branch and of their fusion.

        Args:
            image: (B, 3, H, W) BGR, 0..255 minus (104.00699, 116.66877, 122.67892).

        Returns:
            ``branches`` + 1 logits, (B, 1, H, W) each, from fine to coarse, then the fused ones.
        """
        sides = self._sides(image)
        scored = [run_layer(score, side) for score, side in zip(self.score_dsn, sides, strict=True)]
        size_hw = (image.shape[2], image.shape[3])
        logits = [self._upsampled(k, score, size_hw) for k, score in enumerate(scored)]
        return [*logits, self._fused(sides, size_hw)]

    def logits(self, image: Tensor) -> Tensor:
        """Compute the fused logits alone, for inference.

        Args:
            image: See :meth:`forward`.

        Returns:
            (B, 1, H, W) logits.
        """
        return self._fused(self._sides(image), (image.shape[2], image.shape[3]))

    def _sides(self, image: Tensor) -> list[Tensor]:
        features, sides = image, []
        for number, stage in enumerate(self.stages):
            features = run_layer(stage, features)
            if number >= self.first_stage:
                sides.append(run_layer(self.side_prep[number - self.first_stage], features))
        return sides

    def _fused(self, sides: Sequence[Tensor], size_hw: tuple[int, int]) -> Tensor:
        upsampled = [self._upsampled(k, side, size_hw) for k, side in enumerate(sides)]
        return run_layer(self.fuse, torch.cat(upsampled, dim=1))

    def _upsampled(self, branch: int, values: Tensor, size_hw: tuple[int, int]) -> Tensor:
        halvings = branch + self.first_stage
        height, width = size_hw
        if halvings == 0:
            return values
        if self.config.upsample == "resize":
            # Resize by the exact power of two, then crop: pooling rounds up at the right and the
            # bottom, so resizing directly to the image's size would stretch odd-sized maps.
            scale = float(2**halvings)
            values = F.interpolate(values, scale_factor=scale, mode="bilinear", align_corners=False)
            return values[..., :height, :width]
        layers = self.upscale if values.shape[1] > 1 else self.upscale_
        values = run_layer(layers[branch], values)
        # TensorRT's parser refuses a negative Pad (onnx-tensorrt#847), so use a slice.
        top, left = (values.shape[2] - height) // 2, (values.shape[3] - width) // 2
        return values[..., top : top + height, left : left + width]


def _stage(inputs: int, outputs: Sequence[int], *, pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.MaxPool2d(2, 2, ceil_mode=True)] if pool else []
    for channels in outputs:
        layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU()]
        inputs = channels
    return nn.Sequential(*layers)


def _bilinear_deconv(channels: int, halvings: int) -> nn.Module:
    """Build the fixed upsampling of each channel by 2**halvings.

    It is the identity for no halving.
    """
    if halvings == 0:
        return nn.Identity()
    stride = 2**halvings
    layer = nn.ConvTranspose2d(channels, channels, 2 * stride, stride, bias=False)
    taps = 1 - (torch.arange(2 * stride) - (stride - 0.5)).abs() / stride
    kernel = torch.eye(channels)[:, :, None, None] * (taps[:, None] * taps)
    layer.weight = nn.Parameter(kernel, requires_grad=False)
    return layer
