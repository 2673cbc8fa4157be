"""Engines of single objects: where a network was fine-tuned on an object, that object has its own.

Fine-tuning itself is an adapter's business; here is what the pipeline asks of one, and where the
engines that it makes are kept until they are closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np

from mpn._common.closeable import Closeable
from mpn.engines.base import Engine
from mpn.engines.spec import Role
from mpn.runtime.ensemble import labels_from_merged
from mpn.runtime.preprocess import one_hot, resize_prob
from mpn.types import UInt8Array


class ObjectAdapterLike(Protocol):
    """Fine-tunes networks on one object of a frame."""

    def adapt(self, rgb: UInt8Array, labels: UInt8Array, object_id: int) -> Mapping[Role, Engine]:
        """Engines that know this object.

        Args:
            rgb: (h, w, 3) uint8 RGB, a frame at working size.
            labels: (h, w) uint8, the ids of all objects in it.
            object_id: The object to learn; it has at least one pixel.

        Returns:
            An engine for every role that was fine-tuned; the caller closes them.

        Raises:
            EngineError: If an engine fails.
        """

    def report_as_json(self) -> list[dict[str, Any]]:
        """What was done, as JSON types: an entry an object and role."""

    def close(self) -> None:
        """Release what is held; engines that were handed out stay open."""


EnginesByObject = Mapping[int, Mapping[Role, Engine]]
"""Object id -> role -> engine; an object or role that is not there uses the common engine."""


class ObjectEngines(Closeable):
    """The engines of the objects of one video."""

    def __init__(self) -> None:
        self._engines: dict[int, Mapping[Role, Engine]] = {}

    def get(self, role: Role, object_id: int) -> Engine | None:
        """The object's own engine, or None: it uses the common one."""
        own = self._engines.get(object_id)
        return None if own is None else own.get(role)

    def all_have(self, role: Role, object_ids: Iterable[int]) -> bool:
        """Whether every one of the objects has its own engine of a role."""
        return all(self.get(role, object_id) is not None for object_id in object_ids)

    def add(self, engines: EnginesByObject) -> None:
        """Keep the engines of further objects; they are closed with the others."""
        self._engines |= engines

    def replace(self, engines: EnginesByObject) -> None:
        """Keep these engines, and close those kept so far."""
        before, self._engines = self._engines, dict(engines)
        close_engines(before)

    def close(self) -> None:
        """Close all engines; closing twice is allowed."""
        self.replace({})


def adapted_engines(
    adapter: ObjectAdapterLike, rgb: UInt8Array, labels: UInt8Array, object_ids: Sequence[int]
) -> dict[int, Mapping[Role, Engine]]:
    """Fine-tune for one object after the other.

    An object without a pixel at working size has nothing to learn from and stays with the common
    engines.

    Args:
        adapter: Does the work.
        rgb: (h, w, 3) uint8 RGB at working size.
        labels: (H, W) uint8, the ids of all objects, at working or input size.
        object_ids: The objects to learn.

    Returns:
        Their engines. If one object fails, the engines of the others are closed.
    """
    engines: dict[int, Mapping[Role, Engine]] = {}
    size_hw = (rgb.shape[0], rgb.shape[1])
    if labels.shape != size_hw:
        all_ids = [int(i) for i in np.unique(labels) if i]
        labels = labels_from_merged(resize_prob(one_hot(labels, all_ids), size_hw), all_ids)
    try:
        for object_id in object_ids:
            if (labels == object_id).any():
                engines[object_id] = adapter.adapt(rgb, labels, object_id)
    except BaseException:
        close_engines(engines)
        raise
    return engines


def close_engines(engines: EnginesByObject) -> None:
    """Close all of them, the others too if one fails."""
    with ExitStack() as stack:
        for own in engines.values():
            for engine in own.values():
                stack.callback(engine.close)
