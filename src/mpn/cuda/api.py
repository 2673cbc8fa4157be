"""Protocols of a CUDA device: streams, events and graphs.

:class:`mpn.cuda.device.CudaDevice` implements :class:`Stream` on a GPU. The tests have a second
implementation that runs the same kernels on the CPU, in any order that the events allow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from mpn.cuda.array import DeviceArray, KernelDevice


class Graph(Protocol):
    """Work of a stream that was captured and can be launched as a whole."""

    def launch(self) -> None:
        """Launch on the stream that captured it, with the same addresses and numbers."""


class Event(Protocol):
    """A point in the order of a stream."""

    def sync(self) -> None:
        """Block the host until the stream has reached the event."""

    def elapsed_s(self, earlier: Event) -> float:
        """Return the device time in seconds between two timed events that are reached."""


class Stream(KernelDevice, Protocol):
    """A stream of a device. Streams of one device share memory and kernels."""

    @property
    def address(self) -> int:
        """Handle of the stream (``CUstream``), for engines."""

    def create_stream(self, *, high_priority: bool = False) -> Self:
        """Create a stream of the same device, ordered after nothing.

        Args:
            high_priority: Schedule its kernels before those of other streams.
        """

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Allocate a page-locked host array, which the device copies from and to."""

    def upload_async(self, source: npt.NDArray[Any], to: DeviceArray) -> None:
        """Start a copy from a pinned array, which must not change until the copy is done."""

    def download_async(self, source: DeviceArray, to: npt.NDArray[Any]) -> None:
        """Start a copy into a pinned array."""

    def record(self, *, timing: bool = False) -> Event:
        """Record an event after everything started so far.

        Args:
            timing: Allow :meth:`Event.elapsed_s`.
        """

    def wait(self, event: Event) -> None:
        """Run later work after an event of any stream; the host does not wait."""

    def capture(self, work: Callable[[], None]) -> Graph:
        """Capture what ``work`` starts on this stream, without running it.

        ``work`` may launch, copy, call :meth:`download_async` and run engines that can be
        captured. It must not allocate, upload, download, record or wait.
        """

    def array_from(self, foreign: Any) -> DeviceArray:
        """Return an array over device memory of another library, without a copy.

        Raises:
            InputError: If it is not on a device, or not C-contiguous.
        """


def is_on_device(array: object) -> bool:
    """Return whether an array of any library is in device memory."""
    if isinstance(array, np.ndarray):
        return False
    if hasattr(array, "__cuda_array_interface__"):
        return True
    where = getattr(array, "__dlpack_device__", None)
    return where is not None and int(where()[0]) in _DLPACK_CUDA


_DLPACK_CUDA = (2, 13)
"""kDLCUDA and kDLCUDAManaged."""
