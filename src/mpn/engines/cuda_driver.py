"""A CUDA device for engines, through NVIDIA's own bindings of the driver.

It works in the device's primary context, so its memory and streams mix with those of cuda-core,
torch, CuPy and onnxruntime in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mpn.engines.device import DeviceGraph
from mpn.errors import BackendError, EngineError, MpnError, import_or_explain

_PURPOSE = "running engines on a GPU"
_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: such a stream does not wait for the default one."""
_NO_TIMING = 2
"""CU_EVENT_DISABLE_TIMING: an event for order alone is cheaper."""


class CudaDevice:
    """Implements :class:`mpn.engines.device.Device` on a GPU.

    Every method makes the primary context current in the calling thread: flow runs in a thread of
    its own, and CUDA keeps the context by thread.

    Args:
        index: Number of the device.

    Raises:
        BackendError: If there is no driver, or no such device.
        MissingExtraError: If cuda-bindings is not installed.
    """

    def __init__(self, index: int = 0) -> None:
        self._driver = import_or_explain("cuda.bindings.driver", extra="gpu", purpose=_PURPOSE)
        self._index = index
        self._context: Any = None
        try:
            self._call("cuInit", 0)
            count = int(self._call("cuDeviceGetCount"))
            if index >= count:
                raise EngineError(f"there are {count} devices")
            device = self._call("cuDeviceGet", index)
            kind = self._driver.CUdevice_attribute
            major, minor = (
                int(self._call("cuDeviceGetAttribute", attribute, device))
                for attribute in (
                    kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                    kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                )
            )
            name = bytes(self._call("cuDeviceGetName", 256, device))
            self._context = self._call("cuDevicePrimaryCtxRetain", device)
        except Exception as error:  # without a driver the bindings raise errors of their own
            raise BackendError(
                f"CUDA device {index} cannot be used ({' '.join(str(error).split())}): see what "
                "nvidia-smi says, or work with backend cpu"
            ) from error
        self._name = name.split(b"\0")[0].decode(errors="replace").strip()
        self._arch = f"sm_{major}{minor}"

    def __repr__(self) -> str:
        return f"CudaDevice({self._index}, {self._name}, {self._arch})"

    @property
    def index(self) -> int:
        """Number of the device."""
        return self._index

    @property
    def name(self) -> str:
        """As the vendor calls it."""
        return self._name

    @property
    def arch(self) -> str:
        """Compute capability, like ``"sm_90"``."""
        return self._arch

    def activate(self) -> None:
        """Make the device current in this thread, for libraries that go by that."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, nbytes: int) -> int:
        """See :class:`mpn.engines.device.Device`."""
        self.activate()
        try:
            return int(self._call("cuMemAlloc", max(nbytes, 1)))
        except EngineError as error:
            raise EngineError(
                f"{nbytes / 1e6:.0f} MB of memory on {self._name} cannot be had ({error}): end "
                "other programs that use it, or export with fewer --max-objects or a smaller frame"
            ) from error

    def free(self, address: int) -> None:
        """See :class:`mpn.engines.device.Device`."""
        self.activate()
        self._call("cuMemFree", address)

    def create_stream(self) -> int:
        """See :class:`mpn.engines.device.Device`."""
        self.activate()
        return int(self._call("cuStreamCreate", _NON_BLOCKING))

    def destroy_stream(self, stream: int) -> None:
        """See :class:`mpn.engines.device.Device`."""
        self.activate()
        self._call("cuStreamDestroy", stream)

    def upload(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        """See :class:`mpn.engines.device.Device`.

        Of pageable memory the driver has taken its copy when this returns; NumPy's is.
        """
        _check_contiguous(array)
        self.activate()
        self._call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, stream)

    def download(self, address: int, out: npt.NDArray[Any], stream: int) -> None:
        """See :class:`mpn.engines.device.Device`."""
        _check_contiguous(out)
        self.activate()
        self._call("cuMemcpyDtoHAsync", out.ctypes.data, address, out.nbytes, stream)

    def copy(self, source: int, target: int, nbytes: int, stream: int) -> None:
        """See :class:`mpn.engines.device.Device`."""
        self.activate()
        self._call("cuMemcpyDtoDAsync", target, source, nbytes, stream)

    def zero(self, address: int, nbytes: int, stream: int) -> None:
        """See :class:`mpn.engines.device.Device`."""
        self.activate()
        self._call("cuMemsetD8Async", address, 0, nbytes, stream)

    def synchronize(self, stream: int) -> None:
        """See :class:`mpn.engines.device.Device`."""
        self.activate()
        self._call("cuStreamSynchronize", stream)

    def order(self, before: int, after: int) -> None:
        """See :class:`mpn.engines.device.Device`."""
        if before == after:
            return
        self.activate()
        event = self._call("cuEventCreate", _NO_TIMING)
        try:
            self._call("cuEventRecord", event, before)
            self._call("cuStreamWaitEvent", after, event, 0)
        finally:
            self._call("cuEventDestroy", event)  # the driver keeps it until the wait is over

    def is_capturing(self, stream: int) -> bool:
        """See :class:`mpn.engines.device.Device`."""
        self.activate()
        status = self._call("cuStreamIsCapturing", stream)
        return int(status) != int(self._driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE)

    def capture(self, stream: int, start: Callable[[], None]) -> DeviceGraph:
        """See :class:`mpn.engines.device.Device`."""
        self.activate()
        # Thread-local: another thread, with the flow of the next frame, may allocate meanwhile.
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", stream, mode)
        try:
            start()
        except BaseException:
            self._abandon(stream)
            raise
        graph = self._call("cuStreamEndCapture", stream)
        try:
            return CudaGraph(self, self._call("cuGraphInstantiate", graph, 0))
        finally:
            self._call("cuGraphDestroy", graph)

    def _abandon(self, stream: int) -> None:
        """End a capture that failed, so that the stream works again."""
        status, *graph = self._driver.cuStreamEndCapture(stream)
        if int(status) == 0:
            self._driver.cuGraphDestroy(graph[0])

    def _call(self, function: str, *arguments: Any) -> Any:
        status, *values = getattr(self._driver, function)(*arguments)
        if int(status) != 0:
            raise EngineError(f"{function} failed: {getattr(status, 'name', status)}")
        return values[0] if values else None


class CudaGraph:
    """An instantiated graph of a :class:`CudaDevice`."""

    def __init__(self, device: CudaDevice, handle: Any) -> None:
        self._device = device
        self._handle: Any = handle

    def launch(self, stream: int) -> None:
        """See :class:`mpn.engines.device.DeviceGraph`."""
        self._device.activate()
        self._device._call("cuGraphLaunch", self._handle, stream)

    def close(self) -> None:
        """Release it; closing twice is allowed."""
        if self._handle is not None:
            self._device.activate()
            self._device._call("cuGraphExecDestroy", self._handle)
            self._handle = None


def open_device(index: int = 0) -> CudaDevice:
    """The device engines run on.

    Raises:
        BackendError: If there is no driver, or no such device.
        MissingExtraError: If cuda-bindings is not installed.
    """
    return CudaDevice(index)


def why_no_device() -> str | None:
    """Why no GPU can be used here; None if one can."""
    try:
        open_device()
    except MpnError as error:
        return str(error)
    return None


def _check_contiguous(array: npt.NDArray[Any]) -> None:
    if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
        raise EngineError("a C-contiguous NumPy array was expected: make one of it first")
