"""A CUDA device through cuda-core: memory, copies and kernel launches in the order of one stream.

cuda-core uses the device's primary context, so its arrays and streams mix with those of torch,
CuPy and the CUDA runtime in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from mpn.cuda.api import Event, Graph
from mpn.cuda.array import Argument, DeviceArray, checked_arguments
from mpn.cuda.compile import compiled_kernels
from mpn.cuda.driver import CudaEvent, Driver
from mpn.cuda.registry import KernelSignature, kernel_signatures
from mpn.errors import BackendError, InputError, import_or_explain

_PURPOSE = "the CUDA array operations"


class CudaDevice:
    """Implements :class:`mpn.cuda.api.Stream` on a GPU.

    Kernels are compiled, or taken from the cache, when they are first launched; :meth:`load` does
    it before. To be used from the thread that made it, which the context is current in.

    Args:
        index: Number of the device.
        stream: A stream of cuda-core, or any object with ``__cuda_stream__`` (torch and CuPy
            streams have it), to work on; default: a new one.
        cache_dir: See :func:`mpn.cuda.compile.compiled_kernels`.

    Raises:
        BackendError: If there is no such device, or no driver.
        MissingExtraError: If cuda-core or cuda-bindings is not installed.
    """

    def __init__(
        self, index: int = 0, *, stream: Any = None, cache_dir: Path | None = None
    ) -> None:
        self._core = import_or_explain("cuda.core", extra="gpu", purpose=_PURPOSE)
        self._driver = Driver(
            import_or_explain("cuda.bindings.driver", extra="gpu", purpose=_PURPOSE)
        )
        try:
            self._device = self._core.Device(index)
            self._device.set_current()
            self._stream = self._device.create_stream(stream)
            self._arch = f"sm_{self._device.arch}"
        except Exception as error:  # cuda-core's own hierarchy differs from version to version
            raise BackendError(
                f"CUDA device {index} cannot be used: {' '.join(str(error).split())}; see what "
                "nvidia-smi says, or work with backend 'cpu'"
            ) from error
        self._cache_dir = cache_dir
        self._kernels: dict[str, Any] = {}
        self._modules: list[Any] = []
        self._configs: dict[tuple[tuple[int, int, int], tuple[int, int, int]], Any] = {}

    @property
    def arch(self) -> str:
        """Architecture that kernels are compiled for, like ``"sm_90"``."""
        return self._arch

    @property
    def stream(self) -> Any:
        """The stream of cuda-core that everything is ordered on."""
        return self._stream

    def on(self, stream: Any) -> CudaDevice:
        """The same device and kernels, ordered on another stream.

        Args:
            stream: A stream of cuda-core, or a graph builder that captures what is launched and
                copied; allocate before, and download after.
        """
        other = object.__new__(CudaDevice)
        other.__dict__.update(self.__dict__)
        other._stream = stream
        return other

    def load(self, *families: str) -> None:
        """Compile and load kernel families now.

        Raises:
            BackendError: If one does not compile or load.
        """
        for family in families:
            cubin = compiled_kernels(family, self._arch, cache_dir=self._cache_dir)
            module = self._core.ObjectCode.from_cubin(cubin, name=family)
            self._modules.append(module)
            for name, signature in kernel_signatures().items():
                if signature.family == family:
                    self._kernels[name] = module.get_kernel(name)

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        """See :class:`mpn.cuda.array.KernelDevice`."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        buffer = self._device.allocate(max(nbytes, 1), stream=self._stream)
        return DeviceArray(int(buffer.handle), shape, dtype, buffer, stream_address=self.address)

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        """See :class:`mpn.cuda.array.KernelDevice`."""
        array = self.empty(shape, dtype)
        if array.nbytes:
            self._driver.call("cuMemsetD8Async", array.address, 0, array.nbytes, self.address)
        return array

    def upload(self, array: npt.NDArray[Any], out: DeviceArray | None = None) -> DeviceArray:
        """See :class:`mpn.cuda.array.KernelDevice`.

        From pageable memory the driver has taken its copy when this returns; from pinned memory it
        has not, and the array must stay as it is until the stream has come so far.
        """
        source = np.ascontiguousarray(array)
        out = self.empty(source.shape, source.dtype) if out is None else out
        _check_same(source.shape, source.dtype, out)
        if out.nbytes:
            self._driver.call(
                "cuMemcpyHtoDAsync", out.address, source.ctypes.data, out.nbytes, self.address
            )
        return out

    def download(self, array: DeviceArray) -> npt.NDArray[Any]:
        """See :class:`mpn.cuda.array.KernelDevice`."""
        target = np.empty(array.shape, array.dtype)
        self.download_async(array, target)
        self._driver.call("cuStreamSynchronize", self.address)
        return target

    def copy(self, source: DeviceArray, to: DeviceArray) -> None:
        """See :class:`mpn.cuda.array.KernelDevice`."""
        _check_same(source.shape, source.dtype, to)
        if source.nbytes:
            self._driver.call(
                "cuMemcpyDtoDAsync", to.address, source.address, to.nbytes, self.address
            )

    def launch(self, name: str, **arguments: Argument) -> None:
        """See :class:`mpn.cuda.array.KernelDevice`.

        Raises:
            BackendError: If the kernel does not compile for this device.
            InputError: If an argument is missing, unknown, or of another dtype than declared.
        """
        signature = kernel_signatures()[name]
        values = checked_arguments(signature, arguments)
        if name not in self._kernels:
            self.load(signature.family)
        grid = signature.grid(values)
        if 0 in grid:  # nothing to do, and CUDA refuses it
            return
        key = (grid, signature.block)
        if key not in self._configs:
            self._configs[key] = self._core.LaunchConfig(grid=grid, block=signature.block)
        self._core.launch(
            self._stream,
            self._configs[key],
            self._kernels[name],
            *packed_arguments(signature, values),
        )

    def array_from(self, foreign: Any) -> DeviceArray:
        """An array of torch, CuPy, PyCUDA or another library, without a copy.

        Args:
            foreign: Has ``__cuda_array_interface__`` or ``__dlpack__``, C-contiguous, on this
                device. Its work is ordered before this device's stream by the protocol.

        Raises:
            InputError: If it is not on a device, or not contiguous.
        """
        utils = import_or_explain("cuda.core.utils", extra="gpu", purpose=_PURPOSE)
        view = utils.StridedMemoryView.from_any_interface(foreign, stream_ptr=self.address)
        if not view.is_device_accessible:
            raise InputError("the array is in the host's memory: upload it")
        shape, strides = tuple(view.shape), view.strides
        if strides is not None and not _is_contiguous(shape, tuple(strides)):
            raise InputError(f"an array must be C-contiguous, got strides {strides} of {shape}")
        if view.dtype is None:
            raise InputError("the array has a dtype that NumPy does not have")
        return DeviceArray(int(view.ptr), shape, view.dtype, view, stream_address=self.address)

    @property
    def address(self) -> int:
        """See :class:`mpn.cuda.api.Stream`."""
        # A graph builder has this, too, and no handle of a stream.
        return int(self._stream.__cuda_stream__()[1])

    def create_stream(self, *, high_priority: bool = False) -> Self:
        """See :class:`mpn.cuda.api.Stream`."""
        priority = self._driver.priority(high_priority=high_priority)
        options = self._core.StreamOptions(nonblocking=True, priority=priority)
        return cast(Self, self.on(self._device.create_stream(options=options)))

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """See :class:`mpn.cuda.api.Stream`."""
        return self._driver.pinned(shape, dtype)

    def upload_async(self, source: npt.NDArray[Any], to: DeviceArray) -> None:
        """See :class:`mpn.cuda.api.Stream`."""
        self.upload(source, to)  # which is asynchronous from pinned memory

    def download_async(self, source: DeviceArray, to: npt.NDArray[Any]) -> None:
        """See :class:`mpn.cuda.api.Stream`."""
        _check_same(to.shape, to.dtype, source)
        if source.nbytes:
            self._driver.call(
                "cuMemcpyDtoHAsync", to.ctypes.data, source.address, source.nbytes, self.address
            )

    def record(self, *, timing: bool = False) -> CudaEvent:
        """See :class:`mpn.cuda.api.Stream`."""
        return CudaEvent(self._driver, self.address, timing=timing)

    def wait(self, event: Event) -> None:
        """See :class:`mpn.cuda.api.Stream`."""
        cast(CudaEvent, event).let_wait(self.address)

    def capture(self, work: Callable[[], None]) -> Graph:
        """See :class:`mpn.cuda.api.Stream`.

        Raises:
            BackendError: If something in it cannot be captured.
        """
        return self._driver.captured(self.address, work)


def packed_arguments(signature: KernelSignature, values: Mapping[str, int | float]) -> list[Any]:
    """Arguments of the types that the kernel declares: cuda-core goes by the Python type.

    Args:
        signature: Of the kernel.
        values: From :func:`mpn.cuda.array.checked_arguments`.
    """
    return [
        int(values[parameter.name])
        if parameter.is_pointer
        else parameter.dtype.type(values[parameter.name])
        for parameter in signature.parameters
    ]


def _check_same(shape: tuple[int, ...], dtype: np.dtype[Any], out: DeviceArray) -> None:
    if shape != out.shape or dtype != out.dtype:
        raise InputError(f"cannot copy {shape} {dtype} into {out.shape} {out.dtype}")


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether strides, in elements, are those of C order."""
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True
