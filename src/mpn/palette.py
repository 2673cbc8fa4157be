"""The DAVIS palette, and telling a palette whose order an image tool has changed."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mpn.types import UInt8Array

_FULL_PALETTE = 256
_SAME_COLOUR_LEVELS = 1
"""Two DAVIS palettes are in circulation, one level apart in places (191 and 192)."""


def _davis_palette() -> UInt8Array:
    """Deal the bits of each id to R, G, B in turn, from the highest bit of the colour down."""
    ids = np.arange(_FULL_PALETTE)
    palette = np.zeros((_FULL_PALETTE, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            bit = (ids >> (3 * level + channel)) & 1
            palette[:, channel] |= (bit << (7 - level)).astype(np.uint8)
    palette.flags.writeable = False
    return palette


DAVIS_PALETTE: Final[UInt8Array] = _davis_palette()
"""(256, 3) uint8 RGB, PASCAL VOC's ``labelcolormap``, which DAVIS uses. Read-only."""


def why_reordered(labels: UInt8Array, palette_rgb: npt.NDArray[Any]) -> str | None:
    """Why a palette PNG's indices cannot be the ids that were once written, if so.

    Optimisers and quantizers write only the entries in use, in an order of their own; whoever wrote
    all 256 chose them, and any colours will do.

    Args:
        labels: (H, W) uint8, the indices.
        palette_rgb: (N, 3) integers 0..255, the palette's entries.

    Returns:
        A clause for a message, or None if nothing speaks against the ids.
    """
    if not 0 < len(palette_rgb) < _FULL_PALETTE:
        return None
    palette = palette_rgb.astype(np.int64)
    if palette[0].any():
        return f"palette entry 0 is {tuple(palette[0].tolist())} instead of black"
    used = np.flatnonzero(np.bincount(labels.ravel(), minlength=_FULL_PALETTE))
    used = used[used < len(palette)]
    distance = np.abs(palette[used][:, None] - DAVIS_PALETTE[None].astype(np.int64)).max(axis=2)
    shown_id = distance.argmin(axis=1)
    if (distance.min(axis=1) > _SAME_COLOUR_LEVELS).any() or (shown_id == used).all():
        return None
    entry, colour_of = next((k, m) for k, m in zip(used, shown_id, strict=True) if k != m)
    return f"palette entry {entry} has the DAVIS colour of id {colour_of}"
