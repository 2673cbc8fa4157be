"""Reading object ids from PNG files, without ever guessing them from colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mpn.errors import EvaluationError
from mpn.runtime.labels import DAVIS_PALETTE
from mpn.types import UInt8Array

_GRAY, _PALETTE = 0, 3
_FULL_PALETTE = 256
_HEADER_BYTES = 26
_COLOUR_NAMES = {2: "RGB", 4: "gray with alpha", 6: "RGB with alpha"}


def load_labels(path: Path) -> UInt8Array:
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
        _check_palette(path, labels, np.array(palette, np.int64).reshape(-1, 3))
    return labels


def _check_palette(path: Path, labels: UInt8Array, palette_rgb: np.ndarray) -> None:
    # Image tools (quantizers, PNG optimisers) write only the entries in use, in an order of their
    # own; a palette of all 256 entries was chosen by whoever wrote the ids.
    if len(palette_rgb) >= _FULL_PALETTE:
        return
    used = np.flatnonzero(np.bincount(labels.ravel(), minlength=_FULL_PALETTE))
    used = used[used < len(palette_rgb)]
    advice = "save the ids with a fixed palette, not through an image quantizer or optimiser"
    if palette_rgb[0].any():
        raise EvaluationError(
            f"{path}: palette entry 0 is {tuple(palette_rgb[0].tolist())} instead of black: the "
            f"palette was re-ordered and the ids changed; {advice}"
        )
    # The two palettes in circulation differ by one level (191 and 192) in places.
    distance = np.abs(palette_rgb[used][:, None, :] - DAVIS_PALETTE[None].astype(np.int64)).max(
        axis=2
    )
    shown_id = distance.argmin(axis=1)
    if (distance.min(axis=1) <= 1).all() and (shown_id != used).any():
        entry, colour_of = next(
            (int(k), int(m)) for k, m in zip(used, shown_id, strict=True) if k != m
        )
        raise EvaluationError(
            f"{path}: palette entry {entry} has the DAVIS colour of id {colour_of}: the palette "
            f"was re-ordered and the ids changed; {advice}"
        )
