"""What engines on a GPU need of it: memory, copies, order of streams, graphs.

:class:`mpn.engines.cuda_driver.CudaDevice` implements the protocol. The tests run it over a driver
that keeps "device" memory on the host and does a stream's work only when somebody waits for it.
This module needs no CUDA.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mpn.engines.base import DeviceTensor
from mpn.errors import EngineError

__all__ = ["Device", "DeviceGraph", "Tensor", "nbytes_of", "tensor_from_interface"]


class Tensor:
    """A C-contiguous array in device memory: a :class:`mpn.engines.base.DeviceTensor`.

    Args:
        address: Device address of the first element.
        shape: Size of each axis.
        dtype: Of the elements.
        owner: What keeps the memory alive.
    """

    __slots__ = ("address", "dtype", "owner", "shape")

    def __init__(
        self, address: int, shape: tuple[int, ...], dtype: npt.DTypeLike, owner: object = None
    ) -> None:
        self.address = address
        self.shape = shape
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.owner = owner

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the interface that torch, CuPy, Numba and PyCUDA read.

        Without a stream: whoever takes it orders itself behind the stream the engine ran on.
        """
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
        }

    def __repr__(self) -> str:
        return f"Tensor({self.shape}, {self.dtype})"


class DeviceGraph(Protocol):
    """Work that was captured once and can be started again as a whole."""

    def launch(self, stream: int) -> None:
        """Start it.

        Raises:
            EngineError: If the driver refuses.
        """

    def close(self) -> None:
        """Release it; closing twice is allowed."""


class Device(Protocol):
    """A CUDA device in its primary context. Streams are integers, handles of the driver."""

    @property
    def index(self) -> int:
        """Number of the device."""

    @property
    def name(self) -> str:
        """As the vendor calls it."""

    @property
    def arch(self) -> str:
        """Compute capability, like ``"sm_90"``."""

    def activate(self) -> None:
        """Make the device current in this thread, for libraries that go by that."""

    def allocate(self, nbytes: int) -> int:
        """Address of new memory, aligned to 256 bytes.

        Raises:
            EngineError: If there is not so much left.
        """

    def free(self, address: int) -> None:
        """Give memory of :meth:`allocate` back, waiting for the work that uses it."""

    def create_stream(self) -> int:
        """A new stream that does not wait for the default one."""

    def destroy_stream(self, stream: int) -> None:
        """Release a stream of :meth:`create_stream`; its work goes on to its end."""

    def upload(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        """Copy a C-contiguous host array to the device; it may be changed on return."""

    def download(self, address: int, out: npt.NDArray[Any], stream: int) -> None:
        """Copy to a C-contiguous host array, which is filled when the stream was waited for."""

    def copy(self, source: int, target: int, nbytes: int, stream: int) -> None:
        """Copy on the device."""

    def zero(self, address: int, nbytes: int, stream: int) -> None:
        """Set bytes to 0."""

    def synchronize(self, stream: int) -> None:
        """Wait until everything started on the stream is done.

        Raises:
            EngineError: If some of it failed.
        """

    def order(self, before: int, after: int) -> None:
        """What is started on ``after`` from now on waits for what ``before`` has now."""

    def is_capturing(self, stream: int) -> bool:
        """Whether work on the stream is being recorded into a graph of somebody's."""

    def capture(self, stream: int, start: Callable[[], None]) -> DeviceGraph:
        """Record what ``start`` starts on the stream, without running it.

        Raises:
            EngineError: If it cannot be recorded; the stream is usable again.
        """


def nbytes_of(shape: tuple[int, ...], dtype: npt.DTypeLike) -> int:
    """Bytes of a C-contiguous array."""
    return math.prod(shape) * np.dtype(dtype).itemsize


def tensor_from_interface(foreign: Any) -> DeviceTensor:
    """A device tensor over another library's array, without a copy.

    Args:
        foreign: Already a :class:`mpn.engines.base.DeviceTensor`, or has
            ``__cuda_array_interface__`` (torch, CuPy, Numba, PyCUDA), C-contiguous. Its work is to
            be complete, or on the stream that the tensor is used on.

    Raises:
        EngineError: If it is neither, or not contiguous.
    """
    if all(hasattr(foreign, name) for name in ("address", "shape", "dtype")):
        tensor: DeviceTensor = foreign
        return tensor
    interface = getattr(foreign, "__cuda_array_interface__", None)
    if interface is None:
        raise EngineError(
            f"an array on the device was expected, got {type(foreign).__name__}: give one with "
            "__cuda_array_interface__ (torch, CuPy, Numba), or use run() with NumPy arrays"
        )
    shape = tuple(int(size) for size in interface["shape"])
    dtype = np.dtype(interface["typestr"])
    strides = interface.get("strides")
    if strides is not None and tuple(strides) != _c_strides(shape, dtype.itemsize):
        raise EngineError(
            f"an array must be C-contiguous, got strides {tuple(strides)} of {shape}: copy it first"
        )
    return Tensor(int(interface["data"][0]), shape, dtype, foreign)


def _c_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape)))
