"""One execution context, bound for good to one number of objects and to fixed memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpn.engines.base import DeviceTensor, EngineBuffers
from mpn.engines.device import Device, DeviceGraph
from mpn.engines.trt_api import TrtApi
from mpn.errors import EngineError


class BoundContext:
    """A context whose shapes and addresses never change, so that a CUDA graph of it stays valid.

    TensorRT documents that a captured graph is undefined once the context it was captured from has
    been given other shapes: there is a context for every number of objects. They share their
    scratch memory, which is why an engine runs on one stream at a time.

    Args:
        api: The library.
        context: Made without device memory.
        device: The GPU.
        buffers: What is bound, for this number of objects.
        profile: Index of the optimisation profile; None for an engine of fixed sizes.
        scratch: Address and size in bytes of the memory it works in.
        stream: For choosing the profile; it is waited for.

    Raises:
        EngineError: If the library refuses a shape or an address, or gives another output shape.
    """

    def __init__(
        self,
        api: TrtApi,
        context: Any,
        device: Device,
        *,
        buffers: EngineBuffers,
        profile: int | None,
        scratch: tuple[int, int],
        stream: int,
    ) -> None:
        self._api, self._context, self._device = api, context, device
        self.buffers = buffers
        self._graph: DeviceGraph | None = None
        self.why_no_graph: str | None = "none was captured yet"
        context.set_device_memory(*scratch)
        if profile is not None:  # also the first: the default of later contexts was none once
            api.check(
                context.set_optimization_profile_async(profile, stream),
                f"choosing optimisation profile {profile}",
            )
            device.synchronize(stream)
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
        """Whether a run may be captured on the stream; what the library does not tell is true."""
        asked = getattr(self._context, "is_stream_capturable", None)
        return True if asked is None else bool(asked(stream))

    def warm_up(self, stream: int, *, capture: bool) -> None:
        """Run once, so that nothing is left to be done at first use, and capture a graph.

        Args:
            stream: A stream of the engine's own: the default stream cannot be captured.
            capture: Whether to. Where that fails, :attr:`why_no_graph` says why, and runs are
                started kernel by kernel.

        Raises:
            EngineError: If the run fails.
        """
        # TensorRT asks for one run with a shape before it is captured.
        self.start(stream)
        self._device.synchronize(stream)
        if not capture:
            self.why_no_graph = "it was not asked for"
        elif not self.is_capturable(stream):
            self.why_no_graph = f"{self._api.title} says that this engine cannot be captured"
        else:
            try:
                self._graph = self._device.capture(stream, lambda: self.start(stream))
            except EngineError as error:
                self.why_no_graph = str(error)
            else:
                self.why_no_graph = None

    def replay(self, stream: int) -> None:
        """Start one run by its graph, or kernel by kernel where there is none."""
        if self._graph is None:
            self.start(stream)
        else:
            self._graph.launch(stream)

    def close(self) -> None:
        """Release graph and context, in this order; closing twice is allowed."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        self._context = None

    def _bind(self, tensors: Mapping[str, DeviceTensor], *, is_output: bool = False) -> None:
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
