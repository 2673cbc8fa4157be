"""Base of engines that wrap another one."""

from __future__ import annotations

from collections.abc import Mapping

from mpn._common.closeable import Closeable
from mpn.engines.base import Engine
from mpn.engines.spec import EngineSpec
from mpn.types import Float32Array


class EngineWrapper(Closeable):
    """Pass all calls to another engine; see :class:`mpn.engines.base.Engine`.

    Args:
        engine: The engine; closed with this object.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def spec(self) -> EngineSpec:
        """Names and shapes of its tensors."""
        return self._engine.spec

    @property
    def backend(self) -> str:
        """Backend that runs it."""
        return self._engine.backend

    def run(self, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        """Run once."""
        return self._engine.run(inputs)

    def close(self) -> None:
        """Release the engine."""
        self._engine.close()
