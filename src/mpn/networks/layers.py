"""What the width-scaled networks share: channel counts, and layers of different dtypes in a row."""

from __future__ import annotations

from torch import Tensor, nn

from mpn._common.validation import check_number

CHANNEL_STEP = 8
"""Scaled counts are multiples of 8: half-precision tensor cores work in groups of 8 channels."""

MAX_WIDTH = 4.0


def scaled_channels(channels: int, width: float) -> int:
    """Channels times width, rounded to a multiple of 8 and at least 8; exact at width 1."""
    if width == 1.0:
        return channels
    return max(CHANNEL_STEP, round(channels * width / CHANNEL_STEP) * CHANNEL_STEP)


def check_width(width: float) -> None:
    """Raise InputError unless ``width`` is a multiplier in (0, 4]."""
    check_number("width", width, above=0, most=MAX_WIDTH)


def run_layer(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)`` with ``x`` cast to the dtype of the layer's weights.

    In a module of one dtype that does nothing, in eager mode and in an exported graph alike. Where
    some layers are half and some stay float32, it puts the casts where the dtype changes.

    Args:
        layer: A layer, or several in sequence of one dtype, with at least one parameter.
        x: Any floating-point input of it.
    """
    result: Tensor = layer(x.to(next(layer.parameters()).dtype))
    return result
