"""A CUDA device through cuda-core: memory, copies and kernel launches in the order of one stream.

cuda-core uses the device's primary context, so its arrays and streams mix with those of torch,
CuPy and the CUDA runtime in one process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self, cast

import numpy as np
import numpy.typing as npt

from mpn.cuda.api import Event, Graph
from mpn.cuda.array import Argument, DeviceArray, checked_arguments
from mpn.cuda.compile import compiled_kernels
from mpn.cuda.driver import CudaEvent, Driver
from mpn.cuda.registry import KernelSignature, kernel_signatures
from mpn.engines.base import DeviceTensor
from mpn.errors import BackendError, EngineError, InputError, MpnError, import_or_explain

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


_CUDA_DRIVER_PURPOSE = "running engines on a GPU"
_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: such a stream does not wait for the default one."""
_NO_TIMING = 2
"""CU_EVENT_DISABLE_TIMING: an event for order alone is cheaper."""


class CudaDevice_of_cuda_driver:
    """Implements :class:`mpn.cuda.device.Device` on a GPU.

    Every method makes the primary context current in the calling thread: flow runs in a thread of
    its own, and CUDA keeps the context by thread.

    Args:
        index: Number of the device.

    Raises:
        BackendError: If there is no driver, or no such device.
        MissingExtraError: If cuda-bindings is not installed.
    """

    def __init__(self, index: int = 0) -> None:
        self._driver = import_or_explain(
            "cuda.bindings.driver", extra="gpu", purpose=_CUDA_DRIVER_PURPOSE
        )
        self._index = index
        self._context: Any = None
        try:
            self._call("cuInit", 0)
            count = int(self._call("cuDeviceGetCount"))
            if index >= count:
                raise EngineError(f"there are {count} devices")
            device = self._call("cuDeviceGet", index)
            kind = self._driver.CUdevice_attribute
            major, minor = (
                int(self._call("cuDeviceGetAttribute", attribute, device))
                for attribute in (
                    kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                    kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                )
            )
            name = bytes(self._call("cuDeviceGetName", 256, device))
            self._context = self._call("cuDevicePrimaryCtxRetain", device)
        except Exception as error:  # without a driver the bindings raise errors of their own
            raise BackendError(
                f"CUDA device {index} cannot be used ({' '.join(str(error).split())}): see what "
                "nvidia-smi says, or work with backend cpu"
            ) from error
        self._name = name.split(b"\0")[0].decode(errors="replace").strip()
        self._arch = f"sm_{major}{minor}"

    def __repr__(self) -> str:
        return f"CudaDevice_of_cuda_driver({self._index}, {self._name}, {self._arch})"

    @property
    def index(self) -> int:
        """Number of the device."""
        return self._index

    @property
    def name(self) -> str:
        """As the vendor calls it."""
        return self._name

    @property
    def arch(self) -> str:
        """Compute capability, like ``"sm_90"``."""
        return self._arch

    def activate(self) -> None:
        """Make the device current in this thread, for libraries that go by that."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, nbytes: int) -> int:
        """See :class:`mpn.cuda.device.Device`."""
        self.activate()
        try:
            return int(self._call("cuMemAlloc", max(nbytes, 1)))
        except EngineError as error:
            raise EngineError(
                f"{nbytes / 1e6:.0f} MB of memory on {self._name} cannot be had ({error}): end "
                "other programs that use it, or export with fewer --max-objects or a smaller frame"
            ) from error

    def free(self, address: int) -> None:
        """See :class:`mpn.cuda.device.Device`."""
        self.activate()
        self._call("cuMemFree", address)

    def create_stream(self) -> int:
        """See :class:`mpn.cuda.device.Device`."""
        self.activate()
        return int(self._call("cuStreamCreate", _NON_BLOCKING))

    def destroy_stream(self, stream: int) -> None:
        """See :class:`mpn.cuda.device.Device`."""
        self.activate()
        self._call("cuStreamDestroy", stream)

    def upload(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        """See :class:`mpn.cuda.device.Device`.

        Of pageable memory the driver has taken its copy when this returns; NumPy's is.
        """
        _check_contiguous(array)
        self.activate()
        self._call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, stream)

    def download(self, address: int, out: npt.NDArray[Any], stream: int) -> None:
        """See :class:`mpn.cuda.device.Device`."""
        _check_contiguous(out)
        self.activate()
        self._call("cuMemcpyDtoHAsync", out.ctypes.data, address, out.nbytes, stream)

    def copy(self, source: int, target: int, nbytes: int, stream: int) -> None:
        """See :class:`mpn.cuda.device.Device`."""
        self.activate()
        self._call("cuMemcpyDtoDAsync", target, source, nbytes, stream)

    def zero(self, address: int, nbytes: int, stream: int) -> None:
        """See :class:`mpn.cuda.device.Device`."""
        self.activate()
        self._call("cuMemsetD8Async", address, 0, nbytes, stream)

    def synchronize(self, stream: int) -> None:
        """See :class:`mpn.cuda.device.Device`."""
        self.activate()
        self._call("cuStreamSynchronize", stream)

    def order(self, before: int, after: int) -> None:
        """See :class:`mpn.cuda.device.Device`."""
        if before == after:
            return
        self.activate()
        event = self._call("cuEventCreate", _NO_TIMING)
        try:
            self._call("cuEventRecord", event, before)
            self._call("cuStreamWaitEvent", after, event, 0)
        finally:
            self._call("cuEventDestroy", event)  # the driver keeps it until the wait is over

    def is_capturing(self, stream: int) -> bool:
        """See :class:`mpn.cuda.device.Device`."""
        self.activate()
        status = self._call("cuStreamIsCapturing", stream)
        return int(status) != int(self._driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE)

    def capture(self, stream: int, start: Callable[[], None]) -> DeviceGraph:
        """See :class:`mpn.cuda.device.Device`."""
        self.activate()
        # Thread-local: another thread, with the flow of the next frame, may allocate meanwhile.
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", stream, mode)
        try:
            start()
        except BaseException:
            self._abandon(stream)
            raise
        graph = self._call("cuStreamEndCapture", stream)
        try:
            return CudaGraph(self, self._call("cuGraphInstantiate", graph, 0))
        finally:
            self._call("cuGraphDestroy", graph)

    def _abandon(self, stream: int) -> None:
        """End a capture that failed, so that the stream works again."""
        status, *graph = self._driver.cuStreamEndCapture(stream)
        if int(status) == 0:
            self._driver.cuGraphDestroy(graph[0])

    def _call(self, function: str, *arguments: Any) -> Any:
        status, *values = getattr(self._driver, function)(*arguments)
        if int(status) != 0:
            raise EngineError(f"{function} failed: {getattr(status, 'name', status)}")
        return values[0] if values else None


class CudaGraph:
    """An instantiated graph of a :class:`CudaDevice_of_cuda_driver`."""

    def __init__(self, device: CudaDevice_of_cuda_driver, handle: Any) -> None:
        self._device = device
        self._handle: Any = handle

    def launch(self, stream: int) -> None:
        """See :class:`mpn.cuda.device.DeviceGraph`."""
        self._device.activate()
        self._device._call("cuGraphLaunch", self._handle, stream)

    def close(self) -> None:
        """Release it; closing twice is allowed."""
        if self._handle is not None:
            self._device.activate()
            self._device._call("cuGraphExecDestroy", self._handle)
            self._handle = None


def open_device(index: int = 0) -> CudaDevice_of_cuda_driver:
    """The device engines run on.

    Raises:
        BackendError: If there is no driver, or no such device.
        MissingExtraError: If cuda-bindings is not installed.
    """
    return CudaDevice_of_cuda_driver(index)


def why_no_device() -> str | None:
    """Why no GPU can be used here; None if one can."""
    try:
        open_device()
    except MpnError as error:
        return str(error)
    return None


def _check_contiguous(array: npt.NDArray[Any]) -> None:
    if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
        raise EngineError("a C-contiguous NumPy array was expected: make one of it first")
