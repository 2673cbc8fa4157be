"""Small arrays of a frame in one block, so that one copy brings them all to the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mpn.cuda.array import DeviceArray, KernelDevice

_ALIGNMENT = 16
"""Of each array in the block, in bytes."""


class ReadbackBlock:
    """Arrays on the device by name, and the same arrays in a copy of the block.

    Args:
        device: Where to allocate; all bytes are 0 at first.
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
        """All of them, (bytes,) uint8."""
        self._zeros = device.zeros((offset,), np.uint8)
        self._device = device

    def __getitem__(self, name: str) -> DeviceArray:
        """One of them, on the device."""
        offset, shape, dtype = self._places[name]
        return DeviceArray(self.buffer.address + offset, shape, dtype, self.buffer.owner)

    def clear(self, *names: str) -> None:
        """Set some of them to 0."""
        for name in names:
            array = self[name]
            raw = DeviceArray(array.address, (array.nbytes,), np.uint8, self.buffer.owner)
            self._device.copy(self._zeros.part(0, array.nbytes), raw)

    def read(self, buffer: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """All of them in a copy of the block on the host, as views."""
        return {
            name: buffer[offset : offset + int(np.prod(shape)) * dtype.itemsize]
            .view(dtype)
            .reshape(shape)
            for name, (offset, shape, dtype) in self._places.items()
        }
