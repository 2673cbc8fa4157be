"""Decode masks in COCO's run-length encoding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpn.types import BoolArray

_FIVE_BITS = 0x1F
_SIGN = 0x10
_MORE = 0x20
_FIRST_CHARACTER = 48
_DIFFERENCE_FROM = 3


def mask_from_counts(counts: Sequence[int], size_hw: tuple[int, int]) -> BoolArray:
    """Return the (H, W) bool mask of run lengths; inverts ``counts_from_mask``.

    Raises:
        ValueError: If the counts do not sum to the size.
    """
    height, width = size_hw
    if sum(counts) != height * width or any(count < 0 for count in counts):
        raise ValueError(f"counts of a {height}x{width} mask must sum to {height * width}")
    values = np.arange(len(counts)) % 2 == 1
    pixels: BoolArray = np.repeat(values, counts).reshape(width, height).T
    return pixels


def counts_from_string(text: str) -> list[int]:
    """Return the run lengths of a string; inverts ``string_from_counts``.

    Raises:
        ValueError: If the text ends within a number.
    """
    counts: list[int] = []
    value = bits = 0
    for character in text:
        group = ord(character) - _FIRST_CHARACTER
        value |= (group & _FIVE_BITS) << bits
        bits += 5
        if group & _MORE:
            continue
        if group & _SIGN:
            value -= 1 << bits
        counts.append(value + counts[-2] if len(counts) >= _DIFFERENCE_FROM else value)
        value = bits = 0
    if bits:
        raise ValueError("compressed counts end within a number")
    return counts
