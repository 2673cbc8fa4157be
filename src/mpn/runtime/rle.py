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
