"""Heads of segmentation networks: DeepLab v3+, DeepLab v2 and PSPNet.

Sources: L.-C. Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation", ECCV 2018, with the layers and keys of jfzhang95/pytorch-deeplab-xception; L.-C. Chen
et al., "DeepLab", TPAMI 2018; H. Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpn.networks.layers import scaled_channels

_ASPP_RATES: Mapping[int, tuple[int, int, int]] = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}
"""Output stride -> dilation of the three branches, the same in pixels of the image."""
_ASPP_L_RATES: Mapping[int, tuple[int, int, int, int]] = {
    8: (6, 12, 18, 24),
    16: (3, 6, 9, 12),
    32: (2, 3, 4, 6),
}
"""Output stride -> dilation of the four classifiers; those of stride 8 are the paper's."""
_PYRAMID_BINS = (1, 2, 3, 6)
_PYRAMID_CHANNELS = 512


class _AtrousBranch(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int) -> None:
        super().__init__()
        padding = 0 if kernel == 1 else dilation
        self.atrous_conv = nn.Conv2d(
            inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.atrous_conv(x)))


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling, fused by a 1x1 convolution.

    Branches are a 1x1, three dilated 3x3, and the image mean.

    Args:
        inputs: Channels of the deepest map.
        output_stride: Stride of that map.
        head_width: Multiplier of the head's channels.
        dropout: Whether there is dropout in training.
    """

    def __init__(self, inputs: int, output_stride: int, head_width: float, dropout: bool) -> None:
        super().__init__()
        outputs, rates = scaled_channels(256, head_width), _ASPP_RATES[output_stride]
        self.aspp1 = _AtrousBranch(inputs, outputs, 1, 1)
        self.aspp2 = _AtrousBranch(inputs, outputs, 3, rates[0])
        self.aspp3 = _AtrousBranch(inputs, outputs, 3, rates[1])
        self.aspp4 = _AtrousBranch(inputs, outputs, 3, rates[2])
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )
        self.conv1 = nn.Conv2d(5 * outputs, outputs, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(0.5 if dropout else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the fused map at the size of ``x``."""
        # Interpolating a 1x1 map repeats its value, which expand does exactly.
        pooled = self.global_avg_pool(x).expand(-1, -1, x.shape[2], x.shape[3])
        branches = (self.aspp1(x), self.aspp2(x), self.aspp3(x), self.aspp4(x), pooled)
        x = F.relu(self.bn1(self.conv1(torch.cat(branches, dim=1))))
        return self.dropout(x)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Decoder of DeepLab v3+: the ASPP's map joined with that of stride 4.

    Args:
        low_level: Channels of the map of stride 4.
        classes: Channels of the logits.
        head_width: Multiplier of the head's channels.
        dropout: Whether there is dropout in training.
    """

    def __init__(self, low_level: int, classes: int, head_width: float, dropout: bool) -> None:
        super().__init__()
        width, reduced = scaled_channels(256, head_width), scaled_channels(48, head_width)
        self.conv1 = nn.Conv2d(low_level, reduced, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(reduced)
        self.last_conv = nn.Sequential(
            nn.Conv2d(width + reduced, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(0.5 if dropout else 0.0),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(0.1 if dropout else 0.0),
            nn.Conv2d(width, classes, 1),
        )

    def forward(self, x: Tensor, low_level: Tensor) -> Tensor:
        """Compute the logits at stride 4."""
        low_level = F.relu(self.bn1(self.conv1(low_level)))
        x = F.interpolate(x, size=low_level.shape[2:], mode="bilinear", align_corners=True)
        return self.last_conv(torch.cat((x, low_level), dim=1))  # type: ignore[no-any-return]


class AsppL(nn.Module):
    """Head of DeepLab v2: the sum of four dilated 3x3 classifiers.

    It has no hidden layer, and so no width.

    Args:
        inputs: Channels of the deepest map.
        classes: Channels of the logits.
        output_stride: Stride of that map.
    """

    float32_layers = tuple(f"classifiers.{k}" for k in range(4))

    def __init__(self, inputs: int, classes: int, output_stride: int) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(
            nn.Conv2d(inputs, classes, 3, padding=rate, dilation=rate)
            for rate in _ASPP_L_RATES[output_stride]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits at the size of ``x``."""
        first, *others = self.classifiers
        logits: Tensor = first(x)
        for classifier in others:
            logits = logits + classifier(x)
        return logits


class PyramidPooling(nn.Module):
    """Head of PSPNet: means over 1, 4, 9 and 36 regions joined with the map.

    Args:
        inputs: Channels of the deepest map.
        classes: Channels of the logits.
        head_width: Multiplier of the head's channels.
        dropout: Whether there is dropout in training.
    """

    float32_layers = ("last",)

    def __init__(self, inputs: int, classes: int, head_width: float, dropout: bool) -> None:
        super().__init__()
        branch = scaled_channels(inputs // len(_PYRAMID_BINS), head_width)
        width = scaled_channels(_PYRAMID_CHANNELS, head_width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, branch, 1, bias=False), nn.BatchNorm2d(branch), nn.ReLU()
            )
            for _ in _PYRAMID_BINS
        )
        self.fuse = nn.Sequential(
            nn.Conv2d(inputs + len(_PYRAMID_BINS) * branch, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(0.1 if dropout else 0.0),
        )
        self.last = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits at the size of ``x``."""
        parts = [x]
        for bins, level in zip(_PYRAMID_BINS, self.levels, strict=True):
            if bins == 1:  # a mean of many values, in float32 also in half precision
                parts.append(level(self.pool(x)).expand(-1, -1, x.shape[2], x.shape[3]))
                continue
            rows, columns = (_region_means(x.shape[axis], bins, x) for axis in (2, 3))
            pooled = level(rows @ (x @ columns.t()))
            parts.append(F.interpolate(pooled, x.shape[2:], mode="bilinear", align_corners=True))
        return self.last(self.fuse(torch.cat(parts, dim=1)))  # type: ignore[no-any-return]


def _region_means(size: int, bins: int, like: Tensor) -> Tensor:
    """Make the (bins, size) matrix of the means over equal parts of an axis.

    A sample on the edge of two parts counts for both in proportion. A matrix product has one form
    in all runtimes, unlike adaptive pooling, and any size.
    """
    start = torch.arange(size, dtype=torch.float32, device=like.device)
    edges = torch.arange(bins + 1, dtype=torch.float32, device=like.device) * (size / bins)
    upper = torch.minimum(start[None] + 1, edges[1:, None])
    lower = torch.maximum(start[None], edges[:-1, None])
    return ((upper - lower).clamp(min=0) * (bins / size)).to(like.dtype)
