"""Parts of a frame that are the same in every frame: started as graphs, and timed by events."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import numpy as np

from mpn.cuda.api import Event, Graph, Stream
from mpn.cuda.array import DeviceArray
from mpn.engines.base import DeviceEngine, Engine
from mpn.errors import EngineError
from mpn.runtime.device.images import Dtype


class GraphCache:
    """Work on one stream that becomes a graph when it comes for the second time.

    The first time it runs as it is: kernels are loaded then, and engines make what they need.

    Args:
        stream: Where it runs.
        is_capturing: False runs everything as it is.
    """

    def __init__(self, stream: Stream, *, is_capturing: bool) -> None:
        self._stream = stream
        self._is_capturing = is_capturing
        self._seen: set[Hashable] = set()
        self._graphs: dict[Hashable, Graph] = {}

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Start ``work``, which starts the same on the same addresses for the same key."""
        if key in self._graphs:
            self._graphs[key].launch()
        elif self._is_capturing and key in self._seen:
            self._graphs[key] = self._stream.capture(work)
            self._graphs[key].launch()
        else:
            work()
            self._seen.add(key)

    def clear(self) -> None:
        """Forget the graphs: buffers or engines are others from now on."""
        self._seen.clear()
        self._graphs.clear()


class StreamTimer:
    """Device time by stage, on one stream.

    Args:
        stream: Whose.
        is_running: False takes no times, for what is captured.
    """

    def __init__(self, stream: Stream, *, is_running: bool = True) -> None:
        self._stream = stream
        self._is_running = is_running
        self._spans: list[tuple[str, Event, Event]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is started inside."""
        if not self._is_running:
            yield
            return
        start = self._stream.record(timing=True)
        yield
        self._spans.append((name, start, self._stream.record(timing=True)))

    def taken(self) -> dict[str, float]:
        """Seconds by stage since this was last asked; the host has waited for all of them."""
        spans, self._spans = self._spans, []
        seconds: dict[str, float] = {}
        for name, start, end in spans:
            seconds[name] = seconds.get(name, 0.0) + end.elapsed_s(start)
        return seconds


def device_engine(engine: Engine, *, object_id: int | None = None) -> DeviceEngine:
    """An engine, once it is known that it takes device memory.

    Args:
        engine: Any.
        object_id: The object whose own engine it is, for the message.

    Raises:
        EngineError: If it takes host memory only.
    """
    if isinstance(engine, DeviceEngine):
        return engine
    whose = "" if object_id is None else f" of object {object_id}"
    raise EngineError(
        f"the {engine.spec.role} engine{whose} runs on {engine.backend} and takes arrays of the "
        "host only, but the frame is on a device: use backend 'cpu' for all, or leave that network "
        "out"
    )


def array_from_tensor(tensor: DeviceArray) -> DeviceArray:
    """An engine's buffer as the kernels take it; it belongs to the engine."""
    return DeviceArray(tensor.address, tensor.shape, tensor.dtype, getattr(tensor, "owner", tensor))


def dtype_name(buffer: DeviceArray) -> Dtype:
    """Dtype of an engine's input."""
    return "float16" if buffer.dtype == np.float16 else "float32"


def network_hw(engine: Engine) -> tuple[int, int]:
    """(height, width) of the frames that a flow or OSVOS engine takes.

    Raises:
        EngineError: If they are not fixed.
    """
    height, width = engine.spec.inputs[0].shape[2:]
    if not isinstance(height, int) or not isinstance(width, int):
        raise EngineError(
            f"the {engine.spec.role} engine must have a fixed size, this one takes {height}x{width}"
        )
    return height, width
