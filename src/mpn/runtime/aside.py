"""One call beside what the caller does itself."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")

_WAKE_S = 0.5
"""A wait without a timeout cannot be interrupted by Ctrl-C on Windows; waits are this short."""


class Aside(Generic[T]):
    """A call that runs in a thread of its own from now on.

    For work of milliseconds that lets other threads run, as that of OpenCV and onnxruntime does;
    to begin one costs about 0.1 ms.

    Args:
        function: Called once, without arguments.
        name: Name of the thread.
    """

    def __init__(self, function: Callable[[], T], *, name: str) -> None:
        self._future: Future[T] = Future()
        self._thread = Thread(target=self._run, args=(function,), name=name, daemon=True)
        self._thread.start()

    def _run(self, function: Callable[[], T]) -> None:
        try:
            self._future.set_result(function())
        except BaseException as error:
            self._future.set_exception(error)

    def wait(self) -> None:
        """Wait until the call has ended, one way or the other."""
        while self._thread.is_alive():
            self._thread.join(_WAKE_S)

    def result(self) -> T:
        """What the call returned, once it has.

        Raises:
            BaseException: What the call raised.
        """
        self.wait()
        return self._future.result()
