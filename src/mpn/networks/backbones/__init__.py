"""Backbones by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from mpn.errors import InputError
from mpn.networks.backbones.base import Backbone
from mpn.networks.backbones.efficientnet import LITE_SIZES, EfficientNetLite
from mpn.networks.backbones.resnet import RESNET_BLOCKS, ResNet
from mpn.networks.backbones.vgg import Vgg16
from mpn.networks.backbones.xception import AlignedXception

__all__ = [
    "BACKBONES",
    "BACKBONE_TITLES",
    "FIRST_LAYERS",
    "OUTPUT_STRIDES",
    "Backbone",
    "BackboneName",
    "build_backbone",
    "check_backbone",
]

BackboneName = Literal[
    "xception", "efficientnet-lite0", "efficientnet-lite2", "resnet50", "resnet101", "vgg16"
]
BACKBONES: tuple[BackboneName, ...] = get_args(BackboneName)

BACKBONE_TITLES: Mapping[BackboneName, str] = {
    "xception": "Xception",
    "efficientnet-lite0": "EfficientNetLite0",
    "efficientnet-lite2": "EfficientNetLite2",
    "resnet50": "ResNet50",
    "resnet101": "ResNet101",
    "vgg16": "Vgg16",
}
"""Part of a backbone in the name of a network."""

FIRST_LAYERS: Mapping[BackboneName, str] = {
    "xception": "conv1.weight",
    "efficientnet-lite0": "stem.0.weight",
    "efficientnet-lite2": "stem.0.weight",
    "resnet50": "conv1.weight",
    "resnet101": "conv1.weight",
    "vgg16": "features.0.weight",
}
"""Key of the first convolution of each backbone."""

OUTPUT_STRIDES: Mapping[BackboneName, tuple[int, ...]] = {
    "xception": (8, 16),
    "efficientnet-lite0": (8, 16, 32),
    "efficientnet-lite2": (8, 16, 32),
    "resnet50": (8, 16, 32),
    "resnet101": (8, 16, 32),
    "vgg16": (8, 16),
}
"""Strides of the deepest map that each backbone can have."""


def check_backbone(name: str, output_stride: int) -> None:
    """Raise InputError unless there is such a backbone, and it can have the stride."""
    if name not in BACKBONES:
        raise InputError(f"unknown backbone '{name}': there are {', '.join(BACKBONES)}")
    strides = OUTPUT_STRIDES[name]
    if output_stride not in strides:
        known = ", ".join(map(str, strides))
        raise InputError(f"output_stride of {name} must be one of {known}, got {output_stride}")


def build_backbone(
    name: BackboneName,
    *,
    in_channels: int = 3,
    output_stride: int = 16,
    width: float = 1.0,
    middle_blocks: int = 16,
    residual_relu: bool = True,
) -> Backbone:
    """Build a backbone with random weights.

    Args:
        name: One of :data:`BACKBONES`.
        in_channels: Channels of the image.
        output_stride: Stride of the deepest map, one of ``OUTPUT_STRIDES[name]``.
        width: Multiplier of the channels; 1 is the published size.
        middle_blocks: Of Xception only; see :class:`AlignedXception`.
        residual_relu: Of Xception only; see :class:`AlignedXception`.

    Raises:
        InputError: If the name is unknown, or it cannot have the stride.
    """
    check_backbone(name, output_stride)
    if name == "xception":
        return AlignedXception(in_channels, output_stride, width, middle_blocks, residual_relu)
    if name in LITE_SIZES:
        return EfficientNetLite(name, in_channels, output_stride, width)
    if name in RESNET_BLOCKS:
        return ResNet(name, in_channels, output_stride, width)
    return Vgg16(in_channels, output_stride, width)
