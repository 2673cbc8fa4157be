"""The protocol every engine follows, whatever runs it."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from mpn.engines.spec import EngineSpec
from mpn.types import Float32Array


class Engine(Protocol):
    """A loaded network that can run.

    Constructing an engine loads it; :meth:`close` gives its memory back. Outputs belong to the
    caller on the CPU backend; on a device backend they are reused by the next :meth:`run`.
    """

    @property
    def spec(self) -> EngineSpec:
        """Names and shapes of its tensors."""

    @property
    def backend(self) -> str:
        """What really runs it, for example ``"cpu"`` or ``"cuda"``."""

    def run(self, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        """Run once.

        Args:
            inputs: Every input of the spec by name.

        Returns:
            Every output of the spec by name.

        Raises:
            EngineError: If a name or shape does not fit the spec, or the run fails.
        """

    def close(self) -> None:
        """Release the engine; running it afterwards is an error. Closing twice is allowed."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
