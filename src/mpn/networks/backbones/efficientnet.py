"""EfficientNet-Lite: inverted residuals with ReLU6.

State-dict keys are those of RangiLyu/EfficientNet-Lite (``stem.``, ``blocks.STAGE.BLOCK.``). Source
of the architecture: M. Tan and Q. Le, "EfficientNet: Rethinking Model Scaling for Convolutional
Neural Networks", ICML 2019; the Lite variants by TensorFlow's tpu repository.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from mpn.networks.backbones.base import Backbone
from mpn.networks.layers import scaled_channels

LITE_SIZES: Mapping[str, tuple[float, float]] = {
    "efficientnet-lite0": (1.0, 1.0),
    "efficientnet-lite2": (1.1, 1.2),
}
"""Name -> published multipliers of channels and of blocks per stage."""

STEM_CHANNELS = 32
_STAGES = (
    # kernel, stride, expansion, channels, blocks
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_STAGES_TO_STRIDE_16 = 5
_EPSILON = 1e-3
"""Of the batch normalisation, as in the published weights."""


def lite_blocks(name: str) -> tuple[int, ...]:
    """Return the number of blocks of each stage; the first and the last do not scale."""
    depth = LITE_SIZES[name][1]
    last = len(_STAGES) - 1
    return tuple(
        blocks if stage in (0, last) else math.ceil(depth * blocks)
        for stage, (_, _, _, _, blocks) in enumerate(_STAGES)
    )


class EfficientNetLite(Backbone):
    """EfficientNet-Lite0 or Lite2 without its classifier.

    The padding is symmetric. At sides of 32 n + 1 (to stride 16: 16 n + 1) it equals TensorFlow's
    "SAME", which the published weights were trained with.

    Args:
        name: One of :data:`LITE_SIZES`.
        in_channels: Channels of the image.
        output_stride: 32: all stages. 16: the first five. 8: those five, with dilation instead of
            the fourth stride.
        width: Multiplier of the published channels.
    """

    def __init__(
        self, name: str, in_channels: int, output_stride: int = 16, width: float = 1.0
    ) -> None:
        super().__init__()
        inputs = scaled_channels(STEM_CHANNELS, width)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, inputs, 3, 2, 1, bias=False),
            nn.BatchNorm2d(inputs, eps=_EPSILON),
            nn.ReLU6(),
        )
        self.blocks = nn.ModuleList()
        self._strides: list[int] = []
        self.channels = {}
        used = _STAGES if output_stride == 32 else _STAGES[:_STAGES_TO_STRIDE_16]
        reached, dilation = 2, 1
        for (kernel, stride, expansion, published, _), count in zip(
            used, lite_blocks(name), strict=False
        ):
            outputs = scaled_channels(_published(published, LITE_SIZES[name][0]), width)
            is_atrous = reached * stride > output_stride
            stage = nn.Sequential()
            for block in range(count):
                step = stride if block == 0 and not is_atrous else 1
                stage.append(_Block(inputs, outputs, kernel, expansion, step, dilation, block > 0))
                inputs = outputs
                if block == 0 and is_atrous:
                    # Only the layers after the removed stride see every second sample.
                    dilation *= stride
            reached = min(reached * stride, output_stride)
            self.blocks.append(stage)
            self._strides.append(reached)
            self.channels[reached] = outputs
        del self.channels[2]

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        """See :meth:`Backbone.forward`."""
        x = self.stem(image)
        maps = {}
        for stride, stage in zip(self._strides, self.blocks, strict=True):
            x = stage(x)
            maps[stride] = x
        return {stride: maps[stride] for stride in self.channels}


class _Block(nn.Module):
    """Inverted residual: expand 1x1, depthwise, project 1x1 without activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        expansion: int,
        stride: int,
        dilation: int,
        is_residual: bool,
    ) -> None:
        super().__init__()
        self._is_expanded, self._is_residual = expansion != 1, is_residual
        inner = expansion * inputs
        if self._is_expanded:
            self._expand_conv = nn.Conv2d(inputs, inner, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inner, eps=_EPSILON)
        padding = dilation * (kernel - 1) // 2
        self._depthwise_conv = nn.Conv2d(
            inner, inner, kernel, stride, padding, dilation, groups=inner, bias=False
        )
        self._bn1 = nn.BatchNorm2d(inner, eps=_EPSILON)
        self._project_conv = nn.Conv2d(inner, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self._is_expanded:
            y = F.relu6(self._bn0(self._expand_conv(y)))
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self._is_residual else y  # type: ignore[no-any-return]


def _published(channels: int, factor: float) -> int:
    """Round scaled channels to a multiple of 8 that is at least 90 % of them."""
    scaled = channels * factor
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded
