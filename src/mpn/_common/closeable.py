"""Define the base class and the protocol of objects that hold a resource."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, Self


class SupportsClose(Protocol):
    """Be closed by :meth:`close` or at the end of a ``with`` block."""

    def close(self) -> None:
        """Release the resource. A second call does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


class Closeable(ABC):
    """Implement the ``with`` statement by :meth:`close`."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Release the resource. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
