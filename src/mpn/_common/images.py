"""Open image files with the decoders that are meant for them.

Pillow chooses the decoder by content. One of its decoders (EPS) starts Ghostscript, so a file is
opened with a list of formats only.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageFile

from mpn._common.files import SizedFile, check_plain_file
from mpn.errors import MpnError

FRAME_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "PPM", "WEBP", "GIF")
"""Pillow's formats of frames and training images. MPO files open as JPEG, PGM as PPM."""


@contextmanager
def open_image(
    path: Path, formats: Collection[str] = FRAME_FORMATS
) -> Iterator[ImageFile.ImageFile]:
    """Open an image file for a ``with`` block, which decodes its pixels.

    Args:
        path: The file.
        formats: Pillow's names of the formats that it may have.

    Yields:
        The image, closed after the block.

    Raises:
        OSError: If it is no plain file, cannot be read, has another format or more pixels than
            Pillow's limit, or the block raises, see :func:`os_errors_of_images`.
    """
    check_plain_file(path)
    with (
        os_errors_of_images(),
        SizedFile(path) as file,
        Image.open(file, formats=tuple(formats)) as image,  # noqa: TID251
    ):
        yield image


@contextmanager
def open_image_bytes(data: bytes, formats: Collection[str]) -> Iterator[Image.Image]:
    """Open an image in memory for the block, see :func:`open_image`."""
    with (
        os_errors_of_images(),
        Image.open(io.BytesIO(data), formats=tuple(formats)) as image,  # noqa: TID251
    ):
        yield image


@contextmanager
def os_errors_of_images() -> Iterator[None]:
    """Convert the exceptions of a block that decodes an image to OSError.

    For damaged files, Pillow and OpenCV raise exceptions of many classes, which depend on the
    format and the version: EOFError, SyntaxError, KeyError, struct.error, cv2.error and others.
    """
    try:
        yield
    except (OSError, MemoryError, MpnError):
        raise
    except Exception as error:
        raise OSError(str(error)) from error
