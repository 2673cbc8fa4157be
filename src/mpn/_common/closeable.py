"""What everything that has to be closed has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Closing(ABC):
    """Something to close, by hand or by leaving a ``with`` statement."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Release what is held; closing twice is allowed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
