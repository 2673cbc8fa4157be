"""Fourth input channel for DeepLab weights with three."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from mpn.errors import CheckpointError, InputError

FourthChannel = Literal["zero", "mean", "normal"]
FOURTH_CHANNELS: tuple[FourthChannel, ...] = get_args(FourthChannel)

FIRST_LAYER = "backbone.conv1.weight"
HEAD_LAYER = "decoder.last_conv.8.weight"
_NORMAL_STD = 1e-4
"""As in omkar13/MaskTrack at 9e5153e, which appends normal_(0, 0.0001) to its first layer."""


def check_fourth_channel(how: str) -> None:
    """Raise InputError unless ``how`` is a known initialisation."""
    if how not in FOURTH_CHANNELS:
        raise InputError(
            f"unknown initialisation '{how}' of the fourth channel: there are "
            f"{', '.join(FOURTH_CHANNELS)}"
        )


def with_fourth_channel(state_dict: Mapping[str, Tensor], how: str) -> dict[str, Tensor]:
    """Append a fourth input channel, for the warped probability.

    Args:
        state_dict: State dict of a DeepLab Xception with three input channels.
        how: ``"zero"``: the network ignores the new channel until it is trained. ``"mean"``: the
            channel acts as a grey image added to the colours. ``"normal"``: small seeded noise.

    Raises:
        InputError: If ``how`` is unknown.
        CheckpointError: If the first layer does not have three input channels.
    """
    check_fourth_channel(how)
    colours = state_dict.get(FIRST_LAYER)
    if colours is None or colours.ndim != 4 or colours.shape[1] != 3:
        shape = None if colours is None else tuple(colours.shape)
        raise CheckpointError(f"'{FIRST_LAYER}' must be (C, 3, 3, 3) to be extended, got {shape}")
    if how == "zero":
        fourth = torch.zeros_like(colours[:, :1])
    elif how == "mean":
        fourth = colours.mean(dim=1, keepdim=True)
    else:
        generator = torch.Generator().manual_seed(0)
        fourth = _NORMAL_STD * torch.randn(colours[:, :1].shape, generator=generator)
    return {**state_dict, FIRST_LAYER: torch.cat((colours, fourth.to(colours.dtype)), dim=1)}
