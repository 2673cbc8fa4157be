"""Emulate the CUDA driver in host memory.

It replaces ``cuda.bindings.driver`` and ``cuda.core`` below :class:`mpn.cuda.device.CudaDevice`, so
that all code of the project runs. Work is queued per stream and runs when the host waits for the
stream or an event; without the wait the host reads old bytes. While a stream is captured, its work
is recorded instead, and a wait for it is an error, as with the real driver.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

_ALIGNMENT = 256
_FIRST_ADDRESS = 0x7F0000000000
Work = Callable[[], None]


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class CUstreamCaptureStatus(IntEnum):
    CU_STREAM_CAPTURE_STATUS_NONE = 0
    CU_STREAM_CAPTURE_STATUS_ACTIVE = 1


class CUstreamCaptureMode(IntEnum):
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1


@dataclass
class _Event:
    stream: int = 0
    is_done: bool = False
    is_timed: bool = False


@dataclass
class _Stream:
    queue: list[Work] = field(default_factory=list)
    recording: list[Work] | None = None
    is_invalid: bool = False


class FakeDriver(types.ModuleType):
    """Functions of the driver that the project calls.

    Args:
        name: Name of the GPU.
        capability: (major, minor).
        memory: Size of the device memory in bytes.

    Attributes:
        log: Names of the calls, in order.
        fail: Function -> result that it returns from now on.
    """

    CUresult = CUresult
    CUstreamCaptureStatus, CUstreamCaptureMode = CUstreamCaptureStatus, CUstreamCaptureMode

    def __init__(
        self,
        name: str = "Fake H200",
        capability: tuple[int, int] = (9, 0),
        memory: int = 1 << 30,
    ) -> None:
        super().__init__("cuda.bindings.driver")
        self._name, self._capability, self._memory = name, capability, memory
        self._blocks: dict[int, bytearray] = {}
        self._next = _FIRST_ADDRESS
        self._streams: dict[int, _Stream] = {0: _Stream()}
        self._stream_handles = itertools.count(0x1000)
        self._host: dict[int, Any] = {}
        self.log: list[str] = []
        self.priorities: list[int] = []
        self.launches: list[tuple[Any, ...]] = []
        self.fail: dict[str, CUresult] = {}
        for function in [name for name in dir(type(self)) if name.startswith("_cu")]:
            setattr(self, function[1:], self._wrapped(function[1:], getattr(self, function)))

    # For assertions in tests.

    @property
    def allocated(self) -> int:
        """Bytes that are allocated and not freed."""
        return sum(len(block) for block in self._blocks.values())

    @property
    def open_streams(self) -> int:
        return len(self._streams) - 1

    def array(self, address: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
        """Return a NumPy array that shares device memory."""
        block, offset = self._find(address)
        count = int(np.prod(shape))
        return np.frombuffer(block, dtype, count, offset).reshape(shape)

    def enqueue(self, stream: int, work: Work) -> None:
        """Enqueue work on a stream, for kernels and fake libraries."""
        target = self._streams[stream]
        (target.queue if target.recording is None else target.recording).append(work)

    def pending(self, stream: int) -> int:
        return len(self._streams[stream].queue)

    # Functions of the driver.

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.log.append(name)
            if name in self.fail:
                return (self.fail[name],)
            result = function(*arguments)
            if isinstance(result, CUresult):
                return (result,)
            if name == "cuCtxGetStreamPriorityRange":
                return (CUresult.CUDA_SUCCESS, *result)
            return (CUresult.CUDA_SUCCESS,) if result is None else (CUresult.CUDA_SUCCESS, result)

        return call

    def _cuInit(self, flags: int) -> None: ...

    def _cuDeviceGetCount(self) -> int:
        return 1

    def _cuCtxSetCurrent(self) -> None: ...

    def _cuCtxSynchronize(self) -> None:
        for stream in list(self._streams):
            self._drain(stream)

    def _cuCtxGetStreamPriorityRange(self) -> tuple[int, int]:
        return (0, -5)

    def _cuMemAllocHost(self, nbytes: int) -> int:
        memory = ctypes.create_string_buffer(nbytes)
        self._host[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def _cuMemFreeHost(self, address: int) -> None:
        del self._host[address]

    def _cuMemAlloc(self, nbytes: int) -> Any:
        if any(stream.recording is not None for stream in self._streams.values()):
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        if self.allocated + nbytes > self._memory:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY
        address = self._next
        # 0xFF bytes are NaN as floats, so reads of unwritten memory are detected.
        self._blocks[address] = bytearray(b"\xff" * nbytes)
        self._next += (-(-nbytes // _ALIGNMENT) + 1) * _ALIGNMENT
        return address

    def _cuMemFree(self, address: int, stream: int) -> Any:
        if stream in self._streams:  # garbage collection may destroy the stream first
            # Freed in stream order: later work of another stream finds no memory.
            self._drain(stream)
        if self._blocks.pop(address, None) is None:
            return CUresult.CUDA_ERROR_INVALID_VALUE
        return None

    def _cuStreamCreate(self, flags: int, priority: int) -> int:
        assert flags == 1, "a stream that waits for the default one serialises everything"
        self.priorities.append(priority)
        handle = next(self._stream_handles)
        self._streams[handle] = _Stream()
        return handle

    def _cuStreamDestroy(self, stream: int) -> None:
        self._drain(stream)
        del self._streams[stream]

    def _cuStreamSynchronize(self, stream: int) -> Any:
        target = self._streams[stream]
        if target.recording is not None:
            target.is_invalid = True
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        self._drain(stream)
        return None

    def _cuMemcpyHtoDAsync(self, target: int, source: int, nbytes: int, stream: int) -> None:
        taken = ctypes.string_at(source, nbytes)  # pageable memory: copied before it returns
        self.enqueue(stream, lambda: self._write(target, taken))

    def _cuMemcpyDtoHAsync(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self.enqueue(
            stream, lambda: ctypes.memmove(target, self._read(source, nbytes), nbytes) and None
        )

    def _cuMemcpyDtoDAsync(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self.enqueue(stream, lambda: self._write(target, self._read(source, nbytes)))

    def _cuMemsetD8Async(self, target: int, value: int, nbytes: int, stream: int) -> None:
        self.enqueue(stream, lambda: self._write(target, bytes([value]) * nbytes))

    def _cuEventCreate(self, flags: int) -> _Event:
        return _Event(is_timed=flags == 0)

    def _cuEventRecord(self, event: _Event, stream: int) -> None:
        event.stream, event.is_done = stream, False

        def done() -> None:
            event.is_done = True

        self.enqueue(stream, done)

    def _cuEventSynchronize(self, event: _Event) -> None:
        queue = self._streams[event.stream].queue
        while not event.is_done:
            queue.pop(0)()

    def _cuEventElapsedTime(self, start: _Event, end: _Event) -> Any:
        if not (start.is_timed and end.is_timed and start.is_done and end.is_done):
            return CUresult.CUDA_ERROR_INVALID_VALUE
        return 2.5

    def _cuStreamWaitEvent(self, stream: int, event: _Event, flags: int) -> None:
        def wait() -> None:
            before = self._streams[event.stream].queue
            while not event.is_done:
                before.pop(0)()

        self.enqueue(stream, wait)

    def _cuEventDestroy(self, event: _Event) -> None: ...

    def _cuStreamIsCapturing(self, stream: int) -> CUstreamCaptureStatus:
        return CUstreamCaptureStatus(self._streams[stream].recording is not None)

    def _cuStreamBeginCapture(self, stream: int, mode: CUstreamCaptureMode) -> Any:
        if stream == 0:  # the default stream cannot be captured
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        self._streams[stream].recording = []
        return None

    def _cuStreamEndCapture(self, stream: int) -> Any:
        target = self._streams[stream]
        recorded, target.recording = target.recording, None
        if target.is_invalid:
            target.is_invalid = False
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
        return tuple(recorded or ())

    def _cuGraphInstantiate(self, graph: tuple[Work, ...], flags: int) -> list[Work]:
        return list(graph)

    def _cuGraphLaunch(self, graph: list[Work], stream: int) -> Any:
        if self._streams[stream].recording is not None:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        for work in graph:
            self.enqueue(stream, work)
        return None

    def _cuGraphDestroy(self, graph: Any) -> None: ...

    def _cuGraphExecDestroy(self, graph: list[Work]) -> None: ...

    def _drain(self, stream: int) -> None:
        queue = self._streams[stream].queue
        while queue:
            queue.pop(0)()

    def _find(self, address: int) -> tuple[bytearray, int]:
        for start, block in self._blocks.items():
            if start <= address < start + max(len(block), 1):
                return block, address - start
        raise AssertionError(f"address {address:#x} is no device memory")

    def _read(self, address: int, nbytes: int) -> bytes:
        block, offset = self._find(address)
        assert offset + nbytes <= len(block), "a read after the end of device memory"
        return bytes(block[offset : offset + nbytes])

    def _write(self, address: int, data: bytes) -> None:
        block, offset = self._find(address)
        assert offset + len(data) <= len(block), "a write after the end of device memory"
        block[offset : offset + len(data)] = data


class CUDAError(Exception):
    """Error of cuda.core."""


@dataclass
class StreamOptions:
    nonblocking: bool = True
    priority: int | None = None


@dataclass
class EventOptions:
    timing_enabled: bool = False


class FakeCore(types.ModuleType):
    """Classes of ``cuda.core`` that the project uses, over a fake driver."""

    StreamOptions, EventOptions = StreamOptions, EventOptions

    def __init__(self, driver: FakeDriver) -> None:
        super().__init__("cuda.core")
        self.driver = driver
        self.LEGACY_DEFAULT_STREAM = _CoreStream(self, 0, is_owned=False)
        self.Stream = types.SimpleNamespace(
            from_handle=lambda handle: _CoreStream(self, handle, is_owned=False)
        )

    def call(self, function: str, *arguments: Any) -> Any:
        status, *values = getattr(self.driver, function)(*arguments)
        if status:
            raise CUDAError(f"{status.name}: the API call failed")
        return values[0] if values else None

    def Device(self, index: int) -> _CoreDevice:
        return _CoreDevice(self, index)

    def LegacyPinnedMemoryResource(self) -> _PinnedResource:
        return _PinnedResource(self)

    # Kernels are recorded only; tests/emulation/cuda_shim runs them.

    LaunchConfig = types.SimpleNamespace

    class ObjectCode:
        @staticmethod
        def from_cubin(cubin: bytes, *, name: str) -> Any:
            return types.SimpleNamespace(get_kernel=lambda kernel: (cubin, name, kernel))

    def launch(self, stream: _CoreStream, config: Any, kernel: Any, *arguments: Any) -> None:
        self.driver.launches.append((stream, config, kernel, arguments))


class _CoreDevice:
    def __init__(self, core: FakeCore, index: int) -> None:
        self._core = core
        core.call("cuInit", 0)
        count = core.call("cuDeviceGetCount")
        if index >= count:
            raise ValueError(f"there are {count} devices")
        self.name = core.driver._name
        self.arch = "".join(str(part) for part in core.driver._capability)

    def set_current(self) -> None:
        self._core.call("cuCtxSetCurrent")

    def sync(self) -> None:
        self._core.call("cuCtxSynchronize")

    def create_stream(self, obj: Any = None, options: StreamOptions | None = None) -> _CoreStream:
        if obj is not None:
            return _CoreStream(self._core, obj.__cuda_stream__()[1], is_owned=False)
        options = options or StreamOptions()
        handle = self._core.call("cuStreamCreate", int(options.nonblocking), options.priority or 0)
        return _CoreStream(self._core, handle, is_owned=True)

    def allocate(self, size: int, *, stream: _CoreStream) -> _CoreBuffer:
        assert size > 0
        return _CoreBuffer(self._core, self._core.call("cuMemAlloc", size), size, stream)


class _CoreStream:
    def __init__(self, core: FakeCore, handle: int, *, is_owned: bool) -> None:
        self._core, self.handle, self._is_owned = core, handle, is_owned

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, self.handle)

    def record(self, event: Any = None, options: EventOptions | None = None) -> _CoreEvent:
        assert event is None
        is_timed = options is not None and options.timing_enabled
        recorded = _CoreEvent(self._core, self._core.call("cuEventCreate", 0 if is_timed else 2))
        self._core.call("cuEventRecord", recorded.handle, self.handle)
        return recorded

    def wait(self, event: _CoreEvent) -> None:
        self._core.call("cuStreamWaitEvent", self.handle, event.handle, 0)

    def sync(self) -> None:
        self._core.call("cuStreamSynchronize", self.handle)

    def create_graph_builder(self) -> _GraphBuilder:
        return _GraphBuilder(self._core, self)

    def __del__(self) -> None:
        if self._is_owned:
            self._core.driver.cuStreamDestroy(self.handle)


class _CoreEvent:
    def __init__(self, core: FakeCore, handle: Any) -> None:
        self._core, self.handle = core, handle

    def sync(self) -> None:
        self._core.call("cuEventSynchronize", self.handle)

    def __sub__(self, earlier: _CoreEvent) -> float:
        elapsed_ms: float = self._core.call("cuEventElapsedTime", earlier.handle, self.handle)
        return elapsed_ms


class _CoreBuffer:
    def __init__(self, core: FakeCore, handle: int, size: int, stream: _CoreStream) -> None:
        self._core, self.handle, self.size, self._stream = core, handle, size, stream

    def fill(self, value: int, *, stream: _CoreStream) -> None:
        self._core.call("cuMemsetD8Async", self.handle, value, self.size, stream.handle)

    def __del__(self) -> None:
        self._core.driver.cuMemFree(self.handle, self._stream.handle)


class _PinnedResource:
    def __init__(self, core: FakeCore) -> None:
        self._core = core

    def allocate(self, size: int, *, stream: Any = None) -> _PinnedBuffer:
        return _PinnedBuffer(self._core, self._core.call("cuMemAllocHost", size))


class _PinnedBuffer:
    def __init__(self, core: FakeCore, handle: int) -> None:
        self._core, self.handle = core, handle

    def __del__(self) -> None:
        self._core.driver.cuMemFreeHost(self.handle)


class _GraphBuilder:
    def __init__(self, core: FakeCore, stream: _CoreStream) -> None:
        self._core, self._stream = core, stream
        self._captured: Any = None
        self._is_building = False

    def begin_building(self, mode: str = "relaxed") -> _GraphBuilder:
        assert mode == "thread_local", "another thread may allocate meanwhile"
        self._core.call(
            "cuStreamBeginCapture",
            self._stream.handle,
            CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
        )
        self._is_building = True
        return self

    def end_building(self) -> _GraphBuilder:
        assert self._is_building
        self._is_building = False
        self._captured = self._core.call("cuStreamEndCapture", self._stream.handle)
        return self

    def complete(self) -> _CoreGraph:
        assert not self._is_building
        return _CoreGraph(self._core, self._core.call("cuGraphInstantiate", self._captured, 0))

    def close(self) -> None:
        assert not self._is_building, "the stream would stay in the capture"
        self._core.driver.cuGraphDestroy(self._captured)


class _CoreGraph:
    def __init__(self, core: FakeCore, handle: Any) -> None:
        self._core, self._handle = core, handle

    def launch(self, stream: _CoreStream) -> None:
        self._core.call("cuGraphLaunch", self._handle, stream.handle)

    def __del__(self) -> None:
        self._core.driver.cuGraphExecDestroy(self._handle)


def install_driver(monkeypatch: pytest.MonkeyPatch, **given: Any) -> FakeDriver:
    """Replace cuda.bindings.driver and cuda.core by fakes during a test."""
    driver = FakeDriver(**given)
    bindings = types.ModuleType("cuda.bindings")
    bindings.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)
    monkeypatch.setitem(sys.modules, "cuda.core", FakeCore(driver))
    return driver
