"""Several streams of one device, and what orders them: events, pinned memory, graphs.

A lane is a :class:`mpn.cuda.array.KernelDevice` whose stream others can wait for. Like
that protocol it has two implementations, :class:`mpn.cuda.device.CudaDevice` and one in
the tests that runs what the lanes hold in any order that the marks allow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from mpn.cuda.array import DeviceArray, KernelDevice

Replay = Callable[[], None]
"""Starts everything that was captured, once more."""


class Mark(Protocol):
    """A point in the order of a lane."""

    def wait(self) -> None:
        """Make the host wait until the lane has come to it."""

    def seconds_since(self, earlier: Mark) -> float:
        """Device time between two timed marks that the host has waited for."""


class Lane(KernelDevice, Protocol):
    """A stream of a device, beside others of the same memory and kernels."""

    @property
    def address(self) -> int:
        """Handle of the stream (``CUstream``), for engines."""

    def beside(self, *, is_urgent: bool = False) -> Self:
        """A new lane of the same device, not ordered after anything.

        Args:
            is_urgent: Its kernels go before those of other lanes where both wait.
        """

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array of the host that the device copies from and to without help of the host."""

    def send(self, source: npt.NDArray[Any], to: DeviceArray) -> None:
        """Start a copy from a pinned array, which must stay as it is until it is done."""

    def fetch(self, source: DeviceArray, to: npt.NDArray[Any]) -> None:
        """Start a copy into a pinned array."""

    def mark(self, *, is_timed: bool = False) -> Mark:
        """A mark behind everything started so far.

        Args:
            is_timed: Whether :meth:`Mark.seconds_since` will be asked.
        """

    def follow(self, mark: Mark) -> None:
        """Let everything started from now on wait for a mark of any lane; the host does not."""

    def capture(self, work: Callable[[], None]) -> Replay:
        """Note what ``work`` starts on this lane, instead of starting it.

        ``work`` may launch, copy, fetch and run engines that can be captured; it must not allocate,
        upload, download, mark or wait.

        Returns:
            Starts it on this lane, with the same addresses and numbers.
        """

    def array_from(self, foreign: Any) -> DeviceArray:
        """An array of another library in this device's memory, without a copy.

        Raises:
            InputError: If it is not on a device, or not C-contiguous.
        """


def is_on_device(array: object) -> bool:
    """Whether an array of any library says that it lies in device memory."""
    if isinstance(array, np.ndarray):
        return False
    if hasattr(array, "__cuda_array_interface__"):
        return True
    where = getattr(array, "__dlpack_device__", None)
    return where is not None and int(where()[0]) in _DLPACK_CUDA


_DLPACK_CUDA = (2, 13)
"""kDLCUDA and kDLCUDAManaged."""
