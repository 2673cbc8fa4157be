"""Parts of a frame as CUDA graphs, and their times by events."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from mpn.cuda.api import Event, Graph, Stream


class GraphCache:
    """Captures work of one stream as a graph when it runs for the second time.

    The first time it runs uncaptured: kernels are loaded then, and engines allocate.

    Args:
        stream: Runs the work.
        is_capturing: False runs everything uncaptured.
    """

    def __init__(self, stream: Stream, *, is_capturing: bool) -> None:
        self._stream = stream
        self._is_capturing = is_capturing
        self._warm: set[Hashable] = set()
        self._graphs: dict[Hashable, Graph] = {}

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Run ``work``, which enqueues the same on the same addresses for the same key."""
        if key in self._graphs:
            self._graphs[key].launch()
        elif self._is_capturing and key in self._warm:
            self._graphs[key] = self._stream.capture(work)
            self._graphs[key].launch()
        else:
            work()
            self._warm.add(key)

    def clear(self) -> None:
        """Drop all graphs: buffers or engines will change."""
        self._warm.clear()
        self._graphs.clear()


class StreamTimer:
    """Device time by stage, on one stream.

    Args:
        stream: Runs the stages.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._spans: list[tuple[str, Event, Event]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what the body enqueues."""
        start = self._stream.record(timing=True)
        yield
        self._spans.append((name, start, self._stream.record(timing=True)))

    def taken(self) -> dict[str, float]:
        """Return seconds by stage since the last call, after the host has waited."""
        spans, self._spans = self._spans, []
        seconds: dict[str, float] = {}
        for name, start, end in spans:
            seconds[name] = seconds.get(name, 0.0) + end.elapsed_s(start)
        return seconds
