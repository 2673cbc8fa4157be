"""Bounded hand-over between threads: a reader that runs ahead and a writer that runs behind.

A reader thread that is joined while it waits for room in a full queue never ends when the consumer
has raised. Here every wait also ends when the other side closes, the first exception of a thread
reaches the caller unchanged, and nothing polls.
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from types import TracebackType
from typing import Generic, Self, TypeVar

import cv2

from mpn._common.closeable import Closing

T = TypeVar("T")

_WAKE_S = 0.5
"""A wait without a timeout cannot be interrupted by Ctrl-C on Windows; waits are this short."""

_JOIN_S = 15.0
"""A thread blocked inside a read of its own (a dead camera) is left behind after this long; it is
a daemon and keeps no file of ours open for writing. Longer than the read timeout of a stream."""


class _Channel(Generic[T]):
    """A bounded queue of which either side can be closed, with one exception on board."""

    def __init__(self, depth: int) -> None:
        self._items: deque[T] = deque()
        self._depth = depth
        self._changed = threading.Condition()
        self._finished = False  # the producer is done: drain, then stop
        self._cancelled = False  # the consumer is gone: drop everything
        self._error: BaseException | None = None

    def put(self, item: T) -> bool:
        """Wait for room and add ``item``; False if nobody will take it."""
        with self._changed:
            while len(self._items) >= self._depth and not self._cancelled:
                self._changed.wait(_WAKE_S)
            if self._cancelled:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def take(self) -> tuple[T] | None:
        """Wait for the next item; None when there will be none."""
        with self._changed:
            while not self._items and not self._finished and not self._cancelled:
                self._changed.wait(_WAKE_S)
            if self._cancelled or not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return (item,)

    def finish(self, error: BaseException | None = None) -> None:
        """The producer is done; ``error`` says why if not by plan."""
        with self._changed:
            self._finished = True
            self._error = self._error or error
            self._changed.notify_all()

    def cancel(self, error: BaseException | None = None) -> None:
        """The consumer is gone: drop what is queued and let no producer wait."""
        with self._changed:
            self._cancelled = True
            self._error = self._error or error
            self._items.clear()
            self._changed.notify_all()

    @property
    def error(self) -> BaseException | None:
        with self._changed:
            return self._error


class Prefetch(Closing, Generic[T]):
    """Iterate over ``items`` in a thread that stays at most ``depth`` items ahead.

    An exception of ``items`` is raised by the iteration after the items before it. Leaving the
    ``with`` block stops the thread wherever it is.

    Args:
        items: Iterated over in the thread, once. If it is a generator, it is closed there too.
        depth: Items held at most, beside the one the caller works on.
        name: Name of the thread.
    """

    def __init__(self, items: Iterable[T], *, depth: int = 4, name: str = "mpn-reader") -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self._channel: _Channel[T] = _Channel(depth)
        self._thread = threading.Thread(target=self._fill, args=(items,), name=name, daemon=True)
        self._thread.start()

    def _fill(self, items: Iterable[T]) -> None:
        error: BaseException | None = None
        try:
            iterator = iter(items)
            try:
                for item in iterator:
                    if not self._channel.put(item):
                        break
            finally:
                if close := getattr(iterator, "close", None):
                    close()
        except BaseException as raised:
            error = raised
        self._channel.finish(error)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        taken = self._channel.take()
        if taken is not None:
            return taken[0]
        if (error := self._channel.error) is not None:
            raise error
        raise StopIteration

    def close(self) -> None:
        """Stop the thread and wait until it has ended. Closing twice is allowed."""
        self._channel.cancel()
        self._thread.join(_JOIN_S)


class BackgroundWorker(Generic[T]):
    """Call ``consume`` with each submitted item, in order, in a thread of its own.

    The first exception of ``consume`` ends the work: what is queued behind it is dropped, and
    :meth:`submit` and :meth:`close` raise that exception.

    Args:
        consume: Called in the thread.
        depth: Items that may wait; :meth:`submit` blocks beyond it, so memory stays bounded.
        name: Name of the thread.
    """

    def __init__(
        self, consume: Callable[[T], None], *, depth: int = 8, name: str = "mpn-writer"
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self._channel: _Channel[T] = _Channel(depth)
        self._thread = threading.Thread(target=self._work, args=(consume,), name=name, daemon=True)
        self._thread.start()

    def _work(self, consume: Callable[[T], None]) -> None:
        while (taken := self._channel.take()) is not None:
            try:
                consume(taken[0])
            except BaseException as error:
                self._channel.cancel(error)
                return

    def submit(self, item: T) -> None:
        """Queue ``item``; waits while the queue is full.

        Raises:
            BaseException: The first exception of ``consume``, whatever it was.
            RuntimeError: If the worker was closed.
        """
        if self._channel.put(item):
            return
        if (error := self._channel.error) is not None:
            raise error
        raise RuntimeError("the worker is closed")

    def close(self) -> None:
        """Finish everything queued, stop, and raise the first exception of ``consume`` if any."""
        self._channel.finish()
        self._join()
        self._channel.cancel()
        if (error := self._channel.error) is not None:
            raise error

    def abort(self) -> None:
        """Drop what is queued and stop; raises nothing. For use while another exception travels."""
        self._channel.cancel()
        self._join()

    def _join(self) -> None:
        while self._thread.is_alive():
            self._thread.join(_WAKE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is None:
            self.close()
        else:
            self.abort()


@contextmanager
def process_pool(
    workers: int, *, opencv_threads: int | None = None
) -> Iterator[ProcessPoolExecutor]:
    """Processes to submit work to; what has not begun when the block ends is dropped.

    Args:
        workers: How many, at least 1.
        opencv_threads: Threads of OpenCV in each; None leaves its default.

    Yields:
        The pool. A worker that dies makes its futures raise
        :class:`concurrent.futures.process.BrokenProcessPool`.
    """
    others = set(active_children())
    # Spawned, not forked: a fork of a process whose OpenCV threads run can hang in the child, and
    # begins with all the memory of this process.
    pool = ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),
        initializer=_start_worker,
        initargs=(opencv_threads,),
    )
    try:
        yield pool
    except KeyboardInterrupt:
        # A worker that was interrupted while it waited for work may never hear that there is none:
        # shutdown would wait for it for ever.
        for worker in set(active_children()) - others:
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(opencv_threads: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    if opencv_threads is not None:
        import cv2

        cv2.setNumThreads(opencv_threads)


class OpenCvThreads(Closing):
    """Sets the number until it is closed, then sets back what it was.

    Args:
        threads: At least 1.
    """

    def __init__(self, threads: int) -> None:
        self._before: int | None = cv2.getNumThreads()
        cv2.setNumThreads(threads)

    def close(self) -> None:
        """Set back the number; closing twice is allowed."""
        if self._before is not None:
            cv2.setNumThreads(self._before)
            self._before = None
