"""The protocols every engine follows, whatever runs it: on host arrays, and on device memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from mpn.cuda.array import DeviceArray
from mpn.engines.spec import EngineSpec
from mpn.types import Float32Array


class Engine(Protocol):
    """A loaded network that can run.

    Constructing an engine loads it; :meth:`close` gives its memory back. Outputs belong to the
    caller.
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


@dataclass(frozen=True)
class EngineBuffers:
    """Where a device engine reads and writes, for one number of objects.

    Addresses stay the same from loading to closing, and are the same for every number of objects
    (K objects are the first K rows), so that CUDA graphs may hold them.

    Attributes:
        inputs: By name, in the order of the spec.
        outputs: By name, in the order of the spec.
    """

    inputs: Mapping[str, DeviceArray]
    outputs: Mapping[str, DeviceArray]


@runtime_checkable
class DeviceEngine(Engine, Protocol):
    """An engine that also takes and gives device memory, in the order of a CUDA stream.

    Three ways to run it, from the plainest to the fastest:

    * :meth:`Engine.run`: NumPy arrays; copies, and waits.
    * :meth:`infer_on_device`: any device tensors; those that are not the engine's own buffers are
      copied into them on the stream. The engine replays a CUDA graph of its own where it has one.
    * :meth:`buffers` and :meth:`enqueue`: kernels write into ``buffers(k).inputs`` and read
      ``buffers(k).outputs``; nothing is copied. :meth:`enqueue` only starts kernels, and can be
      captured into a CUDA graph of the caller where ``can_be_captured``; :meth:`prepare` first.

    Nothing here waits for the device but :meth:`Engine.run` and :meth:`prepare`. Outputs are valid
    until the engine runs again: they are its buffers. One engine runs on one stream at a time; to
    change the stream, order the new one behind the old one with an event. A stream is given by its
    handle (``cudaStream_t``/``CUstream`` as an integer), made in the device's primary context.

    The dtype of a buffer is float32 as the spec says, or float16 for an input where the engine was
    opened so: look at ``buffers(k).inputs[name].dtype`` and write that.
    """

    @property
    def can_be_captured(self) -> bool:
        """Whether :meth:`enqueue` may run while the stream is being captured into a graph."""

    def buffers(self, objects: int = 1) -> EngineBuffers:
        """The engine's own memory, for ``objects`` objects; 1 for roles without that axis.

        Raises:
            EngineError: If ``objects`` is under 1 or over ``spec.max_objects``.
        """

    def prepare(self, stream: int, objects: int = 1) -> None:
        """Do everything that the first run with so many objects would do besides, and wait for it.

        Contexts are made, kernels compiled or loaded, one run made on whatever the inputs hold.

        Raises:
            EngineError: As :meth:`enqueue`.
        """

    def enqueue(self, stream: int, objects: int = 1) -> EngineBuffers:
        """Start one run on what the input buffers hold, and return at once.

        Args:
            stream: Handle of the stream.
            objects: How many rows of the buffers count.

        Returns:
            ``buffers(objects)``; the outputs are written when the stream has come so far.

        Raises:
            EngineError: If ``objects`` does not fit, the engine is closed, or the start fails.
        """

    def infer_on_device(self, inputs: Mapping[str, Any], stream: int) -> Mapping[str, DeviceArray]:
        """Start one run on device tensors, and return at once.

        Args:
            inputs: Every input of the spec by name, complete on ``stream`` when the run comes. Each
                is one of the engine's own buffers, or is copied there (a float32 tensor for a
                float16 buffer is an error: cast it on the device).
            stream: Handle of the stream.

        Returns:
            The output buffers by name, written when the stream has come so far.

        Raises:
            EngineError: If a name, shape or dtype does not fit, or the start fails.
        """
