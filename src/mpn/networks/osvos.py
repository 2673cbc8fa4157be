"""OSVOS: a VGG16 trunk with side branches, fused at full resolution.

One class has two forms. The public one (S. Caelles et al., "One-Shot Video Object Segmentation",
CVPR 2017; state-dict keys of OSVOS-PyTorch) has four side branches, from the second stage on,
upsampled by fixed bilinear transposed convolutions. The modified one of the Mask Propagation
Network paper has a branch from every map before a pooling, including conv1_2, and resizes.
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
        branches: 5: from every map before a pooling; 4: all except the first, as in the public
            form.
        upsample: ``"resize"``: bilinear, half-pixel centres. ``"deconv_center_crop"``: as in the
            public network, for weights trained with it. It fades to zero at the borders and, at
            widths not divisible by 16, shifts the coarse maps by up to 5 px.
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
                f"unknown upsampling '{self.upsample}': there are {', '.join(UPSAMPLES)}"
            )
        check_width(self.width)


class OsvosVgg(nn.Module):
    """One-shot video object segmentation network.

    Accepts any size: pooling rounds up, and upsampled maps are cropped to the image.

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
        """First stage with a side branch."""
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
        """Compute the logits of every side branch and of their fusion.

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
        """Compute the fused logits alone, for inference.

        Args:
            image: See :meth:`forward`.

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
            # Resize by the exact power of two, then crop: pooling rounds up at the right and the
            # bottom, so resizing directly to the image's size would stretch odd-sized maps.
            scale = float(2**halvings)
            values = F.interpolate(values, scale_factor=scale, mode="bilinear", align_corners=False)
            return values[..., :height, :width]
        layers = self.upscale if values.shape[1] > 1 else self.upscale_
        values = run_layer(layers[branch], values)
        # TensorRT's parser refuses a negative Pad (onnx-tensorrt#847), so use a slice.
        top, left = (values.shape[2] - height) // 2, (values.shape[3] - width) // 2
        return values[..., top : top + height, left : left + width]


def _stage(inputs: int, outputs: Sequence[int], *, pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.MaxPool2d(2, 2, ceil_mode=True)] if pool else []
    for channels in outputs:
        layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU()]
        inputs = channels
    return nn.Sequential(*layers)


def _bilinear_deconv(channels: int, halvings: int) -> nn.Module:
    """Build the fixed upsampling of each channel by 2**halvings.

    It is the identity for no halving.
    """
    if halvings == 0:
        return nn.Identity()
    stride = 2**halvings
    layer = nn.ConvTranspose2d(channels, channels, 2 * stride, stride, bias=False)
    taps = 1 - (torch.arange(2 * stride) - (stride - 0.5)).abs() / stride
    kernel = torch.eye(channels)[:, :, None, None] * (taps[:, None] * taps)
    layer.weight = nn.Parameter(kernel, requires_grad=False)
    return layer


TRUNK_FACTOR = 1 / 64
"""Factor that keeps activations of 0..255 images far below 65504 in 13 unnormalised layers."""

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
    """Multiply every trunk activation by ``factor`` without changing the output.

    Convolution, ReLU and max pooling are positively homogeneous: the first convolution's weights
    and all trunk biases times ``factor`` scale every map by it, and the side branches' weights over
    ``factor`` undo that. A power of two does not change any rounding, so the outputs are
    bit-identical in float32.

    Args:
        weights: A network, or its state dict; not changed.
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
    """Convert the public four-branch weights to the five-branch form.

    Branch k becomes branch k + 1. The new branch 0 reads conv1_2 with small seeded random weights
    and enters the fusion with zero weight. So the fused logits do not change (except by the kind of
    upsampling), and the branch can be trained.

    Args:
        state_dict: State dict of a network with four branches.
        upsample: Upsampling of the new network; ``"resize"`` has no kernels.

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
