"""Run work in threads and processes that end with their caller.

A thread that is joined while it waits for room in a full queue never ends when the consumer has
raised. In :class:`Prefetch` and :class:`BackgroundWorker` every wait also ends when the other side
closes, the first exception of a thread reaches the caller unchanged, and nothing polls.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import wraps
from multiprocessing import active_children, get_context
from typing import ClassVar, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar

from mpn._common.closeable import Closeable
from mpn._common.cores import usable_cores
from mpn._common.validation import check_int
from mpn.errors import InputError, MpnError, MpnWarning

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")

_WAKE_S = 0.5
"""A wait without a timeout cannot be interrupted by Ctrl-C on Windows; waits are this short."""

_JOIN_S = 15.0
"""Longest wait for a thread that is blocked in a read (a dead camera). It is a daemon and holds no
file open for writing. Longer than the read timeout of a stream."""

_NICE = 10
"""A tenth of the time of a thread of normal priority, if both want the same core."""


def usable_threads(
    threads: int | None, name: str = "option threads", *, error: type[MpnError] = InputError
) -> int | None:
    """Return a number of threads, at most that of the usable cores; None stays None.

    Warns with MpnWarning if the number is lowered: 1,000 threads on 2 cores practically hang.

    Args:
        threads: At least 1.
        name: First words of the messages.
        error: Class of the exception.

    Raises:
        InputError: If it is under 1 or no int; ``error`` replaces the class.
    """
    if threads is None:
        return None
    given = check_int(name, threads, least=1, kind="a number of threads", error=error)
    usable = usable_cores()
    if given > usable:
        warnings.warn(
            f"{name} is {given}, but this process may use {usable} cores: {usable} is used",
            MpnWarning,
            stacklevel=3,
        )
    return min(given, usable)


def _lower_priority() -> None:
    """Let the other threads run first, if the system has a priority per thread.

    Threads of one operator wait for each other: one that lost its core to an encoder delays all.
    Threads that this thread starts, like those of the encoder, inherit the priority.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # a sandbox may forbid it: slower, not wrong
            niceness = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, niceness + _NICE)


class OneCaller:
    """Let one thread of one process use an object at a time.

    Args:
        name: The object in messages, for example ``"the pipeline"``.
    """

    def __init__(self, name: str) -> None:
        self._name, self._pid = name, os.getpid()
        self._lock = threading.Lock()
        self._user: int | None = None  # the thread that holds the lock

    @property
    def is_forked(self) -> bool:
        """Whether this process is a fork of the one that made the object."""
        return os.getpid() != self._pid

    def check_process(self) -> None:
        """Raise InputError in a fork, which has no threads of the parent."""
        if self.is_forked:
            raise InputError(
                f"{self._name} was made in process {self._pid}, and process {os.getpid()} is a "
                "fork of it, without its threads: make another in the process that uses it, or "
                "start processes by 'spawn'"
            )

    @contextmanager
    def use(self, *, waits: bool = False) -> Iterator[None]:
        """Hold the object for the body.

        Args:
            waits: Whether to wait for the call of another thread.

        Raises:
            InputError: If another call holds it, with ``waits`` one of this thread, or in a fork.
        """
        self.check_process()
        own = threading.get_ident()
        if not self._lock.acquire(blocking=waits and self._user != own):
            raise InputError(
                f"{self._name} is in use by another call: call it from one thread at a time, or "
                "make one per thread"
            )
        self._user = own
        try:
            yield
        finally:
            self._user = None
            self._lock.release()


class _HasCaller(Protocol):
    _caller: OneCaller


HasCallerT = TypeVar("HasCallerT", bound=_HasCaller)


def one_caller(
    method: Callable[Concatenate[HasCallerT, P], R],
) -> Callable[Concatenate[HasCallerT, P], R]:
    """Decorate a method to run in :meth:`OneCaller.use` of the attribute ``_caller``."""

    @wraps(method)
    def guarded(self: HasCallerT, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._caller.use():
            return method(self, *args, **kwargs)

    return guarded


class _Channel(Generic[T]):
    """Bounded queue that either side can close, and that carries one exception."""

    def __init__(self, depth: int) -> None:
        self._process = OneCaller("the thread of this queue")
        self._items: deque[T] = deque()
        self._depth = depth
        self._changed = threading.Condition()
        self._finished = False  # closed by the producer: drain, then stop
        self._cancelled = False  # closed by the consumer: drop everything
        self._error: BaseException | None = None

    def put(self, item: T) -> bool:
        """Wait for room and add ``item``; return False if the consumer has closed."""
        self._process.check_process()  # a fork has no thread that would end the wait
        with self._changed:
            while len(self._items) >= self._depth and not self._cancelled:
                self._changed.wait(_WAKE_S)
            if self._cancelled:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def take(self) -> tuple[T] | None:
        """Wait for the next item; return None at the end."""
        self._process.check_process()
        with self._changed:
            while not self._items and not self._finished and not self._cancelled:
                self._changed.wait(_WAKE_S)
            if self._cancelled or not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return (item,)

    def finish(self, error: BaseException | None = None) -> None:
        """Close the producer's side, with the exception that ended it if there was one."""
        with self._changed:
            self._finished = True
            self._error = self._error or error
            self._changed.notify_all()

    def cancel(self, error: BaseException | None = None) -> None:
        """Close the consumer's side: drop all queued items and end the producer's wait."""
        if self._process.is_forked:
            return
        with self._changed:
            self._cancelled = True
            self._error = self._error or error
            self._items.clear()
            self._changed.notify_all()

    @property
    def error(self) -> BaseException | None:
        with self._changed:
            return self._error


class Prefetch(Closeable, Generic[T]):
    """Iterate over ``items`` in a thread, at most ``depth`` items ahead.

    An exception of ``items`` is raised by the iteration, after the items before it. The end of the
    ``with`` block stops the thread.

    Args:
        items: Iterated over in the thread, once. If it is a generator, it is closed there too.
        depth: Largest number of items in the queue.
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
        """Stop the thread and wait for its end. A second call does nothing."""
        self._channel.cancel()
        self._thread.join(_JOIN_S)


class BackgroundWorker(Generic[T]):
    """Call ``consume`` with each submitted item, in order, in one thread.

    The first exception of ``consume`` ends the work: the rest of the queue is dropped, and
    :meth:`submit` and :meth:`close` raise that exception.

    Args:
        consume: Called in the thread.
        depth: Largest number of queued items; :meth:`submit` waits at this number.
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
        _lower_priority()
        while (taken := self._channel.take()) is not None:
            try:
                consume(taken[0])
            except BaseException as error:
                self._channel.cancel(error)
                return

    def submit(self, item: T) -> None:
        """Queue ``item``; wait while the queue is full.

        Raises:
            BaseException: The first exception of ``consume``, of any class.
            RuntimeError: If the worker was closed.
        """
        if self._channel.put(item):
            return
        if (error := self._channel.error) is not None:
            raise error
        raise RuntimeError("the worker is closed")

    def close(self) -> None:
        """Finish the queue, stop, and raise the first exception of ``consume`` if any."""
        self._channel.finish()
        self._join()
        self._channel.cancel()
        if (error := self._channel.error) is not None:
            raise error

    def abort(self) -> None:
        """Drop the queue and stop.

        Raises nothing, so it is safe while another exception propagates.
        """
        self._channel.cancel()
        self._join()

    def _join(self) -> None:
        while self._thread.is_alive():
            self._thread.join(_WAKE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *rest: object) -> None:
        if exc_type is None:
            self.close()
        else:
            self.abort()


@contextmanager
def process_pool(
    workers: int, *, opencv_threads: int | None = None
) -> Iterator[ProcessPoolExecutor]:
    """Open a pool of processes that end with the block, also after Ctrl-C.

    Work that has not begun at the end of the block is dropped.

    Args:
        workers: Number of processes, at least 1.
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
        # A worker that was interrupted while it waited for work may never receive the end of the
        # queue: shutdown would wait for it for ever.
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


class OpenCvThreads(Closeable):
    """Set the number of OpenCV threads of this process until it is closed.

    The number belongs to the process. Several may be open at once and close in any order: the
    newest open one decides, and the last to close restores the number from before the first.

    Args:
        threads: At least 1.
    """

    _lock = threading.Lock()
    _open: ClassVar[list[OpenCvThreads]] = []
    _before = 0

    def __init__(self, threads: int) -> None:
        import cv2

        self._threads = threads
        with self._lock:
            if not self._open:
                OpenCvThreads._before = cv2.getNumThreads()
            cv2.setNumThreads(threads)
            self._open.append(self)

    def close(self) -> None:
        """Restore the old number. A second call does nothing."""
        import cv2

        with self._lock:
            if self in self._open:
                self._open.remove(self)
                newest = self._open[-1]._threads if self._open else self._before
                cv2.setNumThreads(newest)
