"""A CUDA driver without a GPU: device memory on the host, streams that do nothing until waited for.

It stands where ``cuda.bindings.driver`` stands, below :class:`mpn.cuda.device.CudaDevice`,
so that all of the project's own code runs. Work is queued by stream and done when somebody waits
for the stream (or for an event on it): whoever forgets to wait reads old bytes. While a stream is
captured its work is recorded instead, and waiting for it is an error, as with the real driver.
"""

from __future__ import annotations

import ctypes
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


class CUdevice_attribute(IntEnum):
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


@dataclass
class _Event:
    stream: int = 0
    is_done: bool = False


@dataclass
class _Stream:
    queue: list[Work] = field(default_factory=list)
    recording: list[Work] | None = None
    is_invalid: bool = False


class FakeDriver(types.ModuleType):
    """The functions of the driver that the project calls.

    Args:
        name: Of the GPU.
        capability: (major, minor).
        memory: Bytes that there are.

    Attributes:
        log: Names of the calls, in order.
        fail: Function -> result that it gives from now on.
    """

    CUresult, CUdevice_attribute = CUresult, CUdevice_attribute
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
        self._handles: dict[int, Any] = {}
        self.log: list[str] = []
        self.fail: dict[str, CUresult] = {}
        for function in [name for name in dir(type(self)) if name.startswith("_cu")]:
            setattr(self, function[1:], self._wrapped(function[1:], getattr(self, function)))

    # What tests look at.

    @property
    def allocated(self) -> int:
        """Bytes that were allocated and not given back."""
        return sum(len(block) for block in self._blocks.values())

    @property
    def open_streams(self) -> int:
        return len(self._streams) - 1

    def array(self, address: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
        """Device memory as a NumPy array that shares it."""
        block, offset = self._find(address)
        count = int(np.prod(shape))
        return np.frombuffer(block, dtype, count, offset).reshape(shape)

    def enqueue(self, stream: int, work: Work) -> None:
        """Start work on a stream: for kernels, and for fake libraries."""
        there = self._streams[stream]
        (there.queue if there.recording is None else there.recording).append(work)

    def pending(self, stream: int) -> int:
        return len(self._streams[stream].queue)

    # The driver.

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.log.append(name)
            if name in self.fail:
                return (self.fail[name],)
            result = function(*arguments)
            if isinstance(result, CUresult):
                return (result,)
            return (CUresult.CUDA_SUCCESS,) if result is None else (CUresult.CUDA_SUCCESS, result)

        return call

    def _cuInit(self, flags: int) -> None: ...

    def _cuDeviceGetCount(self) -> int:
        return 1

    def _cuDeviceGet(self, index: int) -> int:
        return index

    def _cuDeviceGetAttribute(self, attribute: CUdevice_attribute, device: int) -> int:
        return self._capability[attribute - 75]

    def _cuDeviceGetName(self, length: int, device: int) -> bytes:
        return self._name.encode().ljust(length, b"\0")

    def _cuDevicePrimaryCtxRetain(self, device: int) -> str:
        return "primary context"

    def _cuCtxSetCurrent(self, context: str) -> None:
        assert context == "primary context"

    def _cuMemAlloc(self, nbytes: int) -> Any:
        if any(stream.recording is not None for stream in self._streams.values()):
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        if self.allocated + nbytes > self._memory:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY
        address = self._next
        # 0xFF bytes are NaN as floats: memory nobody wrote to shows.
        self._blocks[address] = bytearray(b"\xff" * nbytes)
        self._next += (-(-nbytes // _ALIGNMENT) + 1) * _ALIGNMENT
        return address

    def _cuMemFree(self, address: int) -> Any:
        for stream in list(self._streams):
            self._drain(stream)
        if self._blocks.pop(address, None) is None:
            return CUresult.CUDA_ERROR_INVALID_VALUE
        return None

    def _cuStreamCreate(self, flags: int) -> int:
        assert flags == 1, "a stream that waits for the default one serialises everything"
        handle = 0x1000 + len(self.log)
        self._streams[handle] = _Stream()
        return handle

    def _cuStreamDestroy(self, stream: int) -> None:
        self._drain(stream)
        del self._streams[stream]

    def _cuStreamSynchronize(self, stream: int) -> Any:
        there = self._streams[stream]
        if there.recording is not None:
            there.is_invalid = True
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
        assert flags == 2, "an event for order alone needs no time"
        return _Event()

    def _cuEventRecord(self, event: _Event, stream: int) -> None:
        event.stream, event.is_done = stream, False

        def done() -> None:
            event.is_done = True

        self.enqueue(stream, done)

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
        there = self._streams[stream]
        recorded, there.recording = there.recording, None
        if there.is_invalid:
            there.is_invalid = False
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

    def _cuGraphExecDestroy(self, graph: list[Work]) -> None:
        graph.clear()

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
        assert offset + nbytes <= len(block), "a read behind the end of device memory"
        return bytes(block[offset : offset + nbytes])

    def _write(self, address: int, data: bytes) -> None:
        block, offset = self._find(address)
        assert offset + len(data) <= len(block), "a write behind the end of device memory"
        block[offset : offset + len(data)] = data


def install_driver(monkeypatch: pytest.MonkeyPatch, **given: Any) -> FakeDriver:
    """Put a fake driver in the place of NVIDIA's bindings, for one test."""
    driver = FakeDriver(**given)
    bindings = types.ModuleType("cuda.bindings")
    bindings.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)
    return driver
