"""Events of a session in a file: slow readers cost no memory."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpn._common.files import json_text, output_errors

_HEARTBEAT_S = 15.0
"""A comment so often keeps proxies from closing."""


class Changes:
    """Wake coroutines when another thread has changed a session.

    Make it in the thread of the event loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wake all; from any thread."""
        with suppress(RuntimeError):  # the loop is closed: nothing waits
            self._loop.call_soon_threadsafe(self._wake)

    async def wait(self, timeout_s: float) -> bool:
        """Wait for the next change; return False if there is none in time.

        A change between the caller's last ``await`` and this call is not lost.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.add(future)
        try:
            await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            return False
        finally:
            self._waiting.discard(future)
        return True

    def _wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)


class EventLog:
    """Events of a session in order, one JSON object per line of a file.

    The id of an event is the position after its line, so that a client that connects again
    continues there.

    Args:
        path: The file; it must not exist.
        changes: Notified of each event.
    """

    def __init__(self, path: Path, changes: Changes) -> None:
        self._path, self._changes = path, changes
        self._file = path.open("xb", buffering=0)
        self._lock = threading.Lock()
        self._size = 0
        self._is_closed = False

    def append(self, kind: str, event: Mapping[str, Any]) -> None:
        """Write an event; does nothing after :meth:`close`. From any thread.

        Raises:
            OutputError: If the disk is full.
        """
        line = json_text({"type": kind, **event}).encode() + b"\n"
        with self._lock:
            if self._is_closed:
                return
            with output_errors(self._path):
                try:
                    rest = line
                    while rest:
                        rest = rest[self._file.write(rest) :]
                except OSError:
                    self._file.truncate(self._size)  # complete lines only
                    self._file.seek(self._size)
                    raise
            self._size += len(line)
        self._changes.notify()

    def close(self) -> None:
        """End all readers after the last event."""
        with self._lock:
            if not self._is_closed:
                self._file.close()
            self._is_closed = True
        self._changes.notify()

    def is_position(self, position: int) -> bool:
        """Return whether a position is 0 or the id of an event."""
        if not 0 <= position <= self._size:
            return False
        if position == 0:
            return True
        with self._path.open("rb") as file:
            file.seek(position - 1)
            return file.read(1) == b"\n"

    async def read(self, position: int) -> AsyncIterator[tuple[int, dict[str, Any]] | None]:
        """Yield (id, event) after a position until the end; None is a heartbeat."""
        with self._path.open("rb") as file:
            file.seek(position)
            while True:
                while position < self._size:
                    line = file.readline()
                    position += len(line)
                    yield position, json.loads(line)
                if self._is_closed:
                    return
                if not await self._changes.wait(_HEARTBEAT_S):
                    yield None
