"""The DAVIS palette, and telling a palette whose order an image tool has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from mpn._common.files import write_atomically
from mpn.errors import EvaluationError, MaskError
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


_GRAY, _PALETTE = 0, 3
_HEADER_BYTES = 26
_COLOUR_NAMES = {2: "RGB", 4: "gray with alpha", 6: "RGB with alpha"}


def load_labels_of_label_png(path: Path) -> UInt8Array:
    """Read a mask: palette indices, or the values of an 8-bit or 1-bit gray PNG.

    Colours play no part, except to refuse a palette that an image tool has re-ordered: the indices
    of such a file are no longer the ids that were written.

    Args:
        path: A PNG file.

    Returns:
        (H, W) uint8, object ids; 0 is background, 255 void.

    Raises:
        EvaluationError: If the file is missing or damaged, has colours instead of ids, or a kind of
            PNG whose ids would change in reading.
    """
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
        with Image.open(path, formats=("PNG",)) as image:
            pixels = np.asarray(image)
            palette = image.getpalette("RGB")
    except FileNotFoundError as error:
        raise EvaluationError(f"{path}: no such file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise EvaluationError(f"{path}: not a readable PNG mask ({error})") from error
    bit_depth, colour_type = header[24], header[25]
    if colour_type not in (_GRAY, _PALETTE):
        raise EvaluationError(
            f"{path}: a mask must hold object ids (palette or 8-bit gray PNG), got "
            f"{_COLOUR_NAMES.get(colour_type, f'colour type {colour_type}')}; save the ids, not "
            f"their colours"
        )
    if colour_type == _GRAY and bit_depth not in (1, 8):
        raise EvaluationError(
            f"{path}: a gray PNG of {bit_depth} bits has no unambiguous ids; save 8-bit gray or a "
            f"palette PNG"
        )
    labels: UInt8Array = pixels.astype(np.uint8)
    if colour_type == _PALETTE and palette is not None:
        why = why_reordered(labels, np.array(palette).reshape(-1, 3))
        if why is not None:
            raise EvaluationError(
                f"{path}: {why}: the palette was re-ordered and the ids changed; save the ids with "
                f"a fixed palette, not through an image quantizer or optimiser"
            )
    return labels
