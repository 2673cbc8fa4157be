"""Streams, events, pinned memory and graphs without a GPU: what is asked of the driver."""

from __future__ import annotations

import ctypes
import gc
import importlib
import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mpn.cuda import device as cuda_device
from mpn.cuda.api import is_on_device
from mpn.cuda.device import CudaDevice
from mpn.cuda.driver import Driver
from mpn.errors import BackendError
from tests.runtime.ops.conftest import need_or_skip

ASKED = (
    "cuCtxGetStreamPriorityRange",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventElapsedTime",
    "cuEventDestroy",
    "cuStreamWaitEvent",
    "cuStreamBeginCapture",
    "cuStreamEndCapture",
    "cuGraphInstantiate",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
)


class _Status(int):
    name = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"


class FakeDriver:
    """Notes every call; memory is the host's."""

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread")

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.memory: dict[int, Any] = {}
        self.fails: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *arguments: self._call(name, arguments)

    def _call(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        self.calls.append((name, *arguments))
        if name in self.fails:
            return (_Status(900), None)
        given: dict[str, tuple[Any, ...]] = {
            "cuCtxGetStreamPriorityRange": (0, -5),
            "cuEventCreate": (f"event {len(self.calls)}",),
            "cuEventElapsedTime": (2.5,),
            "cuStreamEndCapture": ("graph",),
            "cuGraphInstantiate": ("exec",),
        }
        if name == "cuMemHostAlloc":
            buffer = ctypes.create_string_buffer(arguments[0])
            self.memory[ctypes.addressof(buffer)] = buffer
            return (_Status(0), ctypes.addressof(buffer))
        if name.startswith("cuMemcpy"):
            ctypes.memmove(*arguments[:3])
        return (_Status(0), *given.get(name, ()))

    def named(self, *names: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] in names]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    stream = SimpleNamespace(__cuda_stream__=lambda: (0, 77))
    memory: list[Any] = []

    def allocate(nbytes: int, *, stream: Any) -> Any:
        memory.append(np.zeros(nbytes, np.uint8))
        return SimpleNamespace(handle=memory[-1].ctypes.data)

    def create_stream(given: Any = None, *, options: Any = None) -> Any:
        if options is None:
            return stream
        fake.calls.append(("create_stream", options.nonblocking, options.priority))
        return SimpleNamespace(__cuda_stream__=lambda: (0, 88))

    core = SimpleNamespace(
        Device=lambda _: SimpleNamespace(
            arch="90",
            set_current=lambda: None,
            create_stream=create_stream,
            allocate=allocate,
        ),
        StreamOptions=SimpleNamespace,
    )
    modules = {"cuda.core": core, "cuda.bindings.driver": fake}
    monkeypatch.setattr(cuda_device, "import_or_explain", lambda name, **_: modules[name])
    return fake


def test_create_stream_makes_a_stream_of_its_own(driver: FakeDriver) -> None:
    device = CudaDevice()
    plain, urgent = device.create_stream(), device.create_stream(high_priority=True)
    assert [device.address, plain.address, urgent.address] == [77, 88, 88]
    created = driver.named("create_stream")
    assert [call[1:] for call in created] == [(True, 0), (True, -5)], "not blocking; by priority"


def test_events_order_streams_and_measure(driver: FakeDriver) -> None:
    device = CudaDevice()
    other = device.create_stream()
    first, second = device.record(timing=True), other.record()
    other.wait(first)
    second.sync()
    assert second.elapsed_s(first) == 0.0025
    events = driver.named(
        "cuEventCreate", "cuEventRecord", "cuStreamWaitEvent", "cuEventSynchronize"
    )
    one, two = (call[1] for call in driver.named("cuEventRecord"))
    assert events == [
        ("cuEventCreate", 0),
        ("cuEventRecord", one, 77),
        ("cuEventCreate", 2),
        ("cuEventRecord", two, 88),
        ("cuStreamWaitEvent", 88, one, 0),
        ("cuEventSynchronize", two),
    ]
    del first, second
    gc.collect()
    assert [call[1] for call in driver.named("cuEventDestroy")] == [one, two]


def test_pinned_memory_is_copied_and_given_back_with_its_last_view(driver: FakeDriver) -> None:
    device = CudaDevice()
    staging = device.pinned((3, 4), np.float32)
    staging[:] = np.arange(12).reshape(3, 4)
    array = device.empty((3, 4), np.float32)
    device.upload_async(staging, array)
    back = device.pinned((3, 4), np.float32)
    device.download_async(array, back)
    assert np.array_equal(back, staging)
    assert not driver.named("cuStreamSynchronize"), "nobody waits"
    view = staging[1:]
    del staging
    gc.collect()
    assert not driver.named("cuMemFreeHost")
    del view
    gc.collect()
    assert len(driver.named("cuMemFreeHost")) == 1


def test_work_is_captured_once_and_launched_as_often_as_wanted(driver: FakeDriver) -> None:
    device = CudaDevice()
    array = device.empty((4,), np.uint8)
    graph = device.capture(lambda: device.copy(array, array))
    graph.launch()
    graph.launch()
    names = [call[0] for call in driver.calls]
    assert names[-7:] == [
        "cuStreamBeginCapture",
        "cuMemcpyDtoDAsync",
        "cuStreamEndCapture",
        "cuGraphInstantiate",
        "cuGraphDestroy",
        "cuGraphLaunch",
        "cuGraphLaunch",
    ]
    assert driver.named("cuStreamBeginCapture") == [("cuStreamBeginCapture", 77, "thread")]
    assert driver.named("cuGraphLaunch")[0] == ("cuGraphLaunch", "exec", 77)
    del graph
    gc.collect()
    assert driver.named("cuGraphExecDestroy") == [("cuGraphExecDestroy", "exec")]


def test_a_capture_that_fails_leaves_the_stream_usable(driver: FakeDriver) -> None:
    device = CudaDevice()

    def broken() -> None:
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        device.capture(broken)
    assert driver.calls[-2:] == [("cuStreamEndCapture", 77), ("cuGraphDestroy", "graph")]
    driver.fails = {"cuStreamEndCapture"}
    with pytest.raises(BackendError, match="cuStreamEndCapture failed: CUDA_ERROR_STREAM_CAPTURE"):
        device.capture(lambda: None)


def test_every_call_stands_in_nvidias_bindings_with_so_many_arguments(driver: FakeDriver) -> None:
    try:
        real = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        need_or_skip(f"cuda-bindings cannot be used ({error}): install the extra [dev]")
    device = CudaDevice()
    with_all = device.record(timing=True)
    device.create_stream().wait(with_all)
    with_all.sync()
    with_all.elapsed_s(with_all)
    device.pinned((1,), np.uint8)
    device.capture(lambda: None).launch()
    del with_all
    gc.collect()
    made = {call[0]: len(call) - 1 for call in driver.calls}
    assert set(ASKED) <= set(made)
    for name in ASKED:
        signature = (getattr(real, name).__doc__ or "").splitlines()[0]
        inside = signature.partition("(")[2].rpartition(")")[0]
        wanted = len([part for part in inside.split(",") if part.strip()])
        assert made[name] == wanted, signature
    assert inspect.ismodule(real)
    assert hasattr(real.CUstreamCaptureMode, "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL")


def test_arrays_say_where_they_lie() -> None:
    class OnGpu:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

    assert is_on_device(OnGpu())
    assert is_on_device(SimpleNamespace(__cuda_array_interface__={}))
    assert not is_on_device(np.zeros(3))
    assert not is_on_device([1])


def test_a_driver_that_fails_is_told_by_its_own_name(driver: FakeDriver) -> None:
    driver.fails = {"cuEventCreate"}
    with pytest.raises(BackendError, match="cuEventCreate failed: CUDA_ERROR_STREAM_CAPTURE"):
        Driver(driver).call("cuEventCreate", 0)
