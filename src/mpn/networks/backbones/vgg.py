"""VGG16 up to its last convolution.

State-dict keys are those of torchvision (``features.``). Source of the architecture: K. Simonyan
and A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015;
of the dilated form: L.-C. Chen et al., "DeepLab", TPAMI 2018.
"""

from __future__ import annotations

from torch import Tensor, nn

from mpn.networks.backbones.base import Backbone
from mpn.networks.layers import scaled_channels
from mpn.networks.osvos import STAGE_CHANNELS


class Vgg16(Backbone):
    """VGG16 without its classifier and the pooling before it.

    Args:
        in_channels: Channels of the image.
        output_stride: 16, or 8 with a pooling of stride 1 and dilation in the last stage.
        width: Multiplier of the published channels.
    """

    def __init__(self, in_channels: int, output_stride: int = 16, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self._ends: dict[int, int] = {}
        inputs, stride, dilation = in_channels, 1, 1
        for number, stage in enumerate(STAGE_CHANNELS):
            if number > 0:
                if stride < output_stride:
                    layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
                    stride *= 2
                else:
                    layers.append(nn.MaxPool2d(3, 1, 1))
                    dilation = 2
            for channels in stage:
                outputs = scaled_channels(channels, width)
                layer = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
                # No normalisation: the default initialisation would shrink the signal to nothing.
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
                layers += [layer, nn.ReLU()]
                inputs = outputs
            self._ends[len(layers)] = stride
        self.features = nn.Sequential(*layers)
        self.channels = {
            stride: scaled_channels(stage[-1], width)
            for stride, stage in zip(self._ends.values(), STAGE_CHANNELS, strict=True)
            if stride >= 4
        }

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        """See :meth:`Backbone.forward`."""
        x, maps = image, {}
        for count, layer in enumerate(self.features, start=1):
            x = layer(x)
            if count in self._ends:
                maps[self._ends[count]] = x
        return {stride: maps[stride] for stride in self.channels}
