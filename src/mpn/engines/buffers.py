"""Device memory that an engine reads and writes, at fixed addresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from mpn._common.closeable import Closeable
from mpn.cuda.array import DeviceArray, array_from_interface
from mpn.cuda.device import CudaDevice
from mpn.engines.base import EngineBuffers
from mpn.engines.spec import OBJECTS_AXIS, EngineSpec, TensorSpec
from mpn.errors import EngineError
from mpn.types import Float32Array

StartBatch = Callable[[int], None]
"""Function that starts one run with a number of objects on the engine's stream."""


class DeviceBuffers(Closeable):
    """Device memory for every tensor of an engine, sized for ``spec.max_objects``.

    Args:
        spec: The engine's interface.
        device: The GPU, on the engine's own stream.
        dtypes: Type of each tensor by name; the spec's if it is not named.

    Raises:
        EngineError: If there is not enough memory; what was allocated is released.
    """

    def __init__(
        self, spec: EngineSpec, device: CudaDevice, dtypes: Mapping[str, str] | None = None
    ) -> None:
        self._spec, self._device = spec, device
        self._arrays: dict[str, DeviceArray] = {}
        try:
            for tensor in (*spec.inputs, *spec.outputs):
                dtype = (dtypes or {}).get(tensor.name, tensor.dtype)
                shape = _shape_for(tensor, self.most_objects)
                self._arrays[tensor.name] = device.empty(shape, dtype)
            device.sync()  # allocated in the order of one stream, used on any
        except BaseException:
            self.close()
            raise

    @property
    def has_objects(self) -> bool:
        """Whether the tensors have an ``objects`` axis."""
        return any(tensor.dynamic_axes for tensor in self._spec.inputs)

    @property
    def most_objects(self) -> int:
        """Largest number of objects; 1 without that axis."""
        return (self._spec.max_objects or 1) if self.has_objects else 1

    def of(self, objects: int) -> EngineBuffers:
        """Return the first ``objects`` rows of each buffer.

        Raises:
            EngineError: If that is under 1 or over :attr:`most_objects`.
        """
        if not 1 <= objects <= self.most_objects:
            raise EngineError(
                f"the {self._spec.role} engine takes 1 to {self.most_objects} objects at once, "
                f"got {objects}: export with a larger --max-objects, or run several batches"
            )
        return EngineBuffers(
            inputs=self._part(self._spec.inputs, objects),
            outputs=self._part(self._spec.outputs, objects),
        )

    def objects_in(self, inputs: Mapping[str, Any]) -> int:
        """Check device arrays against the engine and return their number of objects.

        Raises:
            EngineError: If a name, shape or dtype does not fit.
        """
        if set(inputs) != set(self._spec.input_names):
            raise EngineError(
                f"the {self._spec.role} engine takes {sorted(self._spec.input_names)}, "
                f"got {sorted(inputs)}"
            )
        objects = 1
        for tensor in self._spec.inputs:
            given = array_from_interface(inputs[tensor.name])
            buffer = self._arrays[tensor.name]
            if tensor.dynamic_axes and given.shape:
                objects = given.shape[0]
            if given.shape != _shape_for(tensor, objects) or given.dtype != buffer.dtype:
                raise EngineError(
                    f"tensor '{tensor.name}' must be {buffer.dtype} {tensor.shape} on the device, "
                    f"got {given.dtype} {given.shape}"
                )
        self.of(objects)
        return objects

    def copy_in(self, inputs: Mapping[str, Any], objects: int, on: CudaDevice) -> None:
        """Copy device arrays, checked by :meth:`objects_in`, into the buffers.

        Args:
            inputs: By name; an array that is its buffer is not copied.
            objects: How many rows they have.
            on: The device, on the stream to copy on.
        """
        for name, buffer in self.of(objects).inputs.items():
            given = array_from_interface(inputs[name])
            if given.address != buffer.address:
                on.copy(given, buffer)

    def run_batches(
        self, inputs: Mapping[str, Float32Array], start: StartBatch
    ) -> dict[str, Float32Array]:
        """Copy inputs, run, copy outputs and wait, in batches of :attr:`most_objects`.

        Args:
            inputs: Each input of the spec by name, float32; any number of objects.
            start: Starts one run on the buffers, on the engine's stream.

        Returns:
            New float32 arrays.

        Raises:
            EngineError: If a name, shape or dtype does not fit, an axis is empty, or the run fails.
        """
        self._spec.check_inputs(inputs)
        total = next(iter(inputs.values())).shape[0] if self.has_objects else 1
        if any(self.has_objects and array.shape[0] != total for array in inputs.values()):
            raise EngineError(f"the inputs of the {self._spec.role} engine differ in their objects")
        outputs: dict[str, Float32Array] = {
            tensor.name: np.empty(_shape_for(tensor, total), np.float32)
            for tensor in self._spec.outputs
        }
        for first in range(0, total, self.most_objects):
            last = min(first + self.most_objects, total)
            self._run_batch(inputs, outputs, (first, last), start)
        return outputs

    def close(self) -> None:
        """Release the memory once no stream uses it; closing twice is allowed.

        Arrays of :meth:`of` that are still referenced keep theirs.
        """
        if self._arrays:
            # It is released in the order of the engine's stream, and may be in use on another.
            with suppress(EngineError):  # reported where it was waited for
                self._device.activate()
                self._device.sync_all()
            self._arrays = {}

    def _run_batch(
        self,
        inputs: Mapping[str, Float32Array],
        outputs: Mapping[str, Float32Array],
        rows: tuple[int, int],
        start: StartBatch,
    ) -> None:
        part = slice(*rows) if self.has_objects else slice(None)
        buffers = self.of(rows[1] - rows[0])
        for name, buffer in buffers.inputs.items():
            # Rounded to nearest, as a cast on the device would round.
            array = np.ascontiguousarray(inputs[name][part], dtype=buffer.dtype)
            self._device.upload(array, buffer)
        start(rows[1] - rows[0])
        arrived: dict[str, npt.NDArray[Any]] = {}
        for name, buffer in buffers.outputs.items():
            arrived[name] = np.empty(buffer.shape, buffer.dtype)
            self._device.download_async(buffer, arrived[name])
        self._device.sync()
        for name, array in arrived.items():
            outputs[name][part] = array

    def _part(self, tensors: tuple[TensorSpec, ...], objects: int) -> dict[str, DeviceArray]:
        found: dict[str, DeviceArray] = {}
        for tensor in tensors:
            whole = self._arrays[tensor.name]
            # Without a stream: the caller orders itself after the stream that the engine ran on.
            found[tensor.name] = DeviceArray(
                whole.address, _shape_for(tensor, objects), whole.dtype, whole.owner
            )
        return found


def _shape_for(tensor: TensorSpec, objects: int) -> tuple[int, ...]:
    """Return the shape of a tensor with ``objects`` objects.

    Raises:
        EngineError: If another axis is dynamic, or not the first one.
    """
    if any(axis != 0 or name != OBJECTS_AXIS for axis, name in tensor.dynamic_axes.items()):
        raise EngineError(
            f"tensor {tensor.describe()} has a dynamic axis other than '{OBJECTS_AXIS}' in front: "
            "export it again"
        )
    return tuple(objects if isinstance(size, str) else size for size in tensor.shape)
