"""Stop on SIGINT, SIGTERM and SIGHUP alike, and finish files before the stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_STOPS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Ctrl-C; docker stop and Slurm; a closed terminal."""

_REPEATED_WITHIN_S = 5.0
"""A second signal so soon is the same stop: it must not end the work on the files."""


class Stopped(KeyboardInterrupt):
    """A stop by a signal.

    Attributes:
        signum: Number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class _StopHandler:
    """The handler of this process: signals belong to a process, so there is one."""

    def __init__(self) -> None:
        self._raised_s: float | None = None
        self._is_finishing = False
        self._pending: int | None = None

    def __call__(self, signum: int, frame: Any) -> None:
        if self._is_finishing:
            self._pending = signum
            return
        now_s = time.monotonic()
        if self._raised_s is not None and now_s - self._raised_s < _REPEATED_WITHIN_S:
            return
        self._raised_s = now_s
        raise Stopped(signum)

    @contextmanager
    def installed(self, *, replaces_others: bool) -> Iterator[None]:
        """Handle the stops until the end of the block, in the main thread only."""
        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            defaults = (signal.SIG_DFL, signal.default_int_handler)
            for signum in _STOPS:
                handler = signal.getsignal(signum)
                # nohup and a shell's background jobs ignore signals on purpose.
                is_free = handler in defaults or (replaces_others and callable(handler))
                if is_free and handler is not self:
                    before[signum] = signal.signal(signum, self)
        if before:
            self._raised_s = None
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Handle no stop in the block, and the last one of them after it."""
        if self._is_finishing:  # the outer block handles it
            yield
            return
        with self.installed(replaces_others=True):
            self._is_finishing = True
            try:
                yield
            finally:
                self._is_finishing = False
                pending, self._pending = self._pending, None
        if pending is not None:
            signal.raise_signal(pending)


_HANDLER = _StopHandler()


@contextmanager
def stop_signals() -> Iterator[None]:
    """Raise :class:`Stopped`, a KeyboardInterrupt, for each stop in the block.

    Signals with a handler of the program, and ignored ones, are not changed. A signal that repeats
    within seconds raises once. Does nothing outside of the main thread.
    """
    with _HANDLER.installed(replaces_others=False):
        yield


@contextmanager
def deferred_stops() -> Iterator[None]:
    """Delay all stops to the end of the block, so that they lose no file.

    A stop in the block has its usual effect after it, unless the block raises. Does nothing outside
    of the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _HANDLER.deferred():
        yield
