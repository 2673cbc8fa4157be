"""A CUDA device through cuda.core: memory, copies, kernels, events and graphs.

cuda.core works in the device's primary context, so arrays and streams can be shared with torch,
CuPy, onnxruntime and TensorRT in one process. cuda.core is imported when a device is opened.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from mpn.cuda.api import Event
from mpn.cuda.array import Argument, DeviceArray, checked_arguments
from mpn.cuda.compile import compiled_kernels
from mpn.cuda.registry import KernelSignature, kernel_signatures
from mpn.errors import BackendError, EngineError, InputError, MpnError, import_or_explain

_PURPOSE = "work on a GPU"


class CudaDevice:
    """Implement :class:`mpn.cuda.api.Stream`: a GPU and one of its streams.

    :meth:`create_stream` and :meth:`on` return the same device with another stream. Kernels are
    compiled, or taken from the cache, when they are first launched; :meth:`load` does it before.
    CUDA keeps the current device per thread: call :meth:`activate` first in another thread.

    Args:
        index: Number of the device.
        stream: A stream of cuda.core, or any object with ``__cuda_stream__`` (torch and CuPy
            streams have it); default: a new one.
        cache_dir: See :func:`mpn.cuda.compile.compiled_kernels`.

    Raises:
        BackendError: If there is no such device, or no driver.
        MissingExtraError: If cuda.core or cuda.bindings is not installed.
    """

    def __init__(
        self, index: int = 0, *, stream: Any = None, cache_dir: Path | None = None
    ) -> None:
        self._core = import_or_explain("cuda.core", extra="gpu", purpose=_PURPOSE)
        # For the calls that cuda.core does not have; each of them below names its reason.
        self._driver = import_or_explain("cuda.bindings.driver", extra="gpu", purpose=_PURPOSE)
        self._index = index
        try:
            self._device = self._core.Device(index)
            self._device.set_current()
            self._stream = self._device.create_stream(stream)
            self._name = str(self._device.name)
            self._arch = f"sm_{self._device.arch}"
        except Exception as error:  # cuda.core's own hierarchy differs from version to version
            raise BackendError(
                f"CUDA device {index} cannot be used ({_one_line(error)}): check the output of "
                "nvidia-smi, or use backend cpu"
            ) from error
        self._cache_dir = cache_dir
        self._kernels: dict[str, Any] = {}
        self._modules: list[Any] = []
        self._configs: dict[tuple[tuple[int, int, int], tuple[int, int, int]], Any] = {}

    def __repr__(self) -> str:
        return f"CudaDevice({self._index}, {self._name}, {self._arch})"

    @property
    def index(self) -> int:
        """Number of the device."""
        return self._index

    @property
    def name(self) -> str:
        """The vendor's name of the device."""
        return self._name

    @property
    def arch(self) -> str:
        """Architecture that kernels are compiled for, for example ``"sm_90"``."""
        return self._arch

    @property
    def stream(self) -> Any:
        """The stream of cuda.core."""
        return self._stream

    @property
    def address(self) -> int:
        """See :class:`mpn.cuda.api.Stream`."""
        # Foreign streams have this protocol, too.
        return int(self._stream.__cuda_stream__()[1])

    @property
    def is_capturing(self) -> bool:
        """Whether the stream is being captured, by this process or a library."""
        # cuda.core reports only its own captures; torch captures streams, too.
        return int(self._call("cuStreamIsCapturing", self.address)) != 0

    def activate(self) -> None:
        """Make the device current in this thread."""
        self._device.set_current()

    def on(self, stream: Any) -> Self:
        """Return the same device and kernels on another stream.

        Args:
            stream: Handle of a stream (``CUstream`` as an integer), or a stream of cuda.core. It
                must live as long as the result.
        """
        if isinstance(stream, int):
            core = self._core
            stream = core.Stream.from_handle(stream) if stream else core.LEGACY_DEFAULT_STREAM
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._stream = stream
        return other

    def create_stream(self, *, high_priority: bool = False) -> Self:
        """See :class:`mpn.cuda.api.Stream`."""
        # cuda.core takes a priority, but has no call for the range of the device.
        lowest, highest = self._call("cuCtxGetStreamPriorityRange")
        options = self._core.StreamOptions(
            nonblocking=True, priority=int(highest if high_priority else lowest)
        )
        with _explained("creating a stream"):
            return self.on(self._device.create_stream(options=options))

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
        """See :class:`mpn.cuda.array.KernelDevice`.

        The memory belongs to the array and its parts. It is allocated and released in the order
        of this stream: :meth:`sync` before another stream uses it.

        Raises:
            EngineError: If there is not enough memory.
        """
        return self._array(self._allocate(_nbytes(shape, dtype)), shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        """See :class:`mpn.cuda.array.KernelDevice`."""
        buffer = self._allocate(_nbytes(shape, dtype))
        with _explained("setting memory to zero"):
            buffer.fill(0, stream=self._stream)
        return self._array(buffer, shape, dtype)

    def upload(self, array: npt.NDArray[Any], out: DeviceArray | None = None) -> DeviceArray:
        """See :class:`mpn.cuda.array.KernelDevice`.

        The driver has copied pageable memory when this returns. Pinned memory must not change
        until the stream has reached the copy.
        """
        source = np.ascontiguousarray(array)
        out = self.empty(source.shape, source.dtype) if out is None else out
        _check_same(source.shape, source.dtype, out)
        self._copy("HtoD", out.address, source.ctypes.data, out.nbytes)
        return out

    def download(self, array: DeviceArray) -> npt.NDArray[Any]:
        """See :class:`mpn.cuda.array.KernelDevice`."""
        target = np.empty(array.shape, array.dtype)
        self.download_async(array, target)
        self.sync()
        return target

    def copy(self, source: DeviceArray, to: DeviceArray) -> None:
        """See :class:`mpn.cuda.array.KernelDevice`."""
        _check_same(source.shape, source.dtype, to)
        self._copy("DtoD", to.address, source.address, to.nbytes)

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
        if 0 in grid:  # CUDA refuses an empty grid
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

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """See :class:`mpn.cuda.api.Stream`; the memory is released with the last view."""
        nbytes = max(_nbytes(shape, dtype), 1)
        with _explained("allocating pinned memory"):
            buffer = self._core.LegacyPinnedMemoryResource().allocate(nbytes)
        # By ctypes: np.from_dlpack(buffer) is read-only before NumPy 2.1.
        memory = (ctypes.c_uint8 * nbytes).from_address(int(buffer.handle))
        memory._owner = buffer  # type: ignore[attr-defined]  # NumPy's views keep `memory`
        flat: npt.NDArray[Any] = np.frombuffer(
            memoryview(memory), np.dtype(dtype), math.prod(shape)
        )
        return flat.reshape(shape)

    def upload_async(self, source: npt.NDArray[Any], to: DeviceArray) -> None:
        """See :class:`mpn.cuda.api.Stream`."""
        self.upload(source, to)  # from pinned memory it is asynchronous

    def download_async(self, source: DeviceArray, to: npt.NDArray[Any]) -> None:
        """See :class:`mpn.cuda.api.Stream`."""
        _check_same(to.shape, to.dtype, source)
        if not to.flags.c_contiguous:
            raise InputError("can copy to a C-contiguous array only")
        self._copy("DtoH", to.ctypes.data, source.address, source.nbytes)

    def record(self, *, timing: bool = False) -> CudaEvent:
        """See :class:`mpn.cuda.api.Stream`."""
        options = self._core.EventOptions(timing_enabled=timing)
        with _explained("recording an event"):
            return CudaEvent(self._stream.record(options=options))

    def wait(self, event: Event) -> None:
        """See :class:`mpn.cuda.api.Stream`."""
        assert isinstance(event, CudaEvent)
        with _explained("waiting for an event"):
            self._stream.wait(event.event)

    def sync(self) -> None:
        """Block the host until everything started on this stream is done.

        Raises:
            EngineError: If some of it failed.
        """
        with _explained("synchronising a stream"):
            self._stream.sync()

    def sync_all(self) -> None:
        """Block the host until everything started on any stream of the device is done.

        Raises:
            EngineError: If some of it failed.
        """
        with _explained("synchronising the device"):
            self._device.sync()

    def capture(self, work: Callable[[], None]) -> CudaGraph:
        """See :class:`mpn.cuda.api.Stream`.

        Raises:
            EngineError: If something in it cannot be captured; the stream can be used again.
        """
        builder = self._stream.create_graph_builder()
        with _explained("starting a capture"):
            # Thread-local: another thread, with the flow of the next frame, may allocate meanwhile.
            builder.begin_building("thread_local")
        try:
            work()
        except BaseException:
            with suppress(Exception):  # the error of `work` is the reason
                builder.end_building()
            builder.close()
            raise
        with _explained("capturing a CUDA graph"):
            try:
                return CudaGraph(builder.end_building().complete(), self)
            finally:
                builder.close()

    def array_from(self, foreign: Any) -> DeviceArray:
        """Return an array of torch, CuPy, PyCUDA or another library, without a copy.

        Args:
            foreign: Has ``__cuda_array_interface__`` or ``__dlpack__``, C-contiguous, on this
                device. The protocol orders its work before this stream.

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

    def _allocate(self, nbytes: int) -> Any:
        try:
            return self._device.allocate(max(nbytes, 1), stream=self._stream)
        except Exception as error:
            raise EngineError(
                f"cannot allocate {nbytes / 1e6:.0f} MB of memory on {self._name} "
                f"({_one_line(error)}): end other programs that use it, or export with fewer "
                "--max-objects or a smaller frame"
            ) from error

    def _array(self, buffer: Any, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        return DeviceArray(int(buffer.handle), shape, dtype, buffer, stream_address=self.address)

    def _copy(self, direction: str, to: int, source: int, nbytes: int) -> None:
        # cuda.core copies between its Buffers only. NumPy arrays and parts of arrays are none, and
        # a Buffer around each end costs 2 x 3 us per copy.
        if nbytes:
            self._call(f"cuMemcpy{direction}Async", to, source, nbytes, self.address)

    def _call(self, function: str, *arguments: Any) -> Any:
        """Call the driver, check the status and return the value or values."""
        status, *values = getattr(self._driver, function)(*arguments)
        if int(status) != 0:
            raise EngineError(f"{function} failed: {getattr(status, 'name', status)}")
        return values[0] if len(values) == 1 else tuple(values)


class CudaEvent:
    """Implement :class:`mpn.cuda.api.Event`.

    Args:
        event: Of cuda.core, recorded.
    """

    def __init__(self, event: Any) -> None:
        self.event = event

    def sync(self) -> None:
        """See :class:`mpn.cuda.api.Event`."""
        with _explained("synchronising an event"):
            self.event.sync()

    def elapsed_s(self, earlier: Event) -> float:
        """See :class:`mpn.cuda.api.Event`."""
        assert isinstance(earlier, CudaEvent)
        elapsed_ms: float = self.event - earlier.event
        return elapsed_ms / 1000


class CudaGraph:
    """Implement :class:`mpn.cuda.api.Graph`.

    Args:
        graph: Of cuda.core.
        device: Whose stream was captured.
    """

    def __init__(self, graph: Any, device: CudaDevice) -> None:
        self._graph, self._device = graph, device

    def launch(self, on: CudaDevice | None = None) -> None:
        """Launch the graph.

        Args:
            on: Device with the stream; None: the stream that was captured.

        Raises:
            EngineError: If the driver refuses.
        """
        with _explained("launching a CUDA graph"):
            self._graph.launch((on or self._device).stream)


def gpu_unavailable_reason() -> str | None:
    """Return why no GPU can be used here; None if one can."""
    try:
        CudaDevice()
    except MpnError as error:
        return str(error)
    return None


def gpu_count() -> int:
    """Return the number of CUDA devices; 0 if it cannot be determined."""
    try:
        return len(import_module("cuda.core").Device.get_all_devices())
    except Exception:  # not installed, no driver, or an error of cuda.core, which is not public
        return 0


def packed_arguments(signature: KernelSignature, values: Mapping[str, int | float]) -> list[Any]:
    """Convert arguments to the types that the kernel declares.

    cuda.core passes an argument by its Python type.

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


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn an error of cuda.core into an EngineError of one line."""
    try:
        yield
    except MpnError:
        raise
    except Exception as error:  # cuda.core's CUDAError is not public
        raise EngineError(f"{what} failed: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _nbytes(shape: tuple[int, ...], dtype: npt.DTypeLike) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _check_same(shape: tuple[int, ...], dtype: np.dtype[Any], out: DeviceArray) -> None:
    if shape != out.shape or dtype != out.dtype:
        raise InputError(f"cannot copy {shape} {dtype} into {out.shape} {out.dtype}")


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Return whether strides, in elements, are those of C order."""
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True
