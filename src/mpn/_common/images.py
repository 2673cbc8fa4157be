"""Open image files with the decoders that are meant for them.

Pillow chooses the decoder by content. One of its decoders (EPS) starts Ghostscript, so a file is
opened with a list of formats only.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from PIL import Image

from mpn._common.files import check_plain_file

FRAME_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "PPM", "WEBP", "GIF")
"""Pillow's formats of frames and training images. MPO files open as JPEG, PGM as PPM."""


def open_image(path: Path, formats: Collection[str] = FRAME_FORMATS) -> Image.Image:
    """Open an image file; its pixels are decoded later, to be closed by the caller.

    Args:
        path: The file.
        formats: Pillow's names of the formats that it may have.

    Raises:
        OSError: If it is no plain file, cannot be read or has another format.
        Image.DecompressionBombError: If it has more pixels than Pillow's limit.
    """
    check_plain_file(path)
    return Image.open(path, formats=tuple(formats))  # noqa: TID251
