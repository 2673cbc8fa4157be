"""An execution context of TensorRT with fixed shapes and fixed memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpn.cuda.array import DeviceArray
from mpn.cuda.device import CudaDevice, CudaGraph
from mpn.engines.base import EngineBuffers
from mpn.engines.trt_api import TrtApi
from mpn.errors import EngineError


class BoundContext:
    """A context whose shapes and addresses never change: its CUDA graph stays valid.

    TensorRT documents that a captured graph is undefined once the context it was captured from has
    been given other shapes: there is a context for every number of objects. They share their
    scratch memory, which is why an engine runs on one stream at a time.

    Args:
        api: The library.
        context: Made without device memory.
        device: The GPU, on a stream of the engine's own: the default stream cannot be captured.
        buffers: What is bound, for this number of objects.
        profile: Index of the optimisation profile; None for an engine of fixed sizes.
        scratch: The memory it works in.

    Raises:
        EngineError: If the library refuses a shape or an address, or gives another output shape.
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
        if profile is not None:  # also the first: the default of later contexts was none once
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
                f"{api.title} cannot tell the shapes of the outputs: {', '.join(missing)} missing"
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
        """Return whether a run may be captured on the stream; True if the library has no call."""
        asked = getattr(self._context, "is_stream_capturable", None)
        return True if asked is None else bool(asked(stream))

    def warm_up(self, *, capture: bool) -> None:
        """Run once on the engine's stream, and capture a graph.

        Args:
            capture: Whether to capture. If that fails, :attr:`why_no_graph` holds the reason, and
                runs are started kernel by kernel.

        Raises:
            EngineError: If the run fails.
        """
        # TensorRT asks for one run with a shape before it is captured.
        device = self._device
        self.start(device.address)
        device.sync()
        if not capture:
            self.why_no_graph = "it was not asked for"
        elif not self.is_capturable(device.address):
            self.why_no_graph = f"{self._api.title} says that this engine cannot be captured"
        else:
            try:
                self._graph = device.capture(lambda: self.start(device.address))
            except EngineError as error:
                self.why_no_graph = str(error)
            else:
                self.why_no_graph = None

    def launch(self, on: CudaDevice) -> None:
        """Start one run on a stream, as a graph if there is one, else kernel by kernel."""
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
