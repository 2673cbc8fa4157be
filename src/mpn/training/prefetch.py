"""Prefetching of training samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

_Sample = TypeVar("_Sample")
_STEPS_AHEAD = 3


class Prefetched(Generic[_Sample]):
    """Batches of samples that are functions of (step, index), made by a pool.

    Args:
        make: Makes sample ``index`` of the batch of ``step``; called in threads.
        indices: Indices of the samples of each batch.
        steps: Steps in all: no sample is made beyond them.
    """

    def __init__(
        self, make: Callable[[int, int], _Sample], indices: Sequence[int], steps: int
    ) -> None:
        self._make, self._indices, self._steps = make, list(indices), steps
        self._pending: dict[int, list[Future[_Sample]]] = {}

    def take(self, step: int, pool: ThreadPoolExecutor) -> list[_Sample]:
        """Return the samples of a step, in the order of their indices."""
        for ahead in range(step, min(step + _STEPS_AHEAD, self._steps)):
            if ahead not in self._pending:
                self._pending[ahead] = [pool.submit(self._make, ahead, k) for k in self._indices]
        return [task.result() for task in self._pending.pop(step)]
