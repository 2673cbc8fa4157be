"""Run-length encoding of masks as COCO stores them, so that common tools read the results.

Runs go down the columns, the first one counts zeros. COCO's compressed form writes each count as
base-48 characters of five bits, from the third on as the difference to the count before the last
(cocodataset/cocoapi, common/maskApi.h and the format of annotations with ``iscrowd`` = 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpn.types import BoolArray

_FIVE_BITS = 0x1F
_SIGN = 0x10
_MORE = 0x20
_FIRST_CHARACTER = 48
_DIFFERENCE_FROM = 3


def counts_from_mask(mask: BoolArray) -> list[int]:
    """Lengths of the runs of 0, 1, 0, 1, ... down the columns.

    Args:
        mask: (H, W) bool.

    Returns:
        Counts that sum to H * W; the first is 0 if the first pixel is set.
    """
    pixels = mask.T.ravel()
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts: list[int] = np.diff(changes, prepend=0, append=pixels.size).tolist()
    return [0, *counts] if pixels.size and pixels[0] else counts


def mask_from_counts(counts: Sequence[int], size_hw: tuple[int, int]) -> BoolArray:
    """The inverse of :func:`counts_from_mask`.

    Raises:
        ValueError: If the counts do not sum to the size.
    """
    height, width = size_hw
    if sum(counts) != height * width or any(count < 0 for count in counts):
        raise ValueError(f"counts of a {height}x{width} mask must sum to {height * width}")
    values = np.arange(len(counts)) % 2 == 1
    pixels: BoolArray = np.repeat(values, counts).reshape(width, height).T
    return pixels


def string_from_counts(counts: Sequence[int]) -> str:
    """COCO's compressed form of counts, ASCII."""
    characters = []
    for position, count in enumerate(counts):
        rest = count - counts[position - 2] if position >= _DIFFERENCE_FROM else count
        while True:
            group, rest = rest & _FIVE_BITS, rest >> 5
            # The last group's highest bit is the sign, as in two's complement.
            ends = rest == (-1 if group & _SIGN else 0)
            characters.append(chr(_FIRST_CHARACTER + (group if ends else group | _MORE)))
            if ends:
                break
    return "".join(characters)


def counts_from_string(text: str) -> list[int]:
    """The inverse of :func:`string_from_counts`.

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
