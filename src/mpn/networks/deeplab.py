"""DeepLab v3+ with an Aligned Xception backbone: the propagation network.

Layers and state-dict keys are those of the public jfzhang95/pytorch-deeplab-xception at 9135e10
(``backbone.``, ``aspp.``, ``decoder.``) with a fourth input channel, so that its checkpoints load
without conversion. The lite network is the same class with fewer channels and middle blocks.

Source of the architecture: L.-C. Chen et al., "Encoder-Decoder with Atrous Separable Convolution
for Semantic Image Segmentation", ECCV 2018.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpn._common.validation import check_int, check_number
from mpn.errors import CheckpointError, InputError, MpnError

_CHANNEL_STEP = 8
_PRIOR_GAIN = 4.0
"""Initial gain: p = 1 becomes 0.98, and outlines blurred by warping become twice as steep."""
_DILATIONS = {16: (1, 1, 2, (6, 12, 18)), 8: (2, 2, 4, (12, 24, 36))}
"""Output stride -> dilation of the middle flow, of block20, of conv3..5, and the ASPP rates."""


@dataclass(frozen=True)
class DeepLabConfig:
    """Shape of the network; the defaults are the paper's size.

    Attributes:
        in_channels: 4 for RGB and the warped probability.
        classes: 2 for background and foreground.
        output_stride: 16 or 8, input size over the size of the deepest features.
        residual_relu: Start the shortcut of blocks 3..20 from relu(x), as in weights of the public
            code, whose first ReLU works in place; False starts it from x.
        width: Multiplier of the backbone's channels.
        head_width: Multiplier of the ASPP's and the decoder's channels.
        middle_blocks: Number of middle-flow blocks (block4 and on).
        dropout: Whether the head has dropout in training.
        prior_skip: Add gain * (2 p - 1), where p is the warped probability, to the foreground's
            margin over the background. The network then learns corrections of p, so outlines finer
            than its features (a quarter of the crop's size) are kept. Not in the public layout.
    """

    in_channels: int = 4
    classes: int = 2
    output_stride: int = 16
    residual_relu: bool = True
    width: float = 1.0
    head_width: float = 1.0
    middle_blocks: int = 16
    dropout: bool = True
    prior_skip: bool = False

    def __post_init__(self) -> None:
        if self.output_stride not in _DILATIONS:
            raise MpnError(f"output_stride must be 16 or 8, got {self.output_stride}")
        for name in ("width", "head_width"):
            check_number(name, getattr(self, name), above=0, most=4, error=MpnError)
        check_int("middle_blocks", self.middle_blocks, least=1, most=16, error=MpnError)
        if self.prior_skip and (self.in_channels, self.classes) != (4, 2):
            raise MpnError(
                "prior_skip needs 4 input channels and 2 classes, got "
                f"{self.in_channels} and {self.classes}"
            )


def _scaled(channels: int, width: float) -> int:
    """Scale a channel count to a multiple of 8, at least 8; exact at width 1."""
    if width == 1.0:
        return channels
    return max(_CHANNEL_STEP, round(channels * width / _CHANNEL_STEP) * _CHANNEL_STEP)


class _SeparableConv(nn.Module):
    """Depthwise 3x3, BatchNorm, pointwise 1x1; no activation between them."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            inputs, inputs, 3, stride, dilation, dilation, groups=inputs, bias=False
        )
        self.bn = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.bn(self.conv1(x)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _SepSpec:
    inputs: int
    outputs: int
    stride: int
    dilation: int


class _Block(nn.Module):
    """Three separable convolutions with a shortcut.

    A ReLU is before each; that before the first is optional.
    """

    def __init__(self, seps: list[_SepSpec], *, opening_relu: bool, residual_relu: bool) -> None:
        super().__init__()
        inputs, outputs = seps[0].inputs, seps[-1].outputs
        stride = seps[-1].stride
        layers: list[nn.Module] = []
        for sep in seps:
            layers.append(nn.ReLU())
            layers.append(_SeparableConv(sep.inputs, sep.outputs, sep.stride, sep.dilation))
            layers.append(nn.BatchNorm2d(sep.outputs))
        self.rep = nn.Sequential(*(layers if opening_relu else layers[1:]))
        self.relu_shortcut = opening_relu and residual_relu
        self.skip: nn.Conv2d | None = None
        if inputs != outputs or stride != 1:
            self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.skipbn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.relu_shortcut:
            x = F.relu(x)  # the first ReLU of rep then changes nothing
        shortcut = x if self.skip is None else self.skipbn(self.skip(x))
        return self.rep(x) + shortcut  # type: ignore[no-any-return]


class _AlignedXception(nn.Module):
    """Backbone: (B, in_channels, H, W) -> deep and low-level (1/4) features."""

    def __init__(self, config: DeepLabConfig) -> None:
        super().__init__()
        middle_dilation, exit_dilation, last_dilation, _ = _DILATIONS[config.output_stride]
        stride3 = 2 if config.output_stride == 16 else 1

        def ch(channels: int) -> int:
            return _scaled(channels, config.width)

        def block(
            channels: tuple[int, int, int, int], stride: int, dilation: int, opening: bool
        ) -> _Block:
            a, b, c, d = channels
            last = 1 if (stride == 2 or channels[2] == channels[3] != channels[0]) else dilation
            seps = [
                _SepSpec(a, b, 1, dilation),
                _SepSpec(b, c, 1, dilation),
                _SepSpec(c, d, stride, last),
            ]
            return _Block(seps, opening_relu=opening, residual_relu=config.residual_relu)

        c32, c64, c128, c256, c728 = ch(32), ch(64), ch(128), ch(256), ch(728)
        c1024, c1536, c2048 = ch(1024), ch(1536), ch(2048)
        self.conv1 = nn.Conv2d(config.in_channels, c32, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c32)
        self.conv2 = nn.Conv2d(c32, c64, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c64)
        self.block1 = block((c64, c128, c128, c128), 2, 1, opening=False)
        self.block2 = block((c128, c256, c256, c256), 2, 1, opening=False)
        self.block3 = block((c256, c728, c728, c728), stride3, 1, opening=True)
        self.middle = [f"block{4 + i}" for i in range(config.middle_blocks)]
        for name in self.middle:
            setattr(self, name, block((c728,) * 4, 1, middle_dilation, opening=True))
        self.block20 = block((c728, c728, c1024, c1024), 1, exit_dilation, opening=True)
        self.conv3 = _SeparableConv(c1024, c1536, 1, last_dilation)
        self.bn3 = nn.BatchNorm2d(c1536)
        self.conv4 = _SeparableConv(c1536, c1536, 1, last_dilation)
        self.bn4 = nn.BatchNorm2d(c1536)
        self.conv5 = _SeparableConv(c1536, c2048, 1, last_dilation)
        self.bn5 = nn.BatchNorm2d(c2048)
        self.low_level_channels = c128
        self.deep_channels = c2048

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        low_level = F.relu(self.block1(x))
        x = self.block3(self.block2(low_level))
        for name in self.middle:
            x = getattr(self, name)(x)
        x = F.relu(self.block20(x))
        x = F.relu(self.bn3(self.conv3(x)))
        x = F.relu(self.bn4(self.conv4(x)))
        x = F.relu(self.bn5(self.conv5(x)))
        return x, low_level


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


class _Aspp(nn.Module):
    """Atrous spatial pyramid pooling, fused by a 1x1 convolution.

    Branches are a 1x1, three dilated 3x3, and the image mean.
    """

    def __init__(self, inputs: int, outputs: int, rates: tuple[int, int, int], drop: float) -> None:
        super().__init__()
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
        self.dropout = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        # Interpolating a 1x1 map repeats its value, which expand does exactly.
        pooled = self.global_avg_pool(x).expand(-1, -1, x.shape[2], x.shape[3])
        branches = (self.aspp1(x), self.aspp2(x), self.aspp3(x), self.aspp4(x), pooled)
        x = F.relu(self.bn1(self.conv1(torch.cat(branches, dim=1))))
        return self.dropout(x)  # type: ignore[no-any-return]


class _Decoder(nn.Module):
    def __init__(self, low_level: int, config: DeepLabConfig) -> None:
        super().__init__()
        width, reduced = _scaled(256, config.head_width), _scaled(48, config.head_width)
        self.conv1 = nn.Conv2d(low_level, reduced, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(reduced)
        self.last_conv = nn.Sequential(
            nn.Conv2d(width + reduced, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(0.5 if config.dropout else 0.0),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(0.1 if config.dropout else 0.0),
            nn.Conv2d(width, config.classes, 1),
        )

    def forward(self, x: Tensor, low_level: Tensor) -> Tensor:
        low_level = F.relu(self.bn1(self.conv1(low_level)))
        x = F.interpolate(x, size=low_level.shape[2:], mode="bilinear", align_corners=True)
        return self.last_conv(torch.cat((x, low_level), dim=1))  # type: ignore[no-any-return]


class DeepLabXception(nn.Module):
    """Propagation network.

    Args:
        config: Shape of the network.
    """

    def __init__(self, config: DeepLabConfig | None = None) -> None:
        super().__init__()
        self.config = config = DeepLabConfig() if config is None else config
        self.backbone = _AlignedXception(config)
        self.aspp = _Aspp(
            self.backbone.deep_channels,
            _scaled(256, config.head_width),
            _DILATIONS[config.output_stride][3],
            0.5 if config.dropout else 0.0,
        )
        self.decoder = _Decoder(self.backbone.low_level_channels, config)
        if config.prior_skip:
            self.prior_gain = nn.Parameter(torch.tensor([_PRIOR_GAIN]))

    def forward(self, rgb_prob: Tensor) -> Tensor:
        """Compute the logits of background and foreground.

        Args:
            rgb_prob: (B, 4, H, W): (B, 4, H, W): RGB / 255 normalised by mean (.485, .456, .406)
                and std (.229, .224, .225), then the warped probability 0..1. Sizes of 16 n + 1 are
                best, because the interpolations align corners.

        Returns:
            (B, classes, H, W) logits.
        """
        deep, low_level = self.backbone(rgb_prob)
        logits = self.decoder(self.aspp(deep), low_level)
        logits = F.interpolate(logits, size=rgb_prob.shape[2:], mode="bilinear", align_corners=True)
        if self.config.prior_skip:
            half_margin = self.prior_gain * (rgb_prob[:, 3:4] - 0.5)
            logits = logits + torch.cat((-half_margin, half_margin), dim=1)
        return logits


FourthChannel = Literal["zero", "mean", "normal"]
FOURTH_CHANNELS: tuple[FourthChannel, ...] = get_args(FourthChannel)

FIRST_LAYER = "backbone.conv1.weight"
HEAD_LAYER = "decoder.last_conv.8.weight"
_NORMAL_STD = 1e-4
"""As in omkar13/MaskTrack at 9e5153e, which appends normal_(0, 0.0001) to its first layer."""


def check_fourth_channel(how: str) -> None:
    """Raise InputError unless ``how`` is a known initialisation."""
    if how not in FOURTH_CHANNELS:
        raise InputError(
            f"unknown initialisation '{how}' of the fourth channel: there are "
            f"{', '.join(FOURTH_CHANNELS)}"
        )


def with_fourth_channel(state_dict: Mapping[str, Tensor], how: str) -> dict[str, Tensor]:
    """Append a fourth input channel, for the warped probability.

    Args:
        state_dict: State dict of a DeepLab Xception with three input channels.
        how: ``"zero"``: the network ignores the new channel until it is trained. ``"mean"``: the
            channel acts as a grey image added to the colours. ``"normal"``: small seeded noise.

    Raises:
        InputError: If ``how`` is unknown.
        CheckpointError: If the first layer does not have three input channels.
    """
    check_fourth_channel(how)
    colours = state_dict.get(FIRST_LAYER)
    if colours is None or colours.ndim != 4 or colours.shape[1] != 3:
        shape = None if colours is None else tuple(colours.shape)
        raise CheckpointError(f"'{FIRST_LAYER}' must be (C, 3, 3, 3) to be extended, got {shape}")
    if how == "zero":
        fourth = torch.zeros_like(colours[:, :1])
    elif how == "mean":
        fourth = colours.mean(dim=1, keepdim=True)
    else:
        generator = torch.Generator().manual_seed(0)
        fourth = _NORMAL_STD * torch.randn(colours[:, :1].shape, generator=generator)
    return {**state_dict, FIRST_LAYER: torch.cat((colours, fourth.to(colours.dtype)), dim=1)}
