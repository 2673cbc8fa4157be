"""Aligned Xception.

Layers and state-dict keys are those of the public jfzhang95/pytorch-deeplab-xception at 9135e10.
Source of the architecture: L.-C. Chen et al., "Encoder-Decoder with Atrous Separable Convolution
for Semantic Image Segmentation", ECCV 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from mpn.networks.backbones.base import Backbone
from mpn.networks.layers import scaled_channels

_DILATIONS = {16: (1, 1, 2), 8: (2, 2, 4)}
"""Output stride -> dilation of the middle flow, of block20, and of conv3..5."""


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


class AlignedXception(Backbone):
    """Aligned Xception: maps at stride 4 and at the output stride.

    Args:
        in_channels: Channels of the image.
        output_stride: 16, or 8 with dilation instead of the last stride.
        width: Multiplier of the published channels.
        middle_blocks: Number of middle-flow blocks (block4 and on).
        residual_relu: Start the shortcut of blocks 3..20 from relu(x), as in weights of the public
            code, whose first ReLU works in place; False starts it from x.
    """

    def __init__(
        self,
        in_channels: int,
        output_stride: int = 16,
        width: float = 1.0,
        middle_blocks: int = 16,
        residual_relu: bool = True,
    ) -> None:
        super().__init__()
        middle_dilation, exit_dilation, last_dilation = _DILATIONS[output_stride]
        stride3 = 2 if output_stride == 16 else 1

        def ch(channels: int) -> int:
            return scaled_channels(channels, width)

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
            return _Block(seps, opening_relu=opening, residual_relu=residual_relu)

        c32, c64, c128, c256, c728 = ch(32), ch(64), ch(128), ch(256), ch(728)
        c1024, c1536, c2048 = ch(1024), ch(1536), ch(2048)
        self.conv1 = nn.Conv2d(in_channels, c32, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c32)
        self.conv2 = nn.Conv2d(c32, c64, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c64)
        self.block1 = block((c64, c128, c128, c128), 2, 1, opening=False)
        self.block2 = block((c128, c256, c256, c256), 2, 1, opening=False)
        self.block3 = block((c256, c728, c728, c728), stride3, 1, opening=True)
        self.middle = [f"block{4 + i}" for i in range(middle_blocks)]
        for name in self.middle:
            setattr(self, name, block((c728,) * 4, 1, middle_dilation, opening=True))
        self.block20 = block((c728, c728, c1024, c1024), 1, exit_dilation, opening=True)
        self.conv3 = _SeparableConv(c1024, c1536, 1, last_dilation)
        self.bn3 = nn.BatchNorm2d(c1536)
        self.conv4 = _SeparableConv(c1536, c1536, 1, last_dilation)
        self.bn4 = nn.BatchNorm2d(c1536)
        self.conv5 = _SeparableConv(c1536, c2048, 1, last_dilation)
        self.bn5 = nn.BatchNorm2d(c2048)
        self._output_stride = output_stride
        self.channels = {4: c128, output_stride: c2048}

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        """See :meth:`Backbone.forward`."""
        x = F.relu(self.bn1(self.conv1(image)))
        x = F.relu(self.bn2(self.conv2(x)))
        low_level = F.relu(self.block1(x))
        x = self.block3(self.block2(low_level))
        for name in self.middle:
            x = getattr(self, name)(x)
        x = F.relu(self.block20(x))
        x = F.relu(self.bn3(self.conv3(x)))
        x = F.relu(self.bn4(self.conv4(x)))
        x = F.relu(self.bn5(self.conv5(x)))
        return {4: low_level, self._output_stride: x}
