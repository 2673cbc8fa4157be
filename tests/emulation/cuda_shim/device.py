"""Emulate a device in host memory; the shim runs its kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mpn.cuda.array import DeviceArray, checked_arguments
from tests.emulation.cuda_shim.memory import Guard, GuardedMemory
from tests.emulation.cuda_shim.shim import Shim

_POISON = 0xCD
"""Byte of unwritten memory: -4.3e8 as float32, -842150451 as int32."""


class ShimDevice:
    """Implement :class:`mpn.cuda.array.KernelDevice`.

    Args:
        shim: Runs the kernels.
        seed: Seed of the order of threads; 0 runs them in order.
        guard: Side of each array that borders on a guard page.
    """

    def __init__(self, shim: Shim, *, seed: int = 0, guard: Guard = "end") -> None:
        self._shim = shim
        self._seed = seed
        self._guard = guard
        self.launched: list[str] = []
        self.downloads = 0

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        memory = GuardedMemory(nbytes, self._guard)
        memory.bytes[:] = _POISON
        return DeviceArray(memory.address, shape, dtype, memory)

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        array = self.empty(shape, dtype)
        host_view(array)[...] = 0
        return array

    def upload(self, array: npt.NDArray[Any], out: DeviceArray | None = None) -> DeviceArray:
        out = self.empty(array.shape, array.dtype) if out is None else out
        assert out.dtype == array.dtype
        assert out.shape == array.shape
        host_view(out)[...] = array
        return out

    def download(self, array: DeviceArray) -> npt.NDArray[Any]:
        self.downloads += 1
        return host_view(array).copy()

    def copy(self, source: DeviceArray, to: DeviceArray) -> None:
        assert source.shape == to.shape
        host_view(to)[...] = host_view(source)

    def launch(self, name: str, **arguments: DeviceArray | float | None) -> None:
        signature = self._shim.signatures[name]
        self.launched.append(name)
        self._shim.launch_raw(signature, checked_arguments(signature, arguments), seed=self._seed)
        for parameter, value in arguments.items():
            if isinstance(value, DeviceArray):
                assert isinstance(value.owner, GuardedMemory)
                assert value.owner.is_intact(), f"{name} wrote outside '{parameter}'"


def host_view(array: DeviceArray) -> npt.NDArray[Any]:
    """Return the memory of an array of a shim device."""
    memory = array.owner
    assert isinstance(memory, GuardedMemory)
    offset = array.address - memory.address
    part = memory.bytes[offset : offset + array.nbytes]
    return part.view(array.dtype).reshape(array.shape)
