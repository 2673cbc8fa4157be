"""Emulate streams that run their work early, late or in a random valid order.

Work stays in the queue of its stream until the host waits for it. If a wait for an event is missing
before a read or write of a buffer, the result is wrong in one of the orders.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mpn._common.closeable import Closeable
from mpn.cuda.api import Graph
from mpn.cuda.array import DeviceArray, checked_arguments
from mpn.engines.base import Engine, EngineBuffers
from mpn.engines.spec import EngineSpec
from mpn.errors import InputError
from mpn.types import Float32Array
from tests.emulation.cuda_shim.device import ShimDevice, host_view
from tests.emulation.cuda_shim.shim import Shim

Order = Literal["at once", "late", "random"]
"""``late`` runs only the work that the host waits for, and the work before it."""


@dataclass
class ShimEvent:
    scheduler: Scheduler
    stream: int
    is_reached: bool = False

    def sync(self) -> None:
        self.scheduler.host_waits += 1
        self.scheduler.log.append(("host", "sync"))
        self.scheduler.run_until(self)

    def elapsed_s(self, earlier: ShimEvent) -> float:
        assert self.is_reached
        assert earlier.is_reached
        return 0.001


@dataclass
class Scheduler:
    """State shared by all streams of a device.

    Attributes:
        log: (stream, name) of all started work, in order.
        host_waits: Number of waits of the host.
        allocations: Number of arrays created.
    """

    order: Order = "at once"
    seed: int = 0
    queues: dict[int, deque[tuple[str, Any]]] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)
    done: list[tuple[int, str]] = field(default_factory=list)
    host_waits: int = 0
    allocations: int = 0
    capturing: tuple[int, list[tuple[str, Any]]] | None = None
    graphs: int = 0

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def put(self, stream: int, what: str, work: Callable[[], None]) -> None:
        self.log.append((str(stream), what))
        if self.capturing is not None and self.capturing[0] == stream:
            self.capturing[1].append((what, work))
            return
        self.queues[stream].append((what, work))
        if self.order == "at once":
            while self.queues[stream]:
                assert self._step(stream), "in program order no work waits for an event"

    def put_wait(self, stream: int, event: ShimEvent) -> None:
        assert self.capturing is None, "a wait for an event outside the capture ends it"
        self.log.append((str(stream), "wait"))
        if not event.is_reached:
            self.queues[stream].append(("wait", event))

    def run_until(self, event: ShimEvent) -> None:
        while not event.is_reached:
            if self.order == "random":
                ready = [stream for stream in self.queues if self._is_ready(stream)]
                assert ready, "the streams wait for each other"
                self._step(int(self._random.choice(ready)))
            else:
                self._serve(event.stream)

    def _serve(self, stream: int) -> None:
        what, work = self.queues[stream][0]
        if isinstance(work, ShimEvent) and what == "wait":
            if not work.is_reached:
                self.run_until(work)
            self.queues[stream].popleft()
        else:
            self._step(stream)

    def _is_ready(self, stream: int) -> bool:
        if not self.queues[stream]:
            return False
        what, work = self.queues[stream][0]
        return what != "wait" or work.is_reached

    def _step(self, stream: int) -> bool:
        if not self._is_ready(stream):
            return False
        what, work = self.queues[stream].popleft()
        if what == "record":
            work.is_reached = True
        elif what != "wait":
            self.done.append((stream, what))
            work()
        return True


class ShimStream(ShimDevice):
    """Implement :class:`mpn.cuda.api.Stream` on host memory.

    Args:
        shim: Runs the kernels.
        scheduler: Shared by the streams of a device.
    """

    def __init__(self, shim: Shim, scheduler: Scheduler | None = None) -> None:
        super().__init__(shim)
        self.scheduler = scheduler or Scheduler()
        self._address = len(self.scheduler.queues) + 1
        self.scheduler.queues[self._address] = deque()

    @property
    def address(self) -> int:
        return self._address

    def create_stream(self, *, high_priority: bool = False) -> ShimStream:
        stream = type(self)(self._shim, self.scheduler)
        stream.launched = self.launched
        return stream

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        assert self.scheduler.capturing is None
        self.scheduler.allocations += 1
        return super().empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        array = self.empty(shape, dtype)
        self._put("zeros", lambda: host_view(array).fill(0))
        return array

    def upload(self, array: npt.NDArray[Any], out: DeviceArray | None = None) -> DeviceArray:
        assert self.scheduler.capturing is None
        out = self.empty(array.shape, array.dtype) if out is None else out
        assert (out.shape, out.dtype) == (array.shape, array.dtype)
        taken, to = array.copy(), out
        self._put("upload", lambda: np.copyto(host_view(to), taken))
        return out

    def download(self, array: DeviceArray) -> npt.NDArray[Any]:
        self.record().sync()
        return super().download(array)

    def copy(self, source: DeviceArray, to: DeviceArray) -> None:
        self._put("copy", lambda: ShimDevice.copy(self, source, to))

    def launch(self, name: str, **arguments: DeviceArray | float | None) -> None:
        checked_arguments(self._shim.signatures[name], arguments)
        self._put(name, lambda: ShimDevice.launch(self, name, **arguments))

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        return (
            np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize, 0xCD, np.uint8)
            .view(dtype)
            .reshape(shape)
        )

    def upload_async(self, source: npt.NDArray[Any], to: DeviceArray) -> None:
        self._put("upload_async", lambda: np.copyto(host_view(to), source))

    def download_async(self, source: DeviceArray, to: npt.NDArray[Any]) -> None:
        assert source.shape == to.shape
        self._put("download_async", lambda: np.copyto(to, host_view(source)))

    def record(self, *, timing: bool = False) -> ShimEvent:
        assert self.scheduler.capturing is None
        event = ShimEvent(self.scheduler, self._address)
        self.scheduler.queues[self._address].append(("record", event))
        if self.scheduler.order == "at once":
            self.scheduler.run_until(event)
        return event

    def wait(self, event: Any) -> None:
        self.scheduler.put_wait(self._address, event)

    def capture(self, work: Callable[[], None]) -> Graph:
        taken: list[tuple[str, Any]] = []
        self.scheduler.capturing = (self._address, taken)
        try:
            work()
        finally:
            self.scheduler.capturing = None
        self.scheduler.graphs += 1
        return ShimGraph(self, taken)

    def array_from(self, foreign: Any) -> DeviceArray:
        array = getattr(foreign, "array", None)
        if not isinstance(array, DeviceArray):
            raise InputError("the array is in the host's memory: upload it")
        return array

    def _put(self, what: str, work: Callable[[], None]) -> None:
        self.scheduler.put(self._address, what, work)


@dataclass
class ShimGraph:
    stream: ShimStream
    captured: list[tuple[str, Any]]

    def launch(self) -> None:
        for what, work in self.captured:
            self.stream._put(what, work)


class OnDevice:
    """Device array of another library, with the dtype names of that library."""

    def __init__(self, stream: ShimStream, values: npt.NDArray[Any]) -> None:
        self.array = stream.upload(values)
        stream.record().sync()
        self.shape, self.dtype = list(values.shape), f"torch.{values.dtype}"
        self.__cuda_array_interface__ = self.array.__cuda_array_interface__


class ShimEngine(Closeable):
    """DeviceEngine that runs a host engine when its stream reaches the call.

    Args:
        engine: Runs the network.
        stream: Stream of the device.
        objects: Rows of the buffers.
        dtype: Dtype of the inputs.
        supports_graph_capture: Value of the property.
    """

    def __init__(
        self,
        engine: Engine,
        stream: ShimStream,
        *,
        objects: int = 8,
        dtype: str = "float32",
        supports_graph_capture: bool = True,
    ) -> None:
        self.engine, self._scheduler = engine, stream.scheduler
        self._can = supports_graph_capture

        def buffer(shape: tuple[int | str, ...], dtype: str) -> DeviceArray:
            sizes = tuple(objects if isinstance(size, str) else size for size in shape)
            return ShimDevice.empty(stream, sizes, dtype)

        self._rows = any(isinstance(size, str) for size in engine.spec.inputs[0].shape)
        self._inputs = {t.name: buffer(t.shape, dtype) for t in engine.spec.inputs}
        self._outputs = {t.name: buffer(t.shape, "float32") for t in engine.spec.outputs}
        self.prepared: list[tuple[int, int]] = []

    @property
    def spec(self) -> EngineSpec:
        return self.engine.spec

    @property
    def backend(self) -> str:
        return "shim"

    @property
    def supports_graph_capture(self) -> bool:
        return self._can

    def buffers(self, objects: int = 1) -> EngineBuffers:
        def rows(arrays: dict[str, DeviceArray]) -> dict[str, DeviceArray]:
            if not self._rows:
                return arrays
            return {name: array.part(0, objects) for name, array in arrays.items()}

        return EngineBuffers(inputs=rows(self._inputs), outputs=rows(self._outputs))

    def prepare(self, stream: int, objects: int = 1) -> None:
        self.prepared.append((stream, objects))

    def enqueue(self, stream: int, objects: int = 1) -> EngineBuffers:
        buffers = self.buffers(objects)

        def work() -> None:
            given = {
                name: host_view(array).astype(np.float32)  # type: ignore[arg-type]
                for name, array in buffers.inputs.items()
            }
            for name, output in self.engine.run(given).items():
                host_view(buffers.outputs[name])[...] = output  # type: ignore[arg-type]

        self._scheduler.put(stream, self.spec.role, work)
        return buffers

    def infer_on_device(self, inputs: Any, stream: int) -> Any:
        raise NotImplementedError

    def run(self, inputs: dict[str, Float32Array]) -> dict[str, Float32Array]:
        self._scheduler.log.append(("host", f"run {self.spec.role}"))
        return self.engine.run(inputs)

    def close(self) -> None:
        self.engine.close()
