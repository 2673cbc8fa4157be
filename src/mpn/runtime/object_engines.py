"""Hold the engines that were fine-tuned on single objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from mpn._common.closeable import Closeable
from mpn.engines.base import Engine
from mpn.engines.spec import Role
from mpn.types import UInt8Array


class ObjectFinetunerLike(Protocol):
    """Fine-tune networks on one object of a frame."""

    def finetune(
        self, rgb: UInt8Array, labels: UInt8Array, object_id: int
    ) -> Mapping[Role, Engine]:
        """Fine-tune networks on one object.

        Args:
            rgb: (h, w, 3) uint8 RGB, a frame at working size.
            labels: (h, w) uint8, the ids of all objects in it.
            object_id: The object; it has at least one pixel.

        Returns:
            An engine for every role that was fine-tuned; the caller closes them.

        Raises:
            EngineError: If an engine fails.
        """

    @property
    def warnings(self) -> tuple[str, ...]:
        """Problems that did not stop the work."""

    def report_as_json(self) -> list[dict[str, Any]]:
        """Return a report in JSON types: one entry per object and role."""

    def close(self) -> None:
        """Release all memory; engines that were returned stay open."""


EnginesByObject = Mapping[int, Mapping[Role, Engine]]
"""Object id -> role -> engine; an object or role that is missing uses the common engine."""


class ObjectEngines(Closeable):
    """The engines of the objects of one video."""

    def __init__(self) -> None:
        self._engines: dict[int, Mapping[Role, Engine]] = {}

    def get(self, role: Role, object_id: int) -> Engine | None:
        """Return the object's own engine, or None if it uses the common one."""
        own = self._engines.get(object_id)
        return None if own is None else own.get(role)

    def all_have(self, role: Role, object_ids: Iterable[int]) -> bool:
        """Return whether each of the objects has its own engine of a role."""
        return all(self.get(role, object_id) is not None for object_id in object_ids)

    def add(self, engines: EnginesByObject) -> None:
        """Add the engines of further objects; they are closed with the others."""
        self._engines |= engines

    def replace(self, engines: EnginesByObject) -> None:
        """Replace all engines, and close those held so far."""
        before, self._engines = self._engines, dict(engines)
        close_engines(before)

    def close(self) -> None:
        """Close all engines; closing twice is allowed."""
        self.replace({})


def finetuned_engines(
    finetuner: ObjectFinetunerLike, rgb: UInt8Array, labels: UInt8Array, object_ids: Sequence[int]
) -> dict[int, Mapping[Role, Engine]]:
    """Fine-tune on each object in order.

    An object without a pixel at working size gets no engines: it uses the common ones.

    Args:
        finetuner: Does the work.
        rgb: (h, w, 3) uint8 RGB at working size.
        labels: (h, w) uint8, the ids of all objects.
        object_ids: The objects to fine-tune on.

    Returns:
        Their engines. If one object fails, the engines of the others are closed.
    """
    engines: dict[int, Mapping[Role, Engine]] = {}
    try:
        for object_id in object_ids:
            if (labels == object_id).any():
                engines[object_id] = finetuner.finetune(rgb, labels, object_id)
    except BaseException:
        close_engines(engines)
        raise
    return engines


def close_engines(engines: EnginesByObject) -> None:
    """Close all engines, also those after one that fails."""
    with ExitStack() as stack:
        for own in engines.values():
            for engine in own.values():
                stack.callback(engine.close)
