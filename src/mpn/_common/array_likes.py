"""Convert what callers give as a frame or as labels to NumPy arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mpn.errors import InputError

_LARGEST_BYTE = 255


def rgb_from(given: Any) -> npt.NDArray[Any]:
    """Return a frame as an array; the caller checks shape and dtype.

    Args:
        given: An array, a nested list, an object that NumPy converts, or an image of Pillow, which
            is turned upright and converted to RGB.

    Returns:
        An array that may share its memory with ``given``.

    Raises:
        InputError: If it cannot be converted.
    """
    expected = "a frame must be (H, W, 3) uint8 RGB"
    if not _is_pillow(given):
        return _array_from(given, expected)
    from PIL import ImageOps

    if given.mode == "F" or given.mode.startswith("I"):
        raise InputError(f"{expected}, got an image of Pillow with mode {given.mode}: scale it")
    try:
        return np.array(ImageOps.exif_transpose(given).convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{expected}, got an image of Pillow that cannot be read") from error


def labels_from(given: Any) -> npt.NDArray[Any]:
    """Return labels as an array; the caller checks shape and dtype.

    Args:
        given: See :func:`rgb_from`; an image of Pillow gives its palette indices or gray values.

    Returns:
        An array that may share its memory with ``given``.

    Raises:
        InputError: If it cannot be converted, or an image holds colours.
    """
    expected = "labels must be (H, W) uint8 object ids"
    if not _is_pillow(given):
        return _array_from(given, expected)
    if given.mode not in ("1", "L", "P"):
        raise InputError(f"{expected}, got an image of Pillow with mode {given.mode}")
    try:
        return np.array(given, dtype=np.uint8)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{expected}, got an image of Pillow that cannot be read") from error


def _is_pillow(given: object) -> bool:
    """Return whether this is an image of Pillow, without an import of Pillow."""
    return any(
        kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(given).__mro__
    )


def _array_from(given: Any, expected: str) -> npt.NDArray[Any]:
    if type(given) is np.ndarray:
        return given
    if isinstance(given, str | bytes | os.PathLike):
        raise InputError(f"{expected}, got the path {os.fspath(given)!r}: read the file first")
    if given is None or isinstance(given, Mapping | set | frozenset | np.ma.MaskedArray):
        raise InputError(f"{expected}, got {_kind(given)}")
    try:
        array = np.asarray(given)  # without the behaviour of a subclass such as numpy.matrix
    except Exception as error:  # of any library
        raise InputError(f"{expected}, got {_kind(given)}, which is no array ({error})") from error
    if array.dtype == object:
        raise InputError(f"{expected}, got {_kind(given)}, which is no array")
    has_no_size = isinstance(given, list | tuple) and array.dtype.kind in "biu" and array.size > 0
    if has_no_size and array.min() >= 0 and array.max() <= _LARGEST_BYTE:
        return array.astype(np.uint8)
    return array


def _kind(given: object) -> str:
    return "None" if given is None else f"a {type(given).__name__}"
