"""Arrays in device memory, and the protocol of a device that runs kernels.

The protocol has two implementations: :class:`mpn.cuda.device.CudaDevice`, and one in the tests
that runs the same kernels on the CPU. This module needs no CUDA.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mpn.cuda.registry import KernelSignature
from mpn.errors import EngineError, InputError


class DeviceArray:
    """A C-contiguous array in device memory.

    Args:
        address: Device address of the first element.
        shape: Size of each axis.
        dtype: Of the elements.
        owner: Object that owns the memory; it is kept as long as the array and its parts.
        stream_address: Handle of the CUDA stream that the array is ordered on, for
            ``__cuda_array_interface__``; None: complete already.
    """

    __slots__ = ("_stream_address", "address", "dtype", "owner", "shape")

    def __init__(
        self,
        address: int,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        owner: object,
        *,
        stream_address: int | None = None,
    ) -> None:
        self.address = address
        self.shape = shape
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.owner = owner
        self._stream_address = stream_address

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the interface, which torch, CuPy, Numba and PyCUDA read."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": self._stream_address,
        }

    def reshape(self, *shape: int) -> DeviceArray:
        """Return the same memory with other axes.

        Raises:
            InputError: If the number of elements differs.
        """
        if math.prod(shape) != self.size:
            raise InputError(f"an array of {self.shape} cannot become {shape}")
        return DeviceArray(
            self.address, shape, self.dtype, self.owner, stream_address=self._stream_address
        )

    def part(self, start: int, stop: int) -> DeviceArray:
        """Return entries start..stop-1 of the first axis, in the same memory.

        Raises:
            InputError: If they do not lie in the array.
        """
        if not 0 <= start <= stop <= self.shape[0]:
            raise InputError(f"entries {start}..{stop} do not lie in an array of {self.shape}")
        step = math.prod(self.shape[1:]) * self.dtype.itemsize
        return DeviceArray(
            self.address + start * step,
            (stop - start, *self.shape[1:]),
            self.dtype,
            self.owner,
            stream_address=self._stream_address,
        )

    def __repr__(self) -> str:
        return f"DeviceArray({self.shape}, {self.dtype})"


Argument = DeviceArray | float | None
"""Argument of a kernel: an array or None for a pointer, a number otherwise."""
Arguments = dict[str, Argument]
"""Arguments by parameter name."""


class KernelDevice(Protocol):
    """Memory and kernels of one device, in the order of one stream."""

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        """Allocate without initialising."""

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        """Allocate with all bytes 0."""

    def upload(self, array: npt.NDArray[Any], out: DeviceArray | None = None) -> DeviceArray:
        """Copy to the device.

        Args:
            array: Any C-contiguous array; it may be changed when this returns.
            out: Where to, of the same size and dtype; default: a new array.
        """

    def download(self, array: DeviceArray) -> npt.NDArray[Any]:
        """Copy from the device, after a wait for everything started before."""

    def copy(self, source: DeviceArray, to: DeviceArray) -> None:
        """Copy on the device; both arrays have one shape and dtype."""

    def launch(self, name: str, **arguments: Argument) -> None:
        """Start a kernel.

        Args:
            name: One of :func:`mpn.cuda.registry.kernel_signatures`.
            **arguments: By parameter name: an array or None for a pointer, else a number.

        Raises:
            InputError: If an argument is missing, unknown, or of another dtype than declared.
        """


def array_from_interface(foreign: Any) -> DeviceArray:
    """Return an array over another library's device memory, without a copy.

    Args:
        foreign: A :class:`DeviceArray`, or an array with ``__cuda_array_interface__`` (torch,
            CuPy, Numba, PyCUDA), C-contiguous. Its work must be complete, or on the stream that
            the result is used on.

    Raises:
        EngineError: If it is neither, or not contiguous.
    """
    if isinstance(foreign, DeviceArray):
        return foreign
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
    return DeviceArray(int(interface["data"][0]), shape, dtype, foreign)


def _c_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape)))


def checked_arguments(
    signature: KernelSignature, arguments: Mapping[str, Argument]
) -> dict[str, int | float]:
    """Check arguments; return addresses and numbers by name in the kernel's order.

    Raises:
        InputError: If one is missing, unknown, or of another dtype than declared.
    """
    names = [parameter.name for parameter in signature.parameters]
    if set(names) != set(arguments):
        raise InputError(
            f"kernel {signature.name} takes {', '.join(names)}; got {', '.join(arguments)}"
        )
    values: dict[str, int | float] = {}
    for parameter in signature.parameters:
        value = arguments[parameter.name]
        if isinstance(value, DeviceArray):
            if not parameter.is_pointer or value.dtype != parameter.dtype:
                raise InputError(
                    f"kernel {signature.name} takes {parameter.name} as {parameter.dtype}"
                    f"{' array' if parameter.is_pointer else ''}, got an array of {value.dtype}"
                )
            values[parameter.name] = value.address
        elif parameter.is_pointer:
            if value is not None:
                raise InputError(
                    f"kernel {signature.name} takes {parameter.name} as an array of "
                    f"{parameter.dtype} or None, got {value!r}"
                )
            values[parameter.name] = 0
        elif value is None or (parameter.dtype.kind in "iu" and value != int(value)):
            raise InputError(
                f"kernel {signature.name} takes {parameter.name} as {parameter.dtype}, "
                f"got {value!r}"
            )
        else:
            values[parameter.name] = value
    return values
