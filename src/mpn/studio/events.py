"""Send events to all open pages (server-sent events)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from mpn._common.files import json_text

Event = dict[str, Any]

_QUEUE_DEPTH = 2_000
"""Events that wait for one page. A page that is further behind has to connect again."""

_HEARTBEAT_S = 15.0
"""A comment so often keeps proxies, such as those of port forwarding, from closing."""

_CLOSED: Final[Event] = {"type": "closed"}


class Broadcaster:
    """Deliver each published event to every subscriber, in order.

    :meth:`publish` may be called from any thread; the rest belongs to the thread of the event loop.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queues: set[asyncio.Queue[Event]] = set()
        self._is_closed = False

    @property
    def subscribers(self) -> int:
        """Number of open pages."""
        return len(self._queues)

    def publish(self, event: Event) -> None:
        """Queue an event for all subscribers; does nothing without any."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._deliver, event)

    async def subscribe(self, first: Event) -> AsyncIterator[str]:
        """Yield the events as text of an event stream, ``first`` before all others.

        Ends at :meth:`close`, and if the reader is too slow.
        """
        self._loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event] = asyncio.Queue(_QUEUE_DEPTH + 1)
        queue.put_nowait(first)
        self._queues.add(queue)
        self._deliver_count()
        try:
            while not self._is_closed:
                try:
                    event = await asyncio.wait_for(queue.get(), _HEARTBEAT_S)
                except TimeoutError:
                    yield ":\n\n"
                    continue
                if event is _CLOSED:
                    return
                yield f"data: {json_text(event)}\n\n"
        finally:
            self._queues.discard(queue)
            self._deliver_count()

    def close(self) -> None:
        """End all subscriptions."""
        self._is_closed = True
        for queue in self._queues:
            _end(queue)

    def _deliver(self, event: Event) -> None:
        for queue in self._queues:
            if queue.qsize() >= _QUEUE_DEPTH:
                _end(queue)
            else:
                queue.put_nowait(event)

    def _deliver_count(self) -> None:
        self._deliver({"type": "pages", "count": len(self._queues)})


def _end(queue: asyncio.Queue[Event]) -> None:
    while not queue.empty():
        queue.get_nowait()
    queue.put_nowait(_CLOSED)
