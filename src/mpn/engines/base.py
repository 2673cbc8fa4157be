"""Protocols of every engine: on host arrays, and on device memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from mpn._common.closeable import SupportsClose
from mpn.cuda.array import DeviceArray
from mpn.engines.spec import EngineSpec
from mpn.types import Float32Array


class Engine(SupportsClose, Protocol):
    """Loaded network that can run.

    Constructing an engine loads it; :meth:`close` releases its memory. Outputs belong to the
    caller.
    """

    @property
    def spec(self) -> EngineSpec:
        """Names and shapes of its tensors."""

    @property
    def backend(self) -> str:
        """Backend that runs it, for example ``"cpu"`` or ``"cuda"``."""

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
        """Release the engine; it cannot run afterwards. A second call does nothing."""


@dataclass(frozen=True)
class EngineBuffers:
    """Input and output buffers of a device engine, for one number of objects.

    Addresses are constant from loading to closing, and the same for every number of objects (K
    objects are the first K rows), so that CUDA graphs can use them.

    Attributes:
        inputs: Buffers by name, in the order of the spec.
        outputs: Buffers by name, in the order of the spec.
    """

    inputs: Mapping[str, DeviceArray]
    outputs: Mapping[str, DeviceArray]


@runtime_checkable
class DeviceEngine(Engine, Protocol):
    """Engine that also runs on device memory, in the order of a CUDA stream.

    There are three ways to run it, from the simplest to the fastest:

    * :meth:`Engine.run`: NumPy arrays; copies and waits.
    * :meth:`infer_on_device`: any device tensors; those that are not the engine's own buffers are
      copied into them on the stream. The engine replays its CUDA graph if it has one.
    * :meth:`buffers` and :meth:`enqueue`: kernels write to ``buffers(k).inputs`` and read
      ``buffers(k).outputs`` without copies. :meth:`enqueue` only starts kernels. If
      ``supports_graph_capture``, the caller can capture it into a CUDA graph; call
      :meth:`prepare` first.

    Only :meth:`Engine.run` and :meth:`prepare` wait for the device. Outputs are the engine's
    buffers and valid until it runs again. One engine runs on one stream at a time; to change the
    stream, make the new one wait for an event of the old one. A stream is given by its handle
    (``cudaStream_t``/``CUstream`` as an integer), created in the device's primary context.

    A buffer is float32 as in the spec, or float16 for an input if the engine was opened so: write
    the dtype of ``buffers(k).inputs[name].dtype``.
    """

    @property
    def supports_graph_capture(self) -> bool:
        """Whether :meth:`enqueue` can run during stream capture."""

    def buffers(self, objects: int = 1) -> EngineBuffers:
        """Return the engine's buffers for ``objects`` objects.

        1 for roles without that axis.

        Raises:
            EngineError: If ``objects`` is below 1 or above ``spec.max_objects``.
        """

    def prepare(self, stream: int, objects: int = 1) -> None:
        """Do the extra work of the first run with so many objects, and wait for it.

        Contexts are created, kernels compiled or loaded, and one run made on the present inputs.

        Raises:
            EngineError: See :meth:`enqueue`.
        """

    def enqueue(self, stream: int, objects: int = 1) -> EngineBuffers:
        """Start one run on the input buffers and return at once.

        Args:
            stream: Handle of the stream.
            objects: Number of used rows of the buffers.

        Returns:
            ``buffers(objects)``; the outputs are written once the stream has finished the run.

        Raises:
            EngineError: If ``objects`` does not fit, the engine is closed, or the start fails.
        """

    def infer_on_device(self, inputs: Mapping[str, Any], stream: int) -> Mapping[str, DeviceArray]:
        """Start one run on device tensors, and return at once.

        Args:
            inputs: Every input of the spec by name, complete on ``stream`` at the time of the run.
                Each is one of the engine's own buffers, or is copied there. A float32 tensor for a
                float16 buffer raises: cast it on the device.
            stream: Handle of the stream.

        Returns:
            The output buffers by name, written once the stream has finished the run.

        Raises:
            EngineError: If a name, shape or dtype does not fit, or the start fails.
        """
