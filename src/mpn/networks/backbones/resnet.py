"""ResNet-50 and ResNet-101 with dilation instead of the last strides.

State-dict keys are those of torchvision. Source of the architecture: K. He et al., "Deep Residual
Learning for Image Recognition", CVPR 2016, with the stride in the 3x3 layer as in torchvision.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from mpn.networks.backbones.base import Backbone
from mpn.networks.layers import scaled_channels

RESNET_BLOCKS: Mapping[str, tuple[int, int, int, int]] = {
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
"""Name -> bottlenecks of each of the four stages."""

_STAGE_CHANNELS = (64, 128, 256, 512)
_EXPANSION = 4


class ResNet(Backbone):
    """ResNet of bottlenecks without its classifier.

    Args:
        name: One of :data:`RESNET_BLOCKS`.
        in_channels: Channels of the image.
        output_stride: 32, or 16 or 8 with dilation instead of the last strides.
        width: Multiplier of the published channels.
    """

    def __init__(
        self, name: str, in_channels: int, output_stride: int = 16, width: float = 1.0
    ) -> None:
        super().__init__()
        inputs = scaled_channels(_STAGE_CHANNELS[0], width)
        self.conv1 = nn.Conv2d(in_channels, inputs, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.channels = {}
        self._strides: list[int] = []
        reached, dilation = 4, 1
        for number, (channels, count) in enumerate(
            zip(_STAGE_CHANNELS, RESNET_BLOCKS[name], strict=True)
        ):
            stride = 1 if number == 0 else 2
            is_atrous = reached * stride > output_stride
            inner = scaled_channels(channels, width)
            stage = nn.Sequential()
            for block in range(count):
                step = stride if block == 0 and not is_atrous else 1
                stage.append(_Bottleneck(inputs, inner, step, dilation, block == 0))
                inputs = _EXPANSION * inner
                if block == 0 and is_atrous:
                    dilation *= stride
            reached = min(reached * stride, output_stride)
            setattr(self, f"layer{number + 1}", stage)
            self._strides.append(reached)
            self.channels[reached] = inputs

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        """See :meth:`Backbone.forward`."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(image))))
        maps = {}
        for number, stride in enumerate(self._strides, start=1):
            x = getattr(self, f"layer{number}")(x)
            maps[stride] = x
        return maps


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, inner: int, stride: int, dilation: int, is_first: bool) -> None:
        super().__init__()
        outputs = _EXPANSION * inner
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if is_first:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + shortcut)
