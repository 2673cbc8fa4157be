"""Engines of TensorRT and TensorRT for RTX. Not yet run on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mpn._common.closeable import Closeable
from mpn._common.files import write_bytes_atomically
from mpn.cuda.array import DeviceArray
from mpn.cuda.device import CudaDevice, CudaGraph
from mpn.engines.base import EngineBuffers
from mpn.engines.buffers import DeviceBuffers
from mpn.engines.spec import EngineSpec
from mpn.engines.tensorrt.api import TrtApi
from mpn.engines.tensorrt.plans.options import object_profiles, profile_for
from mpn.engines.tensorrt.refit import refit
from mpn.errors import EngineError, OutputError
from mpn.types import Float32Array


class BoundContext:
    """Execution context of fixed shapes and addresses; its CUDA graph stays valid.

    TensorRT documents that a captured graph is undefined after its context gets other shapes.
    Therefore there is one context per number of objects. The contexts share their scratch memory,
    so an engine runs on one stream at a time.

    Args:
        api: The library.
        context: Created without device memory.
        device: The GPU on the engine's stream; the default stream cannot be captured.
        buffers: Buffers to bind, for this number of objects.
        profile: Index of the optimisation profile; None for an engine of fixed sizes.
        scratch: Scratch memory of the context.

    Raises:
        EngineError: If the library refuses a shape or an address, or returns another output shape.
    """

    def __init__(
        self,
        api: TrtApi,
        context: Any,
        device: CudaDevice,
        *,
        buffers: EngineBuffers,
        profile: int | None,
        scratch: DeviceArray,
    ) -> None:
        self._api, self._context, self._device = api, context, device
        self.buffers = buffers
        self._graph: CudaGraph | None = None
        self.why_no_graph: str | None = "none was captured yet"
        context.set_device_memory(scratch.address, scratch.nbytes)
        if profile is not None:  # also for profile 0: later contexts once had no default
            api.check(
                context.set_optimization_profile_async(profile, device.address),
                f"choosing optimisation profile {profile}",
            )
            device.sync()
        for name, tensor in buffers.inputs.items():
            api.check(
                context.set_input_shape(name, tensor.shape),
                f"setting the shape of '{name}' to {tensor.shape}",
            )
        missing = context.infer_shapes()
        if missing:
            raise EngineError(
                f"{api.title} cannot compute the output shapes: {', '.join(missing)} missing"
            )
        self._bind(buffers.inputs)
        self._bind(buffers.outputs, is_output=True)

    def start(self, stream: int) -> None:
        """Start one run.

        Raises:
            EngineError: If the library refuses.
        """
        self._api.check(self._context.execute_async_v3(stream), "starting a run")

    def is_capturable(self, stream: int) -> bool:
        """Return whether a run may be captured; True if the library has no such call."""
        is_capturable = getattr(self._context, "is_stream_capturable", None)
        return True if is_capturable is None else bool(is_capturable(stream))

    def warm_up(self, *, capture: bool) -> None:
        """Run once on the engine's stream, and capture a graph.

        Args:
            capture: Whether to capture. If that fails, :attr:`why_no_graph` holds the reason, and
                runs are started kernel by kernel.

        Raises:
            EngineError: If the run fails.
        """
        # TensorRT requires one run with a shape before it is captured.
        device = self._device
        self.start(device.address)
        device.sync()
        if not capture:
            self.why_no_graph = "it was not requested"
        elif not self.is_capturable(device.address):
            self.why_no_graph = f"{self._api.title} cannot capture this engine"
        else:
            try:
                self._graph = device.capture(lambda: self.start(device.address))
            except EngineError as error:
                self.why_no_graph = str(error)
            else:
                self.why_no_graph = None

    def launch(self, on: CudaDevice) -> None:
        """Start one run on a stream: launch the graph, or the kernels without one."""
        if self._graph is None:
            self.start(on.address)
        else:
            self._graph.launch(on)

    def close(self) -> None:
        """Release graph and context, in this order; closing twice is allowed."""
        self._graph = None
        self._context = None

    def _bind(self, tensors: Mapping[str, DeviceArray], *, is_output: bool = False) -> None:
        for name, tensor in tensors.items():
            shape = tuple(self._context.get_tensor_shape(name))
            if is_output and shape != tensor.shape:
                raise EngineError(
                    f"output '{name}' of the plan is {shape}, expected {tensor.shape}: build it "
                    "again"
                )
            self._api.check(
                self._context.set_tensor_address(name, tensor.address),
                f"giving '{name}' its memory",
            )


class TrtEngine(Closeable):
    """Implement :class:`mpn.engines.base.DeviceEngine` by a loaded plan.

    Loading allocates the buffers for the largest number of objects, and one scratch memory. A
    context is created by the first run with a number of objects, or by :meth:`prepare`.

    Args:
        api: The library.
        data: The plan.
        spec: The interface it must have.
        device: The GPU.
        use_graphs: Capture a CUDA graph per number of objects and replay it.
        weights: Refitted before the first run, in the form that the plan stores; the plan must be
            refittable.
        kernel_cache: File for kernels that TensorRT for RTX compiles for this GPU; read if it
            exists, written when the engine is closed. TensorRT has none.
        allow_host_code: Accept code for the host, which version-compatible plans contain.

    Raises:
        EngineError: If the library refuses the plan, it has another interface, or there is not
            enough memory.
    """

    def __init__(
        self,
        api: TrtApi,
        data: bytes,
        spec: EngineSpec,
        device: CudaDevice,
        *,
        use_graphs: bool = True,
        weights: Mapping[str, np.ndarray[Any, Any]] | None = None,
        kernel_cache: Path | None = None,
        allow_host_code: bool = False,
    ) -> None:
        self._api, self._spec, self._device = api, spec, device
        self._use_graphs = use_graphs
        self._profiles = object_profiles(spec)
        self._contexts: dict[int, BoundContext] = {}
        self._buffers: DeviceBuffers | None = None
        self._scratch: DeviceArray | None = None
        self._stream: CudaDevice | None = None
        self._kernel_cache = kernel_cache if api.is_rtx else None
        device.activate()
        self._runtime = api.check(api.module.Runtime(api.logger), "making a runtime")
        # Only version-compatible plans contain code for the host, which is then run.
        self._runtime.engine_host_code_allowed = allow_host_code
        self._engine: Any = api.check(
            self._runtime.deserialize_cuda_engine(data), f"loading the {spec.role} plan"
        )
        dtypes = self._checked_dtypes()
        if weights:
            refit(api, self._engine, weights)
        self._config: Any = self._runtime_config()
        try:
            self._stream = device.create_stream()
            scratch_bytes = int(self._engine.device_memory_size_v2)
            self._scratch = self._stream.empty((scratch_bytes,), np.uint8)
            self._buffers = DeviceBuffers(spec, self._stream, dtypes)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        state = "closed" if self._engine is None else self.backend
        return f"TrtEngine(role={self._spec.role}, {state}, contexts for {sorted(self._contexts)})"

    @property
    def spec(self) -> EngineSpec:
        """Names and shapes of its tensors."""
        return self._spec

    @property
    def backend(self) -> str:
        """``"tensorrt"`` or ``"tensorrt-rtx"``."""
        return self._api.backend

    @property
    def device(self) -> CudaDevice:
        """The GPU of the engine."""
        return self._device

    @property
    def supports_graph_capture(self) -> bool:
        """See :class:`mpn.engines.base.DeviceEngine`; final after :meth:`prepare`."""
        own = self._stream
        return own is None or all(
            context.is_capturable(own.address) for context in self._contexts.values()
        )

    @property
    def why_no_graphs(self) -> Mapping[int, str]:
        """Reasons by number of objects for the runs without a CUDA graph."""
        return {
            objects: context.why_no_graph
            for objects, context in self._contexts.items()
            if context.why_no_graph is not None
        }

    def buffers(self, objects: int = 1) -> EngineBuffers:
        """See :class:`mpn.engines.base.DeviceEngine`."""
        return self._open_buffers().of(objects)

    def prepare(self, stream: int, objects: int = 1) -> None:
        """See :class:`mpn.engines.base.DeviceEngine`."""
        own = self._open_buffers()
        if objects in self._contexts:
            return
        buffers = own.of(objects)
        self._device.activate()
        caller = self._device.on(stream)
        if caller.is_capturing:
            raise EngineError(
                f"the {self._spec.role} engine has not run with {objects} objects yet, and a "
                "stream is being captured: call prepare() before"
            )
        assert self._stream is not None
        assert self._scratch is not None
        self._stream.wait(caller.record())  # a run there may still use the scratch memory
        context = self._api.check(
            self._engine.create_execution_context(self._config), "making an execution context"
        )
        bound = BoundContext(
            self._api,
            context,
            self._stream,
            buffers=buffers,
            profile=profile_for(self._profiles, objects) if self._profiles else None,
            scratch=self._scratch,
        )
        bound.warm_up(capture=self._use_graphs)
        self._contexts[objects] = bound

    def enqueue(self, stream: int, objects: int = 1) -> EngineBuffers:
        """See :class:`mpn.engines.base.DeviceEngine`."""
        context = self._context(stream, objects)
        context.start(stream)
        return context.buffers

    def infer_on_device(self, inputs: Mapping[str, Any], stream: int) -> Mapping[str, DeviceArray]:
        """See :class:`mpn.engines.base.DeviceEngine`."""
        own = self._open_buffers()
        objects = own.objects_in(inputs)
        context = self._context(stream, objects)
        caller = self._device.on(stream)
        own.copy_in(inputs, objects, caller)
        if caller.is_capturing:
            context.start(stream)  # a graph cannot be launched during a capture
        else:
            context.launch(caller)
        return context.buffers.outputs

    def run(self, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        """See :class:`mpn.engines.base.Engine`; many objects run in batches."""
        own = self._open_buffers()
        self._device.activate()
        return own.run_batches(inputs, self._run_batch)

    def close(self) -> None:
        """Release graphs, contexts, engine and memory; closing twice is allowed."""
        if self._engine is not None and self._contexts:
            self._save_kernels()
        for context in self._contexts.values():
            context.close()
        self._contexts = {}
        self._config = self._engine = self._runtime = None
        if self._buffers is not None:
            self._buffers.close()
            self._buffers = None
        self._scratch = self._stream = None

    def _run_batch(self, objects: int) -> None:
        assert self._stream is not None
        self._context(self._stream.address, objects).launch(self._stream)

    def _context(self, stream: int, objects: int) -> BoundContext:
        if objects not in self._contexts:
            self.prepare(stream, objects)
        self._device.activate()
        return self._contexts[objects]

    def _open_buffers(self) -> DeviceBuffers:
        if self._buffers is None:
            raise EngineError(f"the {self._spec.role} engine is closed: open it again to run it")
        return self._buffers

    def _checked_dtypes(self) -> dict[str, str]:
        """Check the tensors against the spec, and return their dtypes by name."""
        engine, modes = self._engine, self._api.module.TensorIOMode
        found = {
            name: engine.get_tensor_mode(name)
            for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors))
        }
        for tensors, mode in ((self._spec.inputs, modes.INPUT), (self._spec.outputs, modes.OUTPUT)):
            for tensor in tensors:
                wanted = tuple(-1 if isinstance(size, str) else size for size in tensor.shape)
                if found.pop(tensor.name, None) != mode:
                    raise EngineError(
                        f"the {self._spec.role} plan has no tensor '{tensor.name}': build it again"
                    )
                shape = tuple(engine.get_tensor_shape(tensor.name))
                if shape != wanted:
                    raise EngineError(
                        f"'{tensor.name}' of the {self._spec.role} plan is {shape}, expected "
                        f"{tensor.describe()}: build it again"
                    )
        if found:
            raise EngineError(
                f"the {self._spec.role} plan has surplus tensors {sorted(found)}: build it again"
            )
        return {
            tensor.name: self._api.numpy_dtype(engine.get_tensor_dtype(tensor.name))
            for tensor in (*self._spec.inputs, *self._spec.outputs)
        }

    def _runtime_config(self) -> Any:
        module = self._api.module
        config = self._api.check(self._engine.create_runtime_config(), "making a runtime config")
        config.set_execution_context_allocation_strategy(
            module.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if self._api.is_rtx:
            # Kernels for a shape are compiled eagerly: a graph captured before the lazy compiler
            # finished would not contain them.
            strategies = module.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            config.cuda_graph_strategy = module.CudaGraphStrategy.DISABLED  # ours are captured here
            cache = self._api.check(config.create_runtime_cache(), "making a runtime cache")
            if self._kernel_cache is not None and self._kernel_cache.is_file():
                # A cache of another GPU or driver is refused; kernels are then compiled again.
                cache.deserialize(self._kernel_cache.read_bytes())
                self._api.messages.clear()
            self._api.check(config.set_runtime_cache(cache), "setting the runtime cache")
        return config

    def _save_kernels(self) -> None:
        if self._kernel_cache is None:
            return
        memory = self._config.get_runtime_cache().serialize()
        if memory is None:
            return
        data = bytes(memory)
        try:
            old = self._kernel_cache.read_bytes() if self._kernel_cache.is_file() else b""
            if data != old:
                write_bytes_atomically(self._kernel_cache, data, durable=True)
        except (OutputError, OSError):
            return  # a cache: the next start compiles again
