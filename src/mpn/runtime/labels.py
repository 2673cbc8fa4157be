"""Object ids in PNG files: reading a first-frame mask, writing results in the DAVIS palette."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from mpn._common.files import write_atomically
from mpn.errors import MaskError
from mpn.palette import DAVIS_PALETTE, why_reordered
from mpn.types import UInt8Array

VOID: Final = 255
"""Pixels that DAVIS leaves out of the score; as an input they are background."""

DEFAULT_MAX_OBJECTS = 32
"""More different ids than this are taken for a gray-scale picture or a soft mask, not for objects:
DAVIS has at most 10 objects in a sequence, and a blurred edge brings hundreds of values."""

_COMPRESS_LEVEL = 3
"""zlib: as fast as level 1 on masks (0.9 ms at 480p) and smaller; level 9 takes 6 times longer."""

_WAY_OUT = "save it as a palette (indexed) PNG, 0 background and ids from 1, or as a 0/255 gray PNG"


def load_labels(
    path: str | Path,
    *,
    size_hw: tuple[int, int] | None = None,
    max_objects: int = DEFAULT_MAX_OBJECTS,
    allow_empty: bool = False,
) -> UInt8Array:
    """Read a mask.

    Palette images give their indices, whatever the colours. Gray images give their values, and
    black and white ones (0/255, or 1 bit) one object with id 1. Value 255 beside other ids is
    DAVIS's void and becomes background.

    Args:
        path: An image file; PNG, since a mask must not pass a lossy codec.
        size_hw: (height, width) the mask must have, if known.
        max_objects: Largest number of different ids.
        allow_empty: Whether a mask without any object is fine, as it is in results.

    Returns:
        (H, W) uint8: 0 background, object ids 1..254.

    Raises:
        MaskError: If the file is missing or no image, holds colours instead of ids, has no object
            or too many, is of another size, or an image tool has re-ordered its palette.
    """
    path = Path(path)
    labels = _read_ids(path)
    if size_hw is not None and labels.shape != size_hw:
        raise MaskError(
            f"the mask {path} is {labels.shape[1]}x{labels.shape[0]} but the video is "
            f"{size_hw[1]}x{size_hw[0]} (width x height): give a mask of the video's size"
        )
    values = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    foreground = values[values > 0]
    if foreground.tolist() == [VOID]:
        labels = np.minimum(labels, 1)
    else:
        labels[labels == VOID] = 0
        foreground = foreground[foreground != VOID]
    if foreground.size == 0 and not allow_empty:
        raise MaskError(f"the mask {path} is empty (every pixel is 0): mark at least one object")
    if foreground.size > max_objects:
        raise MaskError(
            f"the mask {path} holds {foreground.size} different ids, more than the {max_objects} "
            f"expected at most: it looks like a gray-scale picture or a soft mask; {_WAY_OUT}"
        )
    return labels


def save_labels(path: str | Path, labels: UInt8Array) -> None:
    """Write a palette PNG with the DAVIS palette; under its name only once it is whole.

    Args:
        path: Where to; the folder must exist.
        labels: (H, W) uint8 object ids.

    Raises:
        OutputError: If it cannot be written; nothing is left behind then.
    """
    path = Path(path)
    image = Image.fromarray(np.ascontiguousarray(labels, np.uint8)).convert("L")
    image.putpalette(DAVIS_PALETTE.tobytes())
    write_atomically(
        path, lambda file: image.save(file, format="PNG", compress_level=_COMPRESS_LEVEL)
    )


def _read_ids(path: Path) -> UInt8Array:
    try:
        with Image.open(path) as image:
            mode = image.mode
            if mode not in ("1", "L", "P"):
                raise MaskError(
                    f"the mask {path} holds colours or other values ({_MODE_NAMES.get(mode, mode)})"
                    f", not object ids: {_WAY_OUT}"
                )
            labels = np.array(image, dtype=np.uint8)
            palette_rgb = np.array(image.getpalette("RGB") or []).reshape(-1, 3)
    except FileNotFoundError as error:
        raise MaskError(f"no such mask: {path}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "damaged, cut short, or no image at all"
        raise MaskError(f"the mask {path} cannot be read ({reason})") from error
    if why := why_reordered(labels, palette_rgb):
        raise MaskError(
            f"the mask {path} has a palette that an image tool re-ordered ({why}), so its ids are "
            "not those that were written: save it with a fixed palette"
        )
    return labels


_MODE_NAMES = {
    "RGB": "an RGB image",
    "RGBA": "an RGB image with alpha",
    "LA": "a gray image with alpha",
    "PA": "a palette image with alpha",
    "CMYK": "a CMYK image",
    "F": "floating-point pixels",
} | dict.fromkeys(("I", "I;16", "I;16B", "I;16L"), "16 bits a pixel")
