"""Encode and decode masks as run lengths, as COCO and CVAT write them.

Both count the pixels of runs of 0, 1, 0, 1, ... COCO counts down the columns of the whole image,
CVAT along the rows of the object's box. COCO's files have the counts as a list or as a compressed
string (https://github.com/cocodataset/cocoapi, ``rleToString``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mpn.types import BoolArray

_FIVE_BITS = 0x1F
_SIGN = 0x10
_MORE = 0x20
_FIRST_CHARACTER = 48
_LAST_CHARACTER = _FIRST_CHARACTER + (_FIVE_BITS | _MORE)
_DIFFERENCE_FROM = 3
_MOST_GROUPS = 7
"""Groups of five bits of a count below 2**32, with its sign."""


def counts_from_mask(mask: BoolArray) -> list[int]:
    """Return the lengths of the runs of 0, 1, 0, 1, ... in column order.

    Args:
        mask: (H, W) bool.

    Returns:
        Counts with the sum H * W; the first is 0 if the first pixel is set.
    """
    return _counts(mask.T.ravel())


def counts_by_row(mask: BoolArray) -> list[int]:
    """Return the lengths of the runs in row order, see :func:`counts_from_mask`."""
    return _counts(mask.ravel())


def mask_from_counts(counts: Sequence[int], size_hw: tuple[int, int]) -> BoolArray:
    """Return the mask of run lengths in column order.

    Args:
        counts: Lengths of the runs of 0, 1, 0, 1, ...
        size_hw: Height and width of the mask.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: If the counts are no whole numbers from 0 with the sum H * W.
    """
    height, width = size_hw
    return _pixels(counts, height * width).reshape(width, height).T


def mask_from_counts_by_row(counts: Sequence[int], size_hw: tuple[int, int]) -> BoolArray:
    """Return the mask of run lengths in row order, see :func:`mask_from_counts`."""
    return _pixels(counts, size_hw[0] * size_hw[1]).reshape(size_hw)


def string_from_counts(counts: Sequence[int]) -> str:
    """Encode counts as the compressed ASCII string of COCO."""
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
    """Decode the compressed string of COCO; inverts :func:`string_from_counts`.

    Raises:
        ValueError: If it has another character, a number of too many digits, or ends within one.
    """
    counts: list[int] = []
    value = groups = 0
    for character in text:
        code = ord(character)
        if not _FIRST_CHARACTER <= code <= _LAST_CHARACTER or groups >= _MOST_GROUPS:
            raise ValueError("its run lengths are no string of COCO")
        group = code - _FIRST_CHARACTER
        value |= (group & _FIVE_BITS) << (5 * groups)
        groups += 1
        if group & _MORE:
            continue
        if group & _SIGN:
            value -= 1 << (5 * groups)
        counts.append(value + counts[-2] if len(counts) >= _DIFFERENCE_FROM else value)
        value = groups = 0
    if groups:
        raise ValueError("its run lengths end within a number")
    return counts


def _counts(pixels: BoolArray) -> list[int]:
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts: list[int] = np.diff(changes, prepend=0, append=pixels.size).tolist()
    return [0, *counts] if pixels.size and pixels[0] else counts


def _pixels(counts: Sequence[Any], size: int) -> BoolArray:
    try:
        lengths: npt.NDArray[Any] = np.array(counts, np.int64)
        is_valid = lengths.ndim == 1 and all(type(count) is int for count in counts)
    except (OverflowError, TypeError, ValueError):
        is_valid = False
    # Compared one by one: a sum of large numbers could overflow to the size.
    if not is_valid or (lengths < 0).any() or (lengths > size).any() or lengths.sum() != size:
        raise ValueError(f"its run lengths do not sum to its {size} pixels")
    return np.repeat(np.arange(lengths.size) % 2 == 1, lengths)
