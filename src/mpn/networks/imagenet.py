"""ImageNet-trained trunks as weights to start training from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mpn.errors import CheckpointError
from mpn.networks.deeplab import FIRST_LAYER, FourthChannel, with_fourth_channel
from mpn.networks.osvos import STAGE_CHANNELS

ImageNetTrunk = Literal["vgg16", "xception"]

_IMAGENET_MEAN_RGB = (0.485, 0.456, 0.406)

_IMAGENET_STD_RGB = (0.229, 0.224, 0.225)
"""Normalisation of torchvision's models and of our propagation network."""

_OSVOS_MEAN_BGR = (104.00699, 116.66877, 122.67892)

_VGG_FIRST = "features.0"

_XCEPTION_BLOCKS = 19
"""Last middle block; block12 of the original Xception is block20 of the aligned one."""


def imagenet_trunk(state: Mapping[str, Tensor]) -> ImageNetTrunk | None:
    """Recognise the ImageNet network of a state dict; None for any other."""
    if f"{_VGG_FIRST}.weight" in state and "features.28.weight" in state:
        return "vgg16"
    if "block12.rep.1.conv1.weight" in state and "conv4.pointwise.weight" in state:
        return "xception"
    return None


def vgg16_stages(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert torchvision's VGG16 to OSVOS's trunk, the keys ``stages.``.

    Args:
        state: Its state dict.

    Returns:
        Weights for images in BGR, 0..255 minus OSVOS's mean.

    Raises:
        CheckpointError: If it is no VGG16 without batch normalisation.
    """
    out: dict[str, Tensor] = {}
    index = 0
    for number, channels in enumerate(STAGE_CHANNELS):
        for layer, count in enumerate(channels):
            for kind in ("weight", "bias"):
                value = state.get(f"features.{index}.{kind}")
                if value is None or value.shape[0] != count:
                    found = None if value is None else tuple(value.shape)
                    raise CheckpointError(
                        f"'features.{index}.{kind}' of a VGG16 must have {count} channels, got "
                        f"{found}: take torchvision's vgg16, not vgg16_bn or another"
                    )
                out[f"stages.{number}.{2 * layer + (number > 0)}.{kind}"] = value.float()
            index += 2
        index += 1  # the pooling
    weight, bias = out["stages.0.0.weight"], out["stages.0.0.bias"]
    # w . ((v/255 - mean) / std) + b, as a function of v - osvos_mean.
    scaled = weight / (255 * torch.tensor(_IMAGENET_STD_RGB)[:, None, None])
    mean = 255 * torch.tensor(_IMAGENET_MEAN_RGB)
    offset = torch.tensor(_OSVOS_MEAN_BGR[::-1]) - mean
    out["stages.0.0.bias"] = bias + (scaled.sum(dim=(2, 3)) * offset).sum(dim=1)
    out["stages.0.0.weight"] = scaled.flip(1).contiguous()
    return out


def xception_backbone(state: Mapping[str, Tensor], fourth: FourthChannel) -> dict[str, Tensor]:
    """Convert Xception to DeepLab's backbone of width 1 with 16 middle blocks.

    Its eight middle blocks become the first eight, and the last of them all others, as in
    jfzhang95/pytorch-deeplab-xception. The result lacks the layers that Xception does not have: the
    third layers of the entry's blocks, conv4, and the normalisations inside separable layers.

    Args:
        state: Cadene's state dict.
        fourth: Initialisation of the channel of the warped probability.

    Raises:
        CheckpointError: If a layer does not have Xception's shape.
    """
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part in ("fc", "last_linear"):
            continue
        if part == "block2":
            # Xception starts it with a ReLU. The aligned one does not: its input has one already.
            _, index, inner = rest.split(".", 2) if rest.startswith("rep.") else ("", "", "")
            rest = f"rep.{int(index) - 1}.{inner}" if index else rest
        if rest.endswith("pointwise.weight") and value.ndim == 2:
            value = value[:, :, None, None]
        for target in _targets(part):
            out[f"backbone.{target}.{rest}"] = value.float()
    first = out.get(FIRST_LAYER)
    if first is None or tuple(first.shape) != (32, 3, 3, 3):
        found = None if first is None else tuple(first.shape)
        raise CheckpointError(f"'conv1.weight' of an Xception must be (32, 3, 3, 3), got {found}")
    # Xception's input is 2 v - 1, that of our network x = (v - mean) / std: v = std x + mean.
    std, mean = (torch.tensor(c) for c in (_IMAGENET_STD_RGB, _IMAGENET_MEAN_RGB))
    offset = (first.sum(dim=(2, 3)) * (2 * mean - 1)).sum(dim=1)
    out[FIRST_LAYER] = first * (2 * std)[:, None, None]
    norm = "backbone.bn1.running_mean"
    out[norm] = out[norm] - offset
    return with_fourth_channel(out, fourth)


def _targets(part: str) -> tuple[str, ...]:
    if part == "block11":
        return tuple(f"block{number}" for number in range(11, _XCEPTION_BLOCKS + 1))
    moved = {"block12": ("block20",), "bn3": ("bn3", "bn4"), "conv4": ("conv5",), "bn4": ("bn5",)}
    return moved.get(part, (part,))
