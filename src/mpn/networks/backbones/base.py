"""Interface of backbones: image to feature maps at named strides."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn


class Backbone(nn.Module):
    """Trunk of a segmentation network.

    Attributes:
        channels: Stride -> number of channels of its map, from fine to coarse. A stride is the size
            of the input over that of the map.
    """

    channels: Mapping[int, int]

    @abstractmethod
    def forward(self, image: Tensor) -> dict[int, Tensor]:
        """Compute one map per stride of ``channels``.

        Args:
            image: (B, in_channels, H, W). At sides of stride n + 1 the maps have sides of n + 1
                and their outer samples lie on the image's corners.

        Returns:
            Stride -> (B, channels[stride], ceil(H / stride), ceil(W / stride)).
        """
