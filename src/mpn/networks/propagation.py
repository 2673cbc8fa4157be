"""Propagation network: a backbone and a head of semantic segmentation.

The default, DeepLab v3+ with Aligned Xception, has the layers and state-dict keys of the public
jfzhang95/pytorch-deeplab-xception at 9135e10 (``backbone.``, ``aspp.``, ``decoder.``) with a fourth
input channel, so that its checkpoints load without conversion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpn._common.validation import check_int, check_number
from mpn.errors import CheckpointError, InputError, MpnError
from mpn.networks.backbones import (
    BACKBONE_TITLES,
    BACKBONES,
    FIRST_LAYERS,
    BackboneName,
    build_backbone,
    check_backbone,
)
from mpn.networks.heads import Aspp, AsppL, Decoder, PyramidPooling

HeadName = Literal["deeplab-v3+", "deeplab-v2", "pspnet"]
HEADS: tuple[HeadName, ...] = get_args(HeadName)

COLOUR_CHANNELS = 3
_PRIOR_GAINS: Mapping[int, tuple[float, ...]] = {4: (4.0,), 5: (3.0, 1.0)}
"""Initial gains by input channels. At 4, p = 1 becomes 0.98, and outlines blurred by warping become
twice as steep."""


@dataclass(frozen=True)
class PropagationConfig:
    """Shape of the network; the defaults are the paper's size.

    Attributes:
        in_channels: 4 for RGB and the warped probability, 5 with the score of a target model.
        classes: 2 for background and foreground.
        output_stride: 16 or 8, input size over the size of the deepest features; also 32 for
            EfficientNet-Lite and ResNet.
        residual_relu: Of Xception: start the shortcut of blocks 3..20 from relu(x), as in weights
            of the public code, whose first ReLU works in place; False starts it from x.
        width: Multiplier of the backbone's channels.
        head_width: Multiplier of the head's channels.
        middle_blocks: Of Xception: number of middle-flow blocks (block4 and on).
        dropout: Whether the head has dropout in training.
        prior_skip: Add gain * (2 p - 1), where p is the warped probability, to the foreground's
            margin over the background, and likewise for the score. The network then learns
            corrections of p, so outlines finer than its features (a quarter of the crop's size) are
            kept. Not in the public layout.
        backbone: One of :data:`mpn.networks.backbones.BACKBONES`.
        head: One of :data:`HEADS`.
    """

    in_channels: int = 4
    classes: int = 2
    output_stride: int = 16
    residual_relu: bool = True
    width: float = 1.0
    head_width: float = 1.0
    middle_blocks: int = 16
    dropout: bool = True
    prior_skip: bool = False
    backbone: BackboneName = "xception"
    head: HeadName = "deeplab-v3+"

    def __post_init__(self) -> None:
        check_backbone(self.backbone, self.output_stride)
        if self.head not in HEADS:
            raise InputError(f"unknown head '{self.head}': there are {', '.join(HEADS)}")
        for name in ("width", "head_width"):
            check_number(name, getattr(self, name), above=0, most=4, error=MpnError)
        check_int("middle_blocks", self.middle_blocks, least=1, most=16, error=MpnError)
        if self.prior_skip and (self.in_channels not in _PRIOR_GAINS or self.classes != 2):
            raise MpnError(
                "prior_skip needs 4 or 5 input channels and 2 classes, got "
                f"{self.in_channels} and {self.classes}"
            )


_HEAD_NAMES: Mapping[HeadName, str] = {
    "deeplab-v3+": "DeepLabV3Plus",
    "deeplab-v2": "DeepLabV2",
    "pspnet": "PspNet",
}


def propagation_variant(config: Mapping[str, Any]) -> str:
    """Name the network of a config, as ``"EfficientNetLite0-DeepLabV3Plus"``.

    DeepLab v3+ with Xception keeps the name ``"DeepLabXception"`` of files before version 0.3.
    """
    backbone, head = config.get("backbone", "xception"), config.get("head", "deeplab-v3+")
    if (backbone, head) == ("xception", "deeplab-v3+"):
        return "DeepLabXception"
    return f"{BACKBONE_TITLES.get(backbone, backbone)}-{_HEAD_NAMES.get(head, head)}"


PROPAGATION_VARIANTS: tuple[str, ...] = tuple(
    propagation_variant({"backbone": backbone, "head": head})
    for backbone in BACKBONES
    for head in HEADS
)


class PropagationNet(nn.Module):
    """Propagation network.

    Args:
        config: Shape of the network.
    """

    def __init__(self, config: PropagationConfig | None = None) -> None:
        super().__init__()
        self.config = config = PropagationConfig() if config is None else config
        self.backbone = build_backbone(
            config.backbone,
            in_channels=config.in_channels,
            output_stride=config.output_stride,
            width=config.width,
            middle_blocks=config.middle_blocks,
            residual_relu=config.residual_relu,
        )
        channels, stride = self.backbone.channels, config.output_stride
        width, dropout = config.head_width, config.dropout
        if config.head == "deeplab-v3+":  # without a common prefix, as in the public layout
            self.aspp = Aspp(channels[stride], stride, width, dropout)
            self.decoder = Decoder(channels[4], config.classes, width, dropout)
        elif config.head == "deeplab-v2":
            self.head: AsppL | PyramidPooling = AsppL(channels[stride], config.classes, stride)
        else:
            self.head = PyramidPooling(channels[stride], config.classes, width, dropout)
        if config.prior_skip:
            self.prior_gain = nn.Parameter(torch.tensor(_PRIOR_GAINS[config.in_channels]))

    @property
    def float32_layers(self) -> tuple[str, ...]:
        """Names of the layers that stay float32 in half precision.

        They make the logits, which are interpolated and enter the softmax unrounded.
        """
        if self.config.head == "deeplab-v3+":
            return (HEAD_LAYER.removesuffix(".weight"),)
        return tuple(f"head.{name}" for name in self.head.float32_layers)

    def forward(self, rgb_prob: Tensor) -> Tensor:
        """Compute the logits of background and foreground.

        Args:
            rgb_prob: (B, in_channels, H, W): RGB / 255 normalised by mean (.485, .456, .406) and
                std (.229, .224, .225), then the warped probability 0..1, then, at 5 channels, the
                score of the target model 0..1. Sizes of 16 n + 1 are best, because the
                interpolations align corners.

        Returns:
            (B, classes, H, W) logits.
        """
        logits = _enlarged(self._small_logits(rgb_prob), rgb_prob)
        if self.config.prior_skip:
            half_margin = self._half_margin(rgb_prob)
            logits = logits + torch.cat((-half_margin, half_margin), dim=1)
        return logits

    def margin(self, rgb_prob: Tensor) -> Tensor:
        """Compute the logit of the foreground minus that of the background.

        It is that of :meth:`forward` up to rounding, in less time: one channel is interpolated.

        Args:
            rgb_prob: See :meth:`forward`.

        Returns:
            (B, 1, H, W) float32.
        """
        logits = self._small_logits(rgb_prob).float()
        small = logits[:, FOREGROUND : FOREGROUND + 1] - logits[:, :FOREGROUND]
        margin = _enlarged(small, rgb_prob)
        if self.config.prior_skip:
            margin = margin + 2 * self._half_margin(rgb_prob)
        return margin

    def _small_logits(self, rgb_prob: Tensor) -> Tensor:
        maps = self.backbone(rgb_prob)
        deep = maps[self.config.output_stride]
        if self.config.head == "deeplab-v3+":
            return cast(Tensor, self.decoder(self.aspp(deep), maps[4]))
        return cast(Tensor, self.head(deep))

    def _half_margin(self, rgb_prob: Tensor) -> Tensor:
        """Return half of the margin that the warped probability and the score add.

        The gain is expanded, not reshaped: the exporter would replace its reshaped copy by a new
        constant, which fine-tuning could not exchange. With the channels in the last axis,
        onnxruntime multiplies twenty times slower.
        """
        gain = self.prior_gain.expand(rgb_prob.shape[0], -1)[:, :, None, None]
        centred = rgb_prob[:, COLOUR_CHANNELS:].float() - 0.5
        return (centred * gain.float()).sum(dim=1, keepdim=True)


def _enlarged(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, size=like.shape[2:], mode="bilinear", align_corners=True)


FourthChannel = Literal["zero", "mean", "normal"]
FOURTH_CHANNELS: tuple[FourthChannel, ...] = get_args(FourthChannel)

FOREGROUND = 1
"""Channel of the foreground in the two logits."""

HEAD_LAYER = "decoder.last_conv.8.weight"
_NORMAL_STD = 1e-4
"""As in omkar13/MaskTrack at 9e5153e, which appends normal_(0, 0.0001) to its first layer."""


def first_layer(backbone: BackboneName) -> str:
    """Return the key of the first convolution of a network with this backbone."""
    return f"backbone.{FIRST_LAYERS[backbone]}"


def check_fourth_channel(how: str) -> None:
    """Raise InputError unless ``how`` is a known initialisation."""
    if how not in FOURTH_CHANNELS:
        raise InputError(
            f"unknown initialisation '{how}' of the fourth channel: there are "
            f"{', '.join(FOURTH_CHANNELS)}"
        )


def with_more_channels(
    state_dict: Mapping[str, Tensor], layer: str, channels: int, how: str
) -> dict[str, Tensor]:
    """Append input channels, for the warped probability and the score.

    Args:
        state_dict: State dict of a network with fewer input channels.
        layer: Key of its first convolution.
        channels: Number of input channels to reach.
        how: ``"zero"``: the network ignores the new channels until it is trained. ``"mean"``: each
            acts as a grey image added to the colours. ``"normal"``: small seeded noise.

    Returns:
        The state dict; unchanged if it has the channels already. A ``prior_gain`` gets zeros.

    Raises:
        InputError: If ``how`` is unknown.
        CheckpointError: If the layer has less than three input channels, or too many.
    """
    check_fourth_channel(how)
    given = state_dict.get(layer)
    if given is None or given.ndim != 4 or not COLOUR_CHANNELS <= given.shape[1] <= channels:
        shape = None if given is None else tuple(given.shape)
        raise CheckpointError(
            f"'{layer}' must have {COLOUR_CHANNELS} to {channels} input channels, got {shape}"
        )
    missing = channels - given.shape[1]
    shape = (given.shape[0], missing, *given.shape[2:])
    if how == "zero":
        new = torch.zeros(shape)
    elif how == "mean":
        new = given[:, :COLOUR_CHANNELS].mean(dim=1, keepdim=True).expand(shape)
    else:
        generator = torch.Generator().manual_seed(0)
        new = _NORMAL_STD * torch.randn(shape, generator=generator)
    widened = {**state_dict, layer: torch.cat((given, new.to(given.dtype)), dim=1)}
    if "prior_gain" in state_dict:
        gain = state_dict["prior_gain"]
        zeros = gain.new_zeros(channels - COLOUR_CHANNELS - gain.shape[0])
        widened["prior_gain"] = torch.cat((gain, zeros))
    return widened
