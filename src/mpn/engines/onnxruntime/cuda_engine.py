"""The onnxruntime engine on CUDA: device memory in and out, in stream order.

Not yet run on a GPU. The provider of each session is checked, as on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mpn._common.closeable import Closeable
from mpn._common.text import one_line
from mpn.cuda.array import DeviceArray
from mpn.cuda.device import CudaDevice
from mpn.engines.base import EngineBuffers
from mpn.engines.buffers import DeviceBuffers
from mpn.engines.onnxruntime.engine import check_interface, import_onnxruntime, open_session
from mpn.engines.spec import EngineSpec
from mpn.errors import EngineError
from mpn.types import Float32Array


class OrtCudaEngine(Closeable):
    """Implement :class:`mpn.engines.base.DeviceEngine` by the CUDA provider.

    The provider works on the engine's stream, because a session takes its stream once, when it is
    created. Events order the runs after the caller's stream, and the host does not wait. Tensors
    are bound to fixed memory, with one binding per number of objects.

    Args:
        onnx_path: Graph file; external data is in the same folder.
        spec: The interface it must have.
        device: The GPU.
        threads: Threads within an operator that stays on the CPU; None leaves it to onnxruntime.

    Raises:
        BackendError: If onnxruntime would not run on CUDA.
        EngineError: If the graph is missing, damaged or of another interface, or memory is short.
        MissingExtraError: If onnxruntime is not installed.
    """

    def __init__(
        self,
        onnx_path: str | os.PathLike[str],
        spec: EngineSpec,
        device: CudaDevice,
        *,
        threads: int | None = None,
    ) -> None:
        self._path, self._spec, self._device = Path(onnx_path), spec, device
        self._session: Any = None
        self._buffers: DeviceBuffers | None = None
        self._bindings: dict[int, Any] = {}
        device.activate()
        self._stream: CudaDevice | None = device.create_stream()
        try:
            self._session = open_session(
                self._path,
                "cuda",
                threads,
                cuda_options={
                    "device_id": str(device.index),
                    "user_compute_stream": str(self._stream.address),
                },
            )
            check_interface(self._path, spec, self._session)
            self._buffers = DeviceBuffers(spec, self._stream)
        except BaseException:
            self.close()
            raise
        # Without it every run ends in a wait for the device.
        self._run_options = import_onnxruntime("cuda").RunOptions()
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def __repr__(self) -> str:
        state = "closed" if self._session is None else self.backend
        return f"OrtCudaEngine({self._path.name}, role={self._spec.role}, {state})"

    @property
    def spec(self) -> EngineSpec:
        """Names and shapes of its tensors."""
        return self._spec

    @property
    def backend(self) -> str:
        """``"cuda"``."""
        return "cuda"

    @property
    def device(self) -> CudaDevice:
        """The GPU of the engine."""
        return self._device

    @property
    def supports_graph_capture(self) -> bool:
        """False: a session may allocate, and copy through the host, in every run."""
        return False

    def buffers(self, objects: int = 1) -> EngineBuffers:
        """See :class:`mpn.engines.base.DeviceEngine`."""
        return self._open_buffers().of(objects)

    def prepare(self, stream: int, objects: int = 1) -> None:
        """See :class:`mpn.engines.base.DeviceEngine`."""
        self.enqueue(stream, objects)
        self._device.on(stream).sync()

    def enqueue(self, stream: int, objects: int = 1) -> EngineBuffers:
        """See :class:`mpn.engines.base.DeviceEngine`."""
        buffers, own = self.buffers(objects), self._own_stream()
        self._device.activate()
        caller = self._device.on(stream)
        if caller.is_capturing:
            raise EngineError(
                "an engine of backend cuda cannot be captured into a CUDA graph: run it outside, "
                "or use backend tensorrt"
            )
        own.wait(caller.record())
        self._start(objects)
        caller.wait(own.record())
        return buffers

    def infer_on_device(self, inputs: Mapping[str, Any], stream: int) -> Mapping[str, DeviceArray]:
        """See :class:`mpn.engines.base.DeviceEngine`."""
        own = self._open_buffers()
        objects = own.objects_in(inputs)
        self._device.activate()
        own.copy_in(inputs, objects, self._device.on(stream))
        return self.enqueue(stream, objects).outputs

    def run(self, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        """See :class:`mpn.engines.base.Engine`; many objects run in batches."""
        self._device.activate()
        return self._open_buffers().run_batches(inputs, self._start)

    def close(self) -> None:
        """Release session and memory; closing twice is allowed."""
        self._bindings = {}
        self._session = None
        if self._buffers is not None:
            self._buffers.close()
            self._buffers = None
        self._stream = None

    def _start(self, objects: int) -> None:
        """Start one run on the session's stream."""
        binding = self._bindings.get(objects) or self._bind(objects)
        try:
            self._session.run_with_iobinding(binding, self._run_options)
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise EngineError(
                f"the {self._spec.role} engine failed on cuda: {one_line(error)}"
            ) from error

    def _bind(self, objects: int) -> Any:
        buffers = self._open_buffers().of(objects)
        binding = self._session.io_binding()
        for bind, tensors in (
            (binding.bind_input, buffers.inputs),
            (binding.bind_output, buffers.outputs),
        ):
            for name, tensor in tensors.items():
                bind(
                    name,
                    device_type="cuda",
                    device_id=self._device.index,
                    element_type=np.float32,
                    shape=list(tensor.shape),
                    buffer_ptr=tensor.address,
                )
        self._bindings[objects] = binding
        return binding

    def _own_stream(self) -> CudaDevice:
        assert self._stream is not None  # closed engines have no buffers, which raises before
        return self._stream

    def _open_buffers(self) -> DeviceBuffers:
        if self._buffers is None:
            raise EngineError(f"the {self._spec.role} engine is closed: open it again to run it")
        return self._buffers
