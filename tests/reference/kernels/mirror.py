"""Reference of kernels/mirror.cu: see :mod:`tests.reference.kernels`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def mirror_rows_f32(
    values: npt.NDArray[Any], rows: int, width: int, mirrored: npt.NDArray[Any]
) -> None:
    """Flip each of ``rows`` rows of ``width`` values."""
    count = rows * width
    flipped = values.reshape(-1)[:count].reshape(rows, width)[:, ::-1]
    mirrored.reshape(-1)[:count] = flipped.reshape(-1)


def average_mirrored_f32(
    mirrored: npt.NDArray[Any], rows: int, width: int, values: npt.NDArray[Any]
) -> None:
    """Average ``values`` and the flipped ``mirrored`` in single precision."""
    count = rows * width
    flipped = mirrored.reshape(-1)[:count].reshape(rows, width)[:, ::-1].astype(np.float32)
    kept = values.reshape(-1)[:count].reshape(rows, width)
    kept[...] = ((kept.astype(np.float32) + flipped) * np.float32(0.5)).astype(values.dtype)


mirror_rows_f16 = mirror_rows_f32
average_mirrored_f16 = average_mirrored_f32
