"""CudaDevice over an emulated driver: its calls, their order and their errors."""

from __future__ import annotations

import ctypes
import gc
import importlib
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mpn.cuda import device as cuda_device
from mpn.cuda.api import is_on_device
from mpn.cuda.array import DeviceArray, checked_arguments
from mpn.cuda.device import CudaDevice, gpu_unavailable_reason, packed_arguments
from mpn.cuda.registry import kernel_signatures
from mpn.errors import BackendError, EngineError, InputError, MissingExtraError
from tests.emulation.cuda_shim.fixtures import need_or_skip
from tests.emulation.driver import CUresult, FakeDriver, install_driver


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    monkeypatch.setattr(
        cuda_device, "compiled_kernels", lambda family, arch, **_: f"{family} {arch}".encode()
    )
    return install_driver(monkeypatch)


@pytest.fixture
def device(driver: FakeDriver) -> CudaDevice:
    return CudaDevice()


def test_device_has_name_and_architecture(device: CudaDevice) -> None:
    assert (device.index, device.name, device.arch) == (0, "Fake H200", "sm_90")
    assert repr(device) == "CudaDevice(0, Fake H200, sm_90)"
    assert gpu_unavailable_reason() is None


def test_arrays_round_trip(device: CudaDevice, driver: FakeDriver) -> None:
    given = np.arange(12, dtype=np.float32).reshape(3, 4)
    array = device.upload(given)
    other = device.zeros((3, 4), np.float32)
    assert not device.download(other).any()
    device.copy(array, other)
    assert np.array_equal(device.download(other), given)
    device.upload(2 * given, array)
    assert np.array_equal(device.download(array), 2 * given)
    assert device.download(device.empty((0, 4), np.float32)).shape == (0, 4)
    assert driver.log.count("cuStreamSynchronize") == 4, "only downloads wait"
    del array, other
    assert driver.allocated == 0


def test_upload_copies_before_it_returns(device: CudaDevice) -> None:
    given, out = np.arange(4, dtype=np.float32), np.zeros(4, np.float32)
    array = device.upload(given)
    given[:] = -1
    device.download_async(array, out)
    assert not out.any(), "nothing has been waited for"
    device.sync()
    assert out.tolist() == [0, 1, 2, 3]


def test_copy_between_unlike_arrays_is_refused(device: CudaDevice) -> None:
    array = device.empty((3, 4), np.float32)
    with pytest.raises(InputError, match=r"\(3, 5\) float32 into \(3, 4\) float32"):
        device.upload(np.zeros((3, 5), np.float32), array)
    with pytest.raises(InputError, match="float64 into"):
        device.upload(np.zeros((3, 4)), array)
    with pytest.raises(InputError, match="C-contiguous"):
        device.download_async(array, np.zeros((3, 8), np.float32)[:, ::2])


def test_failing_call_is_named(device: CudaDevice, driver: FakeDriver) -> None:
    driver.fail["cuMemcpyHtoDAsync"] = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(EngineError, match="cuMemcpyHtoDAsync failed: CUDA_ERROR_ILLEGAL_ADDRESS"):
        device.upload(np.zeros(3))
    driver.fail["cuStreamSynchronize"] = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(EngineError, match="synchronising a stream failed: CUDA_ERROR_ILLEGAL"):
        device.sync()


def test_missing_memory_is_one_line(device: CudaDevice) -> None:
    with pytest.raises(EngineError, match=r"2000 MB of memory on Fake H200 .*OUT_OF_MEMORY.*end"):
        device.empty((2 * 10**9,), np.uint8)


def test_launch_has_types_and_grid_of_source(device: CudaDevice, driver: FakeDriver) -> None:
    prob, rois = device.zeros((2, 1500), np.float32), device.zeros((2, 4), np.int32)
    for _ in range(2):
        device.launch("clear_lost", prob=prob, rois=rois, objects=2, pixels=1500)
    (stream, config, kernel, arguments), again = driver.launches
    assert stream is device.stream
    assert (config.grid, config.block) == ((2, 1, 2), (256, 1, 1))
    assert kernel == (b"boxes sm_90", "boxes", "clear_lost")
    assert arguments == (rois.address, 2, 1500, prob.address)
    assert [type(value) for value in arguments] == [int, np.int32, np.int32, int]
    assert again[1] is config, "a geometry is made once"


def test_empty_grid_is_not_launched(device: CudaDevice, driver: FakeDriver) -> None:
    nothing = device.zeros((0, 4), np.int32)
    arguments = {"rois": nothing, "prob": device.zeros((0, 9), np.float32)}
    device.launch("clear_lost", **arguments, objects=0, pixels=9)
    assert not driver.launches


def test_cuda_core_packs_arguments_as_declared() -> None:
    """With the real cuda.core, which uses the Python type of each argument."""
    try:
        handler: Any = importlib.import_module("cuda.core._kernel_arg_handler")
    except ImportError as error:
        need_or_skip(f"cuda-core cannot be used ({error}): install the extra [dev]")
    signature = kernel_signatures()["rois_from_boxes"]
    array = {
        name: DeviceArray(2**40 + i, (1,), dtype, None)
        for i, (name, dtype) in enumerate(
            [
                ("boxes", "i4"),
                ("areas", "i4"),
                ("first_areas_px", "f8"),
                ("reach", "i4"),
                ("rois", "i4"),
                ("supports", "i4"),
            ]
        )
    }
    numbers = {
        "objects": 3,
        "height": 480,
        "width": 854,
        "margin_frac": 0.15,
        "margin_px_min": 16,
        "lost_area_frac": 0.1,
    }
    values = checked_arguments(signature, {**array, **numbers})
    holder = handler.ParamHolder(tuple(packed_arguments(signature, values)))
    slots = (ctypes.c_void_p * len(values)).from_address(holder.ptr)
    for slot, parameter in zip(slots, signature.parameters, strict=True):
        kind = np.dtype(np.uint64) if parameter.is_pointer else parameter.dtype
        raw = ctypes.string_at(slot, kind.itemsize)
        assert np.frombuffer(raw, kind)[0] == values[parameter.name]


def test_cache_folder_reaches_the_compiler(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []
    monkeypatch.setattr(
        cuda_device, "compiled_kernels", lambda *_, cache_dir: seen.append(cache_dir) or b""
    )
    CudaDevice(cache_dir=tmp_path).load("warp")
    assert seen == [tmp_path]


def test_create_stream_takes_priority(device: CudaDevice, driver: FakeDriver) -> None:
    plain, high = device.create_stream(), device.create_stream(high_priority=True)
    assert driver.priorities == [0, 0, -5]
    assert len({device.address, plain.address, high.address}) == 3
    assert driver.open_streams == 3
    del plain, high
    assert driver.open_streams == 1


def test_other_stream_shares_memory_and_kernels(device: CudaDevice, driver: FakeDriver) -> None:
    device.load("boxes", "warp")
    other = device.create_stream()
    arguments = {"rois": device.zeros((1, 4), np.int32), "prob": device.zeros((1, 9), np.float32)}
    other.launch("clear_lost", **arguments, objects=1, pixels=9)
    assert driver.launches[0][0] is other.stream
    shown = other.empty((1,), np.float32).__cuda_array_interface__
    assert shown["stream"] == other.address
    assert other.arch == "sm_90"


@pytest.mark.parametrize("handle", [0, 0x1001])
def test_on_takes_a_handle_and_leaves_it_open(
    device: CudaDevice, driver: FakeDriver, handle: int
) -> None:
    own = device.create_stream()
    assert own.address == 0x1001
    assert device.on(handle).address == handle
    assert driver.open_streams == 2
    assert device.on(own.stream).address == own.address


def test_foreign_stream_is_wrapped(driver: FakeDriver) -> None:
    foreign = SimpleNamespace(__cuda_stream__=lambda: (0, 0))
    assert CudaDevice(stream=foreign).address == 0
    assert driver.open_streams == 0


def test_events_order_streams(device: CudaDevice) -> None:
    other, out = device.create_stream(), np.zeros(1, np.float32)
    target = device.zeros((1,), np.float32)
    source = device.upload(np.ones(1, np.float32))
    other.wait(device.record())
    other.copy(source, target)
    other.download_async(target, out)
    other.sync()
    assert out[0] == 1
    # Control: without the wait the second stream copies the old value.
    device.upload(np.full(1, 2, np.float32), source)
    other.copy(source, target)
    other.download_async(target, out)
    other.sync()
    assert out[0] == 1


def test_timed_events_measure_seconds(device: CudaDevice, driver: FakeDriver) -> None:
    first, second = device.record(timing=True), device.record(timing=True)
    second.sync()
    assert second.elapsed_s(first) == 0.0025
    assert "cuStreamSynchronize" not in driver.log
    assert device.record().event.handle.is_timed is False, "an event for order alone is cheaper"


def test_pinned_memory_is_freed_after_its_last_view(device: CudaDevice, driver: FakeDriver) -> None:
    staging = device.pinned((3, 4), np.float32)
    staging[:] = np.arange(12).reshape(3, 4)
    array = device.empty((3, 4), np.float32)
    device.upload_async(staging, array)
    back = device.pinned((3, 4), np.float32)
    device.download_async(array, back)
    assert "cuStreamSynchronize" not in driver.log
    device.sync()
    assert np.array_equal(back, staging)
    view = staging[1:]
    del staging
    gc.collect()
    assert "cuMemFreeHost" not in driver.log
    del view
    gc.collect()
    assert driver.log.count("cuMemFreeHost") == 1


def test_graph_repeats_captured_work(device: CudaDevice, driver: FakeDriver) -> None:
    source, target = device.empty((1,), np.float32), device.zeros((1,), np.float32)
    assert not device.is_capturing

    def work() -> None:
        assert device.is_capturing
        device.copy(source, target)

    graph, other = device.capture(work), device.create_stream()
    for value, stream in ((3.0, device), (4.0, other)):
        stream.upload(np.full(1, value, np.float32), source)
        graph.launch(stream)
        assert stream.download(target)[0] == value
    graph.launch()
    assert driver.pending(device.address) == 1, "by default on the stream that was captured"
    assert not device.is_capturing
    del graph
    assert "cuGraphExecDestroy" in driver.log


@pytest.mark.parametrize("how", ["raises", "synchronises", "allocates", "instantiate fails"])
def test_failed_capture_leaves_stream_usable(
    device: CudaDevice, driver: FakeDriver, how: str
) -> None:
    array, out = device.empty((1,), np.float32), np.ones(1, np.float32)

    def work() -> None:
        if how == "raises":
            raise EngineError("no")
        if how == "synchronises":
            device.sync()
        if how == "allocates":
            device.empty((4,), np.uint8)

    if how == "instantiate fails":
        driver.fail["cuGraphInstantiate"] = CUresult.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(EngineError):
        device.capture(work)
    assert not device.is_capturing
    device.upload(np.zeros(1, np.float32), array)
    device.download_async(array, out)
    device.sync()
    assert out[0] == 0


def test_activate_makes_device_current_in_a_thread(device: CudaDevice, driver: FakeDriver) -> None:
    """CUDA keeps the current context per thread."""
    driver.log.clear()
    thread = threading.Thread(target=device.activate)
    thread.start()
    thread.join()
    assert driver.log == ["cuCtxSetCurrent"]


def test_sync_all_waits_for_every_stream(device: CudaDevice, driver: FakeDriver) -> None:
    other = device.create_stream()
    other.zeros((4,), np.uint8)
    device.sync_all()
    assert driver.pending(other.address) == 0


def test_driver_device_and_extra_are_distinguished(
    monkeypatch: pytest.MonkeyPatch, driver: FakeDriver
) -> None:
    with pytest.raises(BackendError, match=r"CUDA device 3 cannot be used \(there are 1 devices"):
        CudaDevice(3)
    driver.fail["cuInit"] = CUresult.CUDA_ERROR_NO_DEVICE
    with pytest.raises(BackendError, match=r"CUDA_ERROR_NO_DEVICE.*nvidia-smi") as raised:
        CudaDevice()
    assert "\n" not in str(raised.value)
    assert "NO_DEVICE" in str(gpu_unavailable_reason())
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(MissingExtraError, match=r"extra \[gpu\]"):
        CudaDevice()


def view(**changes: Any) -> Any:
    given = {
        "ptr": 4096,
        "shape": (2, 3),
        "strides": (3, 1),
        "dtype": np.dtype("float32"),
        "is_device_accessible": True,
    }
    return SimpleNamespace(**{**given, **changes})


@pytest.fixture
def foreign(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    seen = SimpleNamespace(view=view())
    utils: Any = SimpleNamespace(
        StridedMemoryView=SimpleNamespace(from_any_interface=lambda obj, stream_ptr: seen.view)
    )
    monkeypatch.setitem(sys.modules, "cuda.core.utils", utils)
    return seen


@pytest.mark.parametrize("strides", [None, (3, 1)])
def test_array_from_shares_foreign_memory(
    foreign: SimpleNamespace, strides: tuple[int, ...] | None
) -> None:
    foreign.view = view(strides=strides)
    array = CudaDevice().array_from(object())
    assert (array.address, array.shape, array.dtype) == (4096, (2, 3), np.float32)
    assert array.owner is foreign.view, "it keeps the memory"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": (1, 2)}, "C-contiguous"),
        ({"is_device_accessible": False}, "host's memory: upload it"),
        ({"dtype": None}, "dtype"),
    ],
)
def test_array_from_refuses_unusable_arrays(
    foreign: SimpleNamespace, change: dict[str, Any], message: str
) -> None:
    foreign.view = view(**change)
    with pytest.raises(InputError, match=message):
        CudaDevice().array_from(object())


def test_is_on_device_by_interface() -> None:
    class OnGpu:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

    assert is_on_device(OnGpu())
    assert is_on_device(SimpleNamespace(__cuda_array_interface__={}))
    assert not is_on_device(np.zeros(3))
    assert not is_on_device([1])


REAL = {
    "Device": ("allocate", "arch", "create_stream", "name", "set_current", "sync"),
    "Stream": ("create_graph_builder", "from_handle", "record", "sync", "wait"),
    "Event": ("sync", "__sub__"),
    "Buffer": ("fill", "handle"),
    "ObjectCode": ("from_cubin", "get_kernel"),
    "LegacyPinnedMemoryResource": ("allocate",),
    "graph.GraphBuilder": ("begin_building", "close", "complete", "end_building"),
    "graph.Graph": ("launch",),
}


def test_emulation_has_names_of_cuda_core() -> None:
    """The emulated classes prove nothing if cuda.core has other names."""
    try:
        core = importlib.import_module("cuda.core")
        graph = importlib.import_module("cuda.core.graph")
        bindings = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        need_or_skip(f"cuda-core cannot be used ({error}): install the extra [dev]")
    for path, names in REAL.items():
        owner = getattr(graph if path.startswith("graph.") else core, path.split(".")[-1])
        for name in names:
            assert hasattr(owner, name), f"{path}.{name}"
    core.StreamOptions(nonblocking=True, priority=-1)
    core.EventOptions(timing_enabled=True)
    assert core.LEGACY_DEFAULT_STREAM is not None
    assert callable(core.launch)
    for function, arguments in {
        "cuCtxGetStreamPriorityRange": 0,
        "cuMemcpyDtoDAsync": 4,
        "cuMemcpyDtoHAsync": 4,
        "cuMemcpyHtoDAsync": 4,
        "cuStreamIsCapturing": 1,
    }.items():
        signature = (getattr(bindings, function).__doc__ or "").splitlines()[0]
        inside = signature.partition("(")[2].rpartition(")")[0]
        assert len([part for part in inside.split(",") if part.strip()]) == arguments, signature
