"""Read masks from the .npy files of NumPy.

Pickled arrays, such as the list that SAM's generator returns, run code when they are loaded, and
are refused.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpn._common.files import check_plain_file
from mpn.types import MAX_OBJECT_ID, UInt8Array

_MOST_BYTES = 1 << 32
_ALTERNATIVE = 0.9
"""Part of a mask that lies in another one, from which on both are alternatives of one object."""

_WHITE = 255


def labels_from_npy(path: Path) -> UInt8Array:
    """Read the masks of one frame.

    Args:
        path: A file with one array: (H, W) of ids or of one mask (bool, 0/1 or 0/255), or a stack
            (K, H, W) of masks, whose ids are 1..K. Later masks lie over earlier ones.

    Returns:
        (H, W) uint8: 0 background, object ids 1..254.

    Raises:
        OSError: If it is no plain file.
        ValueError: If it is no such array.
    """
    array = _loaded(path)
    while array.ndim > 2 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim == 4 and array.shape[1] == 1:  # SAM's batches, one mask each
        array = array[:, 0]
    if array.dtype.kind not in "biu":
        raise ValueError(f"it has values of type {array.dtype}: save masks as bool, ids as uint8")
    if array.ndim == 2:
        return _ids(array)
    if array.ndim != 3:
        raise ValueError(f"it has the shape {array.shape}: save (H, W) ids or (K, H, W) masks")
    return _stacked(array)


def _loaded(path: Path) -> npt.NDArray[Any]:
    check_plain_file(path)
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            reader = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = reader(file)
        except Exception as error:  # the header is parsed as Python, which raises anything
            raise ValueError("it is a damaged .npy file") from error
        if dtype.hasobject:
            raise ValueError(
                "it is a pickle, which can run code and is not read: save "
                "np.stack([m['segmentation'] for m in masks]) of SAM's masks"
            )
        if math.prod(shape) * dtype.itemsize > _MOST_BYTES:
            raise ValueError(f"it has the shape {shape}, more than {_MOST_BYTES >> 30} GB")
        file.seek(0)
        try:
            array: npt.NDArray[Any] = np.load(file, allow_pickle=False)
        except Exception as error:  # a shape can have numbers of any type and size
            raise ValueError("it is a damaged .npy file") from error
    return array


def _ids(array: npt.NDArray[Any]) -> UInt8Array:
    values = np.unique(array)
    if values.size and (values[0] < 0 or values[-1] > _WHITE):
        raise ValueError(
            f"it has values from {values[0]} to {values[-1]}: ids are 1 to {MAX_OBJECT_ID}"
        )
    if set(values.tolist()) <= {0, _WHITE}:
        return (array > 0).astype(np.uint8)
    if values[-1] > MAX_OBJECT_ID:
        raise ValueError(f"it has the value {_WHITE} next to ids: it may be void or an object")
    return array.astype(np.uint8)


def _stacked(array: npt.NDArray[Any]) -> UInt8Array:
    count = len(array)
    if not array.size:  # no mask, or masks of any size without a pixel
        raise ValueError(f"it has the shape {array.shape}: a stack has at least one mask")
    if count > MAX_OBJECT_ID:
        raise ValueError(
            f"it has the shape {array.shape}: a stack has at most {MAX_OBJECT_ID} masks"
        )
    if array.dtype.kind != "b" and not set(np.unique(array).tolist()) <= {0, 1, _WHITE}:
        raise ValueError(
            f"it has the shape {array.shape} and ids: save the ids of one frame as (H, W), with "
            "the name of the frame"
        )
    labels = np.zeros(array.shape[1:], np.uint8)
    for number in range(1, count + 1):
        mask = array[number - 1] > 0
        under = labels[mask]
        for other in np.unique(under[under > 0]).tolist():
            common = int((under == other).sum())
            smaller = min(int(mask.sum()), int((array[other - 1] > 0).sum()))
            if common > _ALTERNATIVE * smaller:
                raise ValueError(
                    f"masks {other} and {number} of its stack lie in each other: they may be "
                    "SAM's alternatives of one object (multimask_output), save one of them"
                )
        labels[mask] = number
    return labels
