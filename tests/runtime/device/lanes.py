"""Lanes whose work is done late, early or in any order that their marks allow.

What a lane is given is kept until somebody waits for it. A buffer that is written or read without
the mark that should stand before it is then wrong in one of the orders.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mpn._common.closeable import Closeable
from mpn.engines.base import Engine, EngineBuffers
from mpn.engines.spec import EngineSpec
from mpn.errors import InputError
from mpn.runtime.ops.cuda_array import DeviceArray, checked_arguments
from mpn.runtime.ops.cuda_lane import Replay
from mpn.types import Float32Array
from tests.runtime.ops.cuda_shim.device import ShimDevice, host_view
from tests.runtime.ops.cuda_shim.shim import Shim

Order = Literal["at once", "late", "random"]
"""``late`` does only what is waited for, and what that must follow."""


@dataclass
class ShimMark:
    scheduler: Scheduler
    lane: int
    is_reached: bool = False

    def wait(self) -> None:
        self.scheduler.host_waits += 1
        self.scheduler.log.append(("host", "wait"))
        self.scheduler.run_until(self)

    def seconds_since(self, earlier: ShimMark) -> float:
        assert self.is_reached
        assert earlier.is_reached
        return 0.001


@dataclass
class Scheduler:
    """What all lanes of one device share.

    Attributes:
        log: (lane, what) of everything started, in the order in which it was.
        host_waits: How often the host has waited.
        allocations: Arrays made so far.
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

    def put(self, lane: int, what: str, work: Callable[[], None]) -> None:
        self.log.append((str(lane), what))
        if self.capturing is not None and self.capturing[0] == lane:
            self.capturing[1].append((what, work))
            return
        self.queues[lane].append((what, work))
        if self.order == "at once":
            while self.queues[lane]:
                assert self._step(lane), "in program order nothing has to be waited for"

    def put_wait(self, lane: int, mark: ShimMark) -> None:
        assert self.capturing is None, "waiting for what is not captured ends a capture"
        self.log.append((str(lane), "follow"))
        if not mark.is_reached:
            self.queues[lane].append(("follow", mark))

    def run_until(self, mark: ShimMark) -> None:
        while not mark.is_reached:
            if self.order == "random":
                ready = [lane for lane in self.queues if self._is_ready(lane)]
                assert ready, "the lanes wait for each other"
                self._step(int(self._random.choice(ready)))
            else:
                self._serve(mark.lane)

    def _serve(self, lane: int) -> None:
        what, work = self.queues[lane][0]
        if isinstance(work, ShimMark) and what == "follow":
            if not work.is_reached:
                self.run_until(work)
            self.queues[lane].popleft()
        else:
            self._step(lane)

    def _is_ready(self, lane: int) -> bool:
        if not self.queues[lane]:
            return False
        what, work = self.queues[lane][0]
        return what != "follow" or work.is_reached

    def _step(self, lane: int) -> bool:
        if not self._is_ready(lane):
            return False
        what, work = self.queues[lane].popleft()
        if what == "mark":
            work.is_reached = True
        elif what != "follow":
            self.done.append((lane, what))
            work()
        return True


class ShimLane(ShimDevice):
    """Implements :class:`mpn.runtime.ops.cuda_lane.Lane` on host memory.

    Args:
        shim: The kernels.
        scheduler: Shared by the lanes of a device.
    """

    def __init__(self, shim: Shim, scheduler: Scheduler | None = None) -> None:
        super().__init__(shim)
        self.scheduler = scheduler or Scheduler()
        self._address = len(self.scheduler.queues) + 1
        self.scheduler.queues[self._address] = deque()
        self.ignored_follows = 0

    @property
    def address(self) -> int:
        return self._address

    def beside(self, *, is_urgent: bool = False) -> ShimLane:
        lane = type(self)(self._shim, self.scheduler)
        lane.launched = self.launched
        return lane

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
        self.mark().wait()
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

    def send(self, source: npt.NDArray[Any], to: DeviceArray) -> None:
        self._put("send", lambda: np.copyto(host_view(to), source))

    def fetch(self, source: DeviceArray, to: npt.NDArray[Any]) -> None:
        assert source.shape == to.shape
        self._put("fetch", lambda: np.copyto(to, host_view(source)))

    def mark(self, *, is_timed: bool = False) -> ShimMark:
        assert self.scheduler.capturing is None
        mark = ShimMark(self.scheduler, self._address)
        self.scheduler.queues[self._address].append(("mark", mark))
        if self.scheduler.order == "at once":
            self.scheduler.run_until(mark)
        return mark

    def follow(self, mark: Any) -> None:
        self.scheduler.put_wait(self._address, mark)

    def capture(self, work: Callable[[], None]) -> Replay:
        taken: list[tuple[str, Any]] = []
        self.scheduler.capturing = (self._address, taken)
        try:
            work()
        finally:
            self.scheduler.capturing = None
        self.scheduler.graphs += 1

        def replay() -> None:
            for what, one in taken:
                self._put(what, one)

        return replay

    def array_from(self, foreign: Any) -> DeviceArray:
        array = getattr(foreign, "array", None)
        if not isinstance(array, DeviceArray):
            raise InputError("the array is in the host's memory: upload it")
        return array

    def _put(self, what: str, work: Callable[[], None]) -> None:
        self.scheduler.put(self._address, what, work)


class OnDevice:
    """An array of another library that says it is on a device, in that library's own words."""

    def __init__(self, lane: ShimLane, values: npt.NDArray[Any]) -> None:
        self.array = lane.upload(values)
        lane.mark().wait()
        self.shape, self.dtype = list(values.shape), f"torch.{values.dtype}"
        self.__cuda_array_interface__ = self.array.__cuda_array_interface__


class ShimEngine(Closeable):
    """A DeviceEngine: any engine of the host, run when its lane has come so far.

    Args:
        engine: Runs the network.
        lane: Of the device.
        objects: Rows of the buffers.
        dtype: Of the inputs.
        can_be_captured: What it says.
    """

    def __init__(
        self,
        engine: Engine,
        lane: ShimLane,
        *,
        objects: int = 8,
        dtype: str = "float32",
        can_be_captured: bool = True,
    ) -> None:
        self.engine, self._scheduler = engine, lane.scheduler
        self._can = can_be_captured

        def buffer(shape: tuple[int | str, ...], dtype: str) -> DeviceArray:
            sizes = tuple(objects if isinstance(size, str) else size for size in shape)
            return ShimDevice.empty(lane, sizes, dtype)

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
    def can_be_captured(self) -> bool:
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
            for name, answer in self.engine.run(given).items():
                host_view(buffers.outputs[name])[...] = answer  # type: ignore[arg-type]

        self._scheduler.put(stream, self.spec.role, work)
        return buffers

    def infer_on_device(self, inputs: Any, stream: int) -> Any:
        raise NotImplementedError

    def run(self, inputs: dict[str, Float32Array]) -> dict[str, Float32Array]:
        self._scheduler.log.append(("host", f"run {self.spec.role}"))
        return self.engine.run(inputs)

    def close(self) -> None:
        self.engine.close()
