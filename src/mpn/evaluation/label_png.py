"""Reading object ids from PNG files, without ever guessing them from colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mpn.errors import EvaluationError
from mpn.palette import why_reordered
from mpn.types import UInt8Array

_GRAY, _PALETTE = 0, 3
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
        why = why_reordered(labels, np.array(palette).reshape(-1, 3))
        if why is not None:
            raise EvaluationError(
                f"{path}: {why}: the palette was re-ordered and the ids changed; save the ids with "
                f"a fixed palette, not through an image quantizer or optimiser"
            )
    return labels
