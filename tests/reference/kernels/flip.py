"""Reference of kernels/flip.cu: see :mod:`tests.reference.kernels`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def flip_rows_f32(
    values: npt.NDArray[Any], rows: int, width: int, flipped: npt.NDArray[Any]
) -> None:
    """Flip each of ``rows`` rows of ``width`` values."""
    count = rows * width
    reversed_rows = values.reshape(-1)[:count].reshape(rows, width)[:, ::-1]
    flipped.reshape(-1)[:count] = reversed_rows.reshape(-1)


def average_flipped_f32(
    flipped: npt.NDArray[Any], rows: int, width: int, values: npt.NDArray[Any]
) -> None:
    """Average ``values`` and the rows of ``flipped``, reversed, in single precision."""
    count = rows * width
    other = flipped.reshape(-1)[:count].reshape(rows, width)[:, ::-1].astype(np.float32)
    kept = values.reshape(-1)[:count].reshape(rows, width)
    kept[...] = ((kept.astype(np.float32) + other) * np.float32(0.5)).astype(values.dtype)


flip_rows_f16 = flip_rows_f32
average_flipped_f16 = average_flipped_f32
