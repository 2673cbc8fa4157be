"""The OpenVINO engine: the same graphs on the CPU, only if it is requested.

The reference is onnxruntime. Sums are in another order here, so that outputs differ by rounding.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from mpn._common.closeable import Closeable
from mpn._common.concurrency import usable_threads
from mpn._common.cores import usable_cores
from mpn._common.memory import is_out_of_memory, out_of_memory_message
from mpn._common.text import LONGEST_MESSAGE, one_line
from mpn.engines.spec import EngineSpec, TensorSpec
from mpn.errors import BackendError, EngineError, OutOfMemoryError, import_or_explain
from mpn.types import Float32Array

_DEVICE = "CPU"
_TELEMETRY = "openvino_telemetry"
_DTYPES = {"f32": "float32", "f16": "float16"}


class OpenVinoEngine(Closeable):
    """Implement :class:`mpn.engines.base.Engine` by OpenVINO; loads the graph.

    Each number of objects is compiled when it is first run: a network of fixed sizes needs 20 %
    less time than one with a free axis (lite propagation, OpenVINO 2026.4). Runs of several
    threads wait for each other. Activations are float32, also on CPUs with bfloat16.

    Args:
        onnx_path: Graph file; external data is in the same folder.
        spec: The interface it must have.
        threads: Threads per operator; None for all usable cores.

    Raises:
        BackendError: If OpenVINO is installed but broken.
        EngineError: If the graph is missing, damaged or of another interface.
        InputError: If ``threads`` is under 1.
        MissingExtraError: If OpenVINO is not installed.
        OutOfMemoryError: If memory ran out.
    """

    def __init__(
        self,
        onnx_path: str | os.PathLike[str],
        spec: EngineSpec,
        *,
        threads: int | None = None,
    ) -> None:
        self._path = Path(onnx_path)
        self._spec = spec
        self._lock = Lock()
        self._config = {
            "INFERENCE_NUM_THREADS": usable_threads(threads) or usable_cores(),
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            # Otherwise bfloat16 on CPUs that have it.
            "INFERENCE_PRECISION_HINT": "f32",
            # The rest of the frame uses the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        self._requests: dict[int, Any] = {}
        self._openvino = _import_openvino()
        try:
            self._core: Any = self._openvino.Core()
            self._model: Any = self._core.read_model(os.fspath(self._path))
            self._check_interface()
            self._request(1)
        except EngineError:
            raise
        except Exception as error:  # OpenVINO's exceptions share no base but RuntimeError
            _check_not_out_of_memory(error, self._path.name)
            raise EngineError(
                f"{self._path.name} cannot be loaded by OpenVINO ({one_line(error)}): use backend "
                "cpu, or export it again"
            ) from error

    def __repr__(self) -> str:
        state = "closed" if self._model is None else self.backend
        return f"OpenVinoEngine({self._path.name}, role={self._spec.role}, {state})"

    @property
    def spec(self) -> EngineSpec:
        """Names and shapes of its tensors."""
        return self._spec

    @property
    def backend(self) -> str:
        """``"openvino"``."""
        return "openvino"

    def run(self, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        """Run once, see :class:`mpn.engines.base.Engine`.

        Raises:
            EngineError: If a name, shape or dtype does not fit the spec, an axis is empty, the
                engine is closed, or OpenVINO fails.
            OutOfMemoryError: If memory ran out.
        """
        with self._lock:
            if self._model is None:
                raise EngineError(
                    f"the {self._spec.role} engine is closed: open it again to run it"
                )
            self._spec.check_inputs(inputs)
            feeds = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
            try:
                request = self._request(self._objects_of(inputs))
                request.infer(feeds, share_inputs=True)
                return {
                    name: np.array(request.get_tensor(name).data, np.float32)
                    for name in self._spec.output_names
                }
            except Exception as error:  # as above
                what = f"the {self._spec.role} engine"
                _check_not_out_of_memory(error, what)
                raise EngineError(f"{what} failed on openvino: {one_line(error)}") from error

    def close(self) -> None:
        """Release the network; :meth:`run` raises afterwards."""
        with self._lock:
            self._requests.clear()
            self._model = self._core = None

    def _objects_of(self, inputs: Mapping[str, Float32Array]) -> int:
        for tensor in self._spec.inputs:
            for axis in tensor.dynamic_axes:
                return int(inputs[tensor.name].shape[axis])
        return 1

    def _request(self, objects: int) -> Any:
        """Return the inference request of a number of objects."""
        found = self._requests.get(objects)
        if found is None:
            model = self._model
            if any(tensor.dynamic_axes for tensor in self._spec.inputs):
                model = model.clone()
                model.reshape(
                    {
                        tensor.name: [
                            objects if isinstance(size, str) else size for size in tensor.shape
                        ]
                        for tensor in self._spec.inputs
                    }
                )
            compiled = self._core.compile_model(model, _DEVICE, self._config)
            found = self._requests[objects] = compiled.create_infer_request()
        return found

    def _check_interface(self) -> None:
        """Raise EngineError unless the graph has the tensors of the spec."""
        differences = []
        for kind, expected, ports in (
            ("input", self._spec.inputs, self._model.inputs),
            ("output", self._spec.outputs, self._model.outputs),
        ):
            found = {port.get_any_name(): port for port in ports}
            for tensor in expected:
                port = found.pop(tensor.name, None)
                if port is None:
                    differences.append(f"{kind} '{tensor.name}' is missing")
                elif not _fits(port, tensor):
                    dtype = port.get_element_type().get_type_name()
                    shape = port.get_partial_shape().to_string()
                    differences.append(
                        f"{kind} {tensor.name} {dtype}{shape}, expected {tensor.describe()}"
                    )
            differences += [f"{kind} {name} is surplus" for name in found]
        if differences:
            raise EngineError(
                f"{self._path.name} is not the {self._spec.role} engine of this manifest: "
                f"{one_line('; '.join(differences), LONGEST_MESSAGE)}: export it again"
            )


def _import_openvino() -> Any:
    """Import OpenVINO without its telemetry.

    ``import openvino`` sends an event to a host and writes to the home folder (2026.4). There is no
    switch in the environment. It uses an empty substitute if its package openvino-telemetry cannot
    be imported.
    """
    hidden = {} if "openvino" in sys.modules else {_TELEMETRY: sys.modules.pop(_TELEMETRY, None)}
    try:
        for name in hidden:
            sys.modules[name] = None  # type: ignore[assignment]  # an import of it fails
        return import_or_explain("openvino", extra="openvino", purpose="the openvino backend")
    except ImportError as error:
        _check_not_out_of_memory(error, "openvino")
        raise BackendError(
            f"openvino is installed but cannot be loaded ({one_line(error)}): reinstall "
            "mpn-runtime with its extra [openvino]"
        ) from error
    finally:
        for name, module in hidden.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def _fits(port: Any, tensor: TensorSpec) -> bool:
    """Return whether a port has the type and sizes of a tensor, without names."""
    dtype = port.get_element_type().get_type_name()
    sizes = list(port.get_partial_shape())
    return (
        _DTYPES.get(dtype, dtype) == tensor.dtype
        and len(sizes) == len(tensor.shape)
        and all(
            size.is_dynamic if isinstance(want, str) else size == want
            for size, want in zip(sizes, tensor.shape, strict=True)
        )
    )


def _check_not_out_of_memory(error: Exception, what: str) -> None:
    if is_out_of_memory(error):
        raise OutOfMemoryError(out_of_memory_message(what)) from error
