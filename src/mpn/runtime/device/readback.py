"""Decode the readback of a frame: sums that kernels count in integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mpn.cuda.array import DeviceArray, KernelDevice
from mpn.runtime.device.images import boxes_from_rows
from mpn.runtime.tracks import Measured

_FIXED_ONE = 2.0**24
_LARGEST_RATIO = 2.0


def measured_from_fields(fields: Mapping[str, npt.NDArray[Any]]) -> tuple[Measured, ...]:
    """Compute area, box and confidence of each object.

    Args:
        fields: Of :class:`mpn.runtime.device.readback.ReadbackBlock`.
    """
    return tuple(
        Measured(int(area), box.box_xyxy, int(total) / _FIXED_ONE / int(area))
        if area and box is not None
        else Measured(0, None, 0.0)
        for area, box, total in zip(
            fields["track_areas"],
            boxes_from_rows(fields["track_boxes"]),
            fields["track_sums"],
            strict=True,
        )
    )


def agreement_from_fields(
    fields: Mapping[str, npt.NDArray[Any]],
) -> tuple[tuple[float, float] | None, ...]:
    """Compute per object the means of OSVOS and of the colour log ratio.

    Both are means over the pixels of its candidate; None if it has no pixel.

    Args:
        fields: See :func:`measured_from_fields`.
    """
    return tuple(
        (
            int(plane) / _FIXED_ONE / int(count),
            int(ratio) / _FIXED_ONE / int(count) - _LARGEST_RATIO,
        )
        if count
        else None
        for count, plane, ratio in fields["agreement"]
    )


_ALIGNMENT = 16
"""Alignment of each array in the block, in bytes."""


class ReadbackBlock:
    """Named arrays in one block of device memory, so that one copy reads all of them.

    Args:
        device: Allocates the block; all bytes are 0 at first.
        fields: Name -> shape and dtype.
    """

    def __init__(
        self, device: KernelDevice, fields: Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]]
    ) -> None:
        self._places: dict[str, tuple[int, tuple[int, ...], np.dtype[Any]]] = {}
        offset = 0
        for name, (shape, dtype) in fields.items():
            self._places[name] = (offset, shape, np.dtype(dtype))
            nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            offset += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        self.buffer = device.zeros((offset,), np.uint8)
        """The block, (bytes,) uint8."""
        self._zeros = device.zeros((offset,), np.uint8)
        self._device = device

    def __getitem__(self, name: str) -> DeviceArray:
        """Return an array on the device by name."""
        offset, shape, dtype = self._places[name]
        return DeviceArray(self.buffer.address + offset, shape, dtype, self.buffer.owner)

    def clear(self, *names: str) -> None:
        """Set arrays to 0."""
        for name in names:
            array = self[name]
            raw = DeviceArray(array.address, (array.nbytes,), np.uint8, self.buffer.owner)
            self._device.copy(self._zeros.part(0, array.nbytes), raw)

    def read(self, buffer: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Return all arrays as views of a copy of the block on the host."""
        return {
            name: buffer[offset : offset + int(np.prod(shape)) * dtype.itemsize]
            .view(dtype)
            .reshape(shape)
            for name, (offset, shape, dtype) in self._places.items()
        }
