"""OSVOS: a VGG16 trunk whose feature maps before pooling vote for the object at full resolution.

Two forms of one class. The public one (S. Caelles et al., "One-Shot Video Object Segmentation",
CVPR 2017; state-dict keys of OSVOS-PyTorch) has four side branches, from the second stage on,
upsampled by fixed bilinear transposed convolutions. The modified one of the Mask Propagation
Network paper has a branch from every map before a pooling, conv1_2 too, and resizes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpn.errors import CheckpointError, InputError
from mpn.networks.layers import check_width, run_layer, scaled_channels

Upsample = Literal["deconv_center_crop", "resize"]
UPSAMPLES: tuple[Upsample, ...] = get_args(Upsample)

STAGE_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SIDE_CHANNELS = 16


@dataclass(frozen=True)
class OsvosConfig:
    """Shape of the network; the defaults are the paper's modified form.

    Attributes:
        branches: 5: from every map before a pooling; 4: all but the first, as in the public one.
        upsample: ``"resize"``: bilinear, half-pixel centres. ``"deconv_center_crop"``: as the
            public network does it, which fades to zero at the borders and, at widths that 16 does
            not divide, shifts the coarse maps by up to 5 px: for weights trained with it.
        width: Multiplier of the channels.
    """

    branches: int = 5
    upsample: Upsample = "resize"
    width: float = 1.0

    def __post_init__(self) -> None:
        if self.branches not in (4, 5):
            raise InputError(f"OSVOS has 4 or 5 side branches, got {self.branches}")
        if self.upsample not in UPSAMPLES:
            raise InputError(
                f"unknown upsampling '{self.upsample}': the ways are {', '.join(UPSAMPLES)}"
            )
        check_width(self.width)


class OsvosVgg(nn.Module):
    """One-shot video object segmentation.

    Any size works: pooling rounds up, and what is upsampled is cropped to the image.

    Args:
        config: Shape of the network.
    """

    def __init__(self, config: OsvosConfig | None = None) -> None:
        super().__init__()
        self.config = config = OsvosConfig() if config is None else config

        def ch(channels: int) -> int:
            return scaled_channels(channels, config.width)

        self.stages = nn.ModuleList()
        inputs = 3
        for number, channels in enumerate(STAGE_CHANNELS):
            self.stages.append(_stage(inputs, [ch(c) for c in channels], pool=number > 0))
            inputs = ch(channels[-1])
        self.first_stage = len(STAGE_CHANNELS) - config.branches
        """The first stage with a side branch."""
        side = ch(SIDE_CHANNELS)
        self.side_prep = nn.ModuleList()
        self.score_dsn = nn.ModuleList()
        for channels in STAGE_CHANNELS[self.first_stage :]:
            self.side_prep.append(nn.Conv2d(ch(channels[-1]), side, 3, padding=1))
            self.score_dsn.append(nn.Conv2d(side, 1, 1))
        if config.upsample == "deconv_center_crop":
            halvings = range(self.first_stage, len(STAGE_CHANNELS))
            self.upscale = nn.ModuleList(_bilinear_deconv(side, n) for n in halvings)
            self.upscale_ = nn.ModuleList(_bilinear_deconv(1, n) for n in halvings)
        self.fuse = nn.Conv2d(side * config.branches, 1, 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits of every side branch and of their fusion, for supervision at all scales.

        Args:
            image: (B, 3, H, W) BGR, 0..255 minus (104.00699, 116.66877, 122.67892).

        Returns:
            ``branches`` + 1 logits, (B, 1, H, W) each, from fine to coarse, then the fused ones.
        """
        sides = self._sides(image)
        scored = [run_layer(score, side) for score, side in zip(self.score_dsn, sides, strict=True)]
        size_hw = (image.shape[2], image.shape[3])
        logits = [self._upsampled(k, score, size_hw) for k, score in enumerate(scored)]
        return [*logits, self._fused(sides, size_hw)]

    def logits(self, image: Tensor) -> Tensor:
        """The fused logits alone, which is what inference uses.

        Args:
            image: As in :meth:`forward`.

        Returns:
            (B, 1, H, W) logits.
        """
        return self._fused(self._sides(image), (image.shape[2], image.shape[3]))

    def _sides(self, image: Tensor) -> list[Tensor]:
        features, sides = image, []
        for number, stage in enumerate(self.stages):
            features = run_layer(stage, features)
            if number >= self.first_stage:
                sides.append(run_layer(self.side_prep[number - self.first_stage], features))
        return sides

    def _fused(self, sides: Sequence[Tensor], size_hw: tuple[int, int]) -> Tensor:
        upsampled = [self._upsampled(k, side, size_hw) for k, side in enumerate(sides)]
        return run_layer(self.fuse, torch.cat(upsampled, dim=1))

    def _upsampled(self, branch: int, values: Tensor, size_hw: tuple[int, int]) -> Tensor:
        halvings = branch + self.first_stage
        height, width = size_hw
        if halvings == 0:
            return values
        if self.config.upsample == "resize":
            # By the exact power of two, then cropped: pooling rounds up at the right and the
            # bottom, so resizing straight to the image's size would stretch odd-sized maps.
            scale = float(2**halvings)
            values = F.interpolate(values, scale_factor=scale, mode="bilinear", align_corners=False)
            return values[..., :height, :width]
        layers = self.upscale if values.shape[1] > 1 else self.upscale_
        values = run_layer(layers[branch], values)
        # A slice, not a negative Pad, which TensorRT's parser refuses (onnx-tensorrt#847).
        top, left = (values.shape[2] - height) // 2, (values.shape[3] - width) // 2
        return values[..., top : top + height, left : left + width]


def _stage(inputs: int, outputs: Sequence[int], *, pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.MaxPool2d(2, 2, ceil_mode=True)] if pool else []
    for channels in outputs:
        layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU()]
        inputs = channels
    return nn.Sequential(*layers)


def _bilinear_deconv(channels: int, halvings: int) -> nn.Module:
    """Each channel by itself times 2**halvings; never trained. Nothing to do for no halving."""
    if halvings == 0:
        return nn.Identity()
    stride = 2**halvings
    layer = nn.ConvTranspose2d(channels, channels, 2 * stride, stride, bias=False)
    taps = 1 - (torch.arange(2 * stride) - (stride - 0.5)).abs() / stride
    kernel = torch.eye(channels)[:, :, None, None] * (taps[:, None] * taps)
    layer.weight = nn.Parameter(kernel, requires_grad=False)
    return layer


TRUNK_FACTOR = 1 / 64
"""Brings activations of 0..255 images, unnormalised through 13 layers, well under 65504."""

_NEW_BRANCH_STD = 0.01
_PUBLIC_BRANCHES = 4
_FIXED_KERNELS = ("upscale.", "upscale_.")


@overload
def rescale_trunk(weights: OsvosVgg, factor: float = TRUNK_FACTOR) -> OsvosVgg: ...


@overload
def rescale_trunk(
    weights: Mapping[str, Tensor], factor: float = TRUNK_FACTOR
) -> dict[str, Tensor]: ...


def rescale_trunk(
    weights: OsvosVgg | Mapping[str, Tensor], factor: float = TRUNK_FACTOR
) -> OsvosVgg | dict[str, Tensor]:
    """The same network with every trunk activation multiplied by ``factor``.

    Convolution, ReLU and max pooling are positively homogeneous: the first convolution's weights
    and all trunk biases times ``factor`` scale every map by it, and the side branches' weights
    over ``factor`` undo that. A power of two changes no rounding, so the outputs are equal to the
    last bit in float32.

    Args:
        weights: A network, or its state dict; left as it is.
        factor: A power of two.

    Returns:
        A new network, or a new state dict, as given.

    Raises:
        InputError: If ``factor`` is not a positive power of two.
    """
    if not (0 < factor < math.inf and math.frexp(factor)[0] == 0.5):
        raise InputError(f"the trunk's factor must be a power of two such as 1/64, got {factor}")
    if isinstance(weights, OsvosVgg):
        network = copy.deepcopy(weights)
        network.load_state_dict(rescale_trunk(weights.state_dict(), factor), strict=True)
        return network
    rescaled = {}
    for key, value in weights.items():
        if key == "stages.0.0.weight" or (key.startswith("stages.") and key.endswith(".bias")):
            rescaled[key] = value * factor
        elif key.startswith("side_prep.") and key.endswith(".weight"):
            rescaled[key] = value / factor
        else:
            rescaled[key] = value.clone()
    return rescaled


def five_branch_from_four(
    state_dict: Mapping[str, Tensor], *, upsample: Upsample = "resize"
) -> dict[str, Tensor]:
    """Weights of the modified form that start from the public form's.

    Branch k becomes branch k + 1. The new branch 0 sees conv1_2 with small seeded random weights
    and enters the fusion with zero weight: the fused logits are the old ones (but for the way of
    upsampling), and the branch can learn.

    Args:
        state_dict: Of a network with four branches.
        upsample: Way of upsampling of the new network; ``"resize"`` has no kernels.

    Returns:
        A state dict for ``OsvosVgg(OsvosConfig(branches=5, upsample=upsample))`` of that width.

    Raises:
        CheckpointError: If ``state_dict`` is not of a network with four branches.
    """
    last, surplus = f"side_prep.{_PUBLIC_BRANCHES - 1}.weight", f"side_prep.{_PUBLIC_BRANCHES}"
    if last not in state_dict or f"{surplus}.weight" in state_dict:
        raise CheckpointError(
            f"expected the weights of an OSVOS with {_PUBLIC_BRANCHES} side branches "
            f"('{last}' and no '{surplus}.weight'): give the public parent network"
        )
    converted: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        name, _, rest = key.partition(".")
        if key.startswith(_FIXED_KERNELS):
            if upsample == "resize":
                continue
        elif name not in ("side_prep", "score_dsn"):
            converted[key] = value.clone()
            continue
        index, _, leaf = rest.partition(".")
        converted[f"{name}.{int(index) + 1}.{leaf}"] = value.clone()
    side = state_dict["side_prep.0.weight"].shape[0]
    features = state_dict["stages.0.2.weight"].shape[0]
    generator = torch.Generator().manual_seed(0)

    def small(*shape: int) -> Tensor:
        return _NEW_BRANCH_STD * torch.randn(shape, generator=generator)

    converted["side_prep.0.weight"] = small(side, features, 3, 3)
    converted["side_prep.0.bias"] = torch.zeros(side)
    converted["score_dsn.0.weight"] = small(1, side, 1, 1)
    converted["score_dsn.0.bias"] = torch.zeros(1)
    fuse = state_dict["fuse.weight"]
    converted["fuse.weight"] = torch.cat((fuse.new_zeros((1, side, 1, 1)), fuse), dim=1)
    return converted
