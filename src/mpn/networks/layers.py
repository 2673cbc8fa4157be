"""Channel counts and mixed-dtype layers of the width-scaled networks."""

from __future__ import annotations

from torch import Tensor, nn

from mpn._common.validation import check_number

CHANNEL_STEP = 8
"""Divisor of scaled counts: half-precision tensor cores use groups of 8 channels."""

MAX_WIDTH = 4.0


def scaled_channels(channels: int, width: float) -> int:
    """Scale a channel count to a multiple of 8, at least 8; exact at width 1."""
    if width == 1.0:
        return channels
    return max(CHANNEL_STEP, round(channels * width / CHANNEL_STEP) * CHANNEL_STEP)


def check_width(width: float) -> None:
    """Raise InputError unless ``width`` is a multiplier in (0, 4]."""
    check_number("width", width, above=0, most=MAX_WIDTH)


def run_layer(layer: nn.Module, x: Tensor) -> Tensor:
    """Run a layer on ``x`` cast to the dtype of the layer's weights.

    In a module of one dtype the cast does nothing, in eager mode and in an exported graph. If some
    layers are half and some float32, the dtype changes at these casts.

    Args:
        layer: A layer, or several in sequence of one dtype, with at least one parameter.
        x: Its input, of any floating-point dtype.
    """
    result: Tensor = layer(x.to(next(layer.parameters()).dtype))
    return result
