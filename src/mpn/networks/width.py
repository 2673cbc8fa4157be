"""Channel counts of the width-scaled networks."""

from __future__ import annotations

from mpn.errors import InputError

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
    if not 0 < width <= MAX_WIDTH:
        raise InputError(f"width must be above 0 and at most {MAX_WIDTH:g}, got {width}")
