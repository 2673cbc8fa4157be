"""The CUDA driver's own calls: streams, events, pinned memory and graphs.

By cuda-bindings, whose names are the C API's and do not change from version to version.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mpn.cuda.api import Event
from mpn.errors import BackendError

_NO_TIMING = 2
_THREAD_LOCAL = "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL"


class Driver:
    """Calls of the driver whose every answer is looked at.

    Args:
        module: ``cuda.bindings.driver``.
    """

    def __init__(self, module: Any) -> None:
        self._module = module

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the driver.

        Returns:
            What it gives beside its status: nothing, one value, or a tuple.

        Raises:
            BackendError: If it fails.
        """
        status, *given = getattr(self._module, function)(*arguments)
        if int(status) != 0:
            raise BackendError(f"{function} failed: {status.name}")
        return given[0] if len(given) == 1 else tuple(given)

    def priority(self, *, high_priority: bool) -> int:
        """The highest or lowest priority that a stream can have here."""
        least, greatest = self.call("cuCtxGetStreamPriorityRange")
        return int(greatest if high_priority else least)

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A page-locked array; given back with its last view."""
        nbytes = max(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize, 1)
        memory = _Pinned(self, nbytes)
        count = int(np.prod(shape, dtype=np.int64))
        flat: npt.NDArray[Any] = np.frombuffer(memoryview(memory.buffer), np.dtype(dtype), count)
        return flat.reshape(shape)

    def captured(self, stream: int, work: Callable[[], None]) -> CudaGraph:
        """What ``work`` starts on a stream, as a graph.

        Raises:
            BackendError: If something in it cannot be captured.
        """
        mode = getattr(self._module.CUstreamCaptureMode, _THREAD_LOCAL)
        self.call("cuStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            # Ends the capture, so that the stream can be used again; what it holds is no good.
            status, graph = self._module.cuStreamEndCapture(stream)
            if int(status) == 0 and graph is not None:
                self._module.cuGraphDestroy(graph)
            raise
        graph = self.call("cuStreamEndCapture", stream)
        try:
            return CudaGraph(self, self.call("cuGraphInstantiate", graph, 0), stream)
        finally:
            self.call("cuGraphDestroy", graph)

    def free(self, function: str, handle: Any) -> None:
        """Give something back. At the interpreter's end the driver may be gone: nothing is left."""
        self._module and getattr(self._module, function)(handle)


class CudaGraph:
    """Implements :class:`mpn.cuda.api.Graph`.

    Args:
        driver: Of the device.
        handle: ``CUgraphExec``, owned from now on.
        stream: Handle of the stream that captured it.
    """

    def __init__(self, driver: Driver, handle: Any, stream: int) -> None:
        self._driver, self._handle, self._stream = driver, handle, stream

    def launch(self) -> None:
        """See :class:`mpn.cuda.api.Graph`."""
        self._driver.call("cuGraphLaunch", self._handle, self._stream)

    def __del__(self) -> None:
        self._driver.free("cuGraphExecDestroy", self._handle)


class CudaEvent:
    """Implements :class:`mpn.cuda.api.Event` by an event.

    Args:
        driver: Of the device.
        stream: That it is recorded on now.
        timing: Whether time is measured.
    """

    def __init__(self, driver: Driver, stream: int, *, timing: bool) -> None:
        self._driver = driver
        self._event = driver.call("cuEventCreate", 0 if timing else _NO_TIMING)
        driver.call("cuEventRecord", self._event, stream)

    def sync(self) -> None:
        """See :class:`mpn.cuda.api.Event`."""
        self._driver.call("cuEventSynchronize", self._event)

    def elapsed_s(self, earlier: Event) -> float:
        """See :class:`mpn.cuda.api.Event`."""
        assert isinstance(earlier, CudaEvent)
        elapsed_ms = self._driver.call("cuEventElapsedTime", earlier._event, self._event)
        return float(elapsed_ms) / 1000

    def let_wait(self, stream: int) -> None:
        """Let a stream wait for it."""
        self._driver.call("cuStreamWaitEvent", stream, self._event, 0)

    def __del__(self) -> None:
        event = getattr(self, "_event", None)
        if event is not None:
            self._driver.free("cuEventDestroy", event)


class _Pinned:
    """Page-locked memory that lives as long as ``buffer``."""

    def __init__(self, driver: Driver, nbytes: int) -> None:
        address = int(driver.call("cuMemHostAlloc", nbytes, 0))
        self.buffer = (ctypes.c_uint8 * nbytes).from_address(address)
        # NumPy's views keep the buffer, and the buffer keeps this.
        self.buffer._owner = _Owner(driver, address)  # type: ignore[attr-defined]


class _Owner:
    def __init__(self, driver: Driver, address: int) -> None:
        self._driver, self._address = driver, address

    def __del__(self) -> None:
        self._driver.free("cuMemFreeHost", self._address)
