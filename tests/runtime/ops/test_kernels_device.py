"""CudaDevice without a GPU: what it asks of cuda-core and of the driver, both played by fakes."""

from __future__ import annotations

import ctypes
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mpn.cuda import device as cuda_device
from mpn.cuda.array import DeviceArray, checked_arguments
from mpn.cuda.device import CudaDevice, packed_arguments
from mpn.cuda.registry import kernel_signatures
from mpn.errors import BackendError, InputError, MissingExtraError
from tests.runtime.ops.conftest import need_or_skip

SUCCESS, OUT_OF_MEMORY = 0, 2


class FakeGpu:
    """Memory is the host's; launches are noted."""

    def __init__(self) -> None:
        self.status = SUCCESS
        self.launches: list[tuple[Any, ...]] = []
        self.synced = 0
        self.device_error: Exception | None = None

    # What CudaDevice takes from cuda.core.
    def Device(self, index: int) -> Any:
        if self.device_error is not None:
            raise self.device_error
        return SimpleNamespace(
            index=index,
            arch="90",
            set_current=lambda: None,
            create_stream=lambda given: given or self.stream(),
            allocate=self.allocate,
        )

    def stream(self) -> Any:
        return SimpleNamespace(__cuda_stream__=lambda: (0, 77))

    def allocate(self, nbytes: int, *, stream: Any) -> Any:
        assert nbytes > 0
        memory = np.full(nbytes, 0xCD, np.uint8)
        return SimpleNamespace(handle=memory.ctypes.data, memory=memory)

    class ObjectCode:
        @staticmethod
        def from_cubin(cubin: bytes, *, name: str) -> Any:
            return SimpleNamespace(get_kernel=lambda kernel: (cubin, name, kernel))

    LaunchConfig = SimpleNamespace

    def launch(self, stream: Any, config: Any, kernel: Any, *arguments: Any) -> None:
        self.launches.append((stream, config, kernel, arguments))

    # What it takes from cuda.bindings.driver.
    def _copy(self, to: int, source: int, nbytes: int, stream: Any) -> tuple[Any]:
        if self.status == SUCCESS:
            ctypes.memmove(to, source, nbytes)
        return (_Status(self.status),)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("cuMemcpy"):
            return self._copy
        raise AttributeError(name)

    def cuStreamSynchronize(self, stream: int) -> tuple[Any]:
        assert stream == 77
        self.synced += 1
        return (_Status(self.status),)

    def cuMemsetD8Async(self, to: int, value: int, nbytes: int, stream: Any) -> tuple[Any]:
        ctypes.memset(to, value, nbytes)
        return (_Status(SUCCESS),)


class _Status(int):
    name = "CUDA_ERROR_OUT_OF_MEMORY"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    fake = FakeGpu()
    monkeypatch.setattr(cuda_device, "import_or_explain", lambda *_, **__: fake)
    monkeypatch.setattr(
        cuda_device, "compiled_kernels", lambda family, arch, **_: f"{family} {arch}".encode()
    )
    return fake


def test_arrays_go_there_and_back(gpu: FakeGpu) -> None:
    device = CudaDevice()
    given = np.arange(12, dtype=np.float32).reshape(3, 4)
    array = device.upload(given)
    other = device.zeros((3, 4), np.float32)
    assert not device.download(other).any()
    device.copy(array, other)
    assert np.array_equal(device.download(other), given)
    device.upload(2 * given, array)
    assert np.array_equal(device.download(array), 2 * given)
    assert device.download(device.empty((0, 4), np.float32)).shape == (0, 4)
    assert gpu.synced == 4, "only downloads wait"


def test_arrays_of_another_kind_are_not_copied(gpu: FakeGpu) -> None:
    device = CudaDevice()
    array = device.empty((3, 4), np.float32)
    with pytest.raises(InputError, match=r"\(3, 5\) float32 into \(3, 4\) float32"):
        device.upload(np.zeros((3, 5), np.float32), array)
    with pytest.raises(InputError, match="float64 into"):
        device.upload(np.zeros((3, 4)), array)


def test_a_call_that_fails_is_an_error(gpu: FakeGpu) -> None:
    device = CudaDevice()
    gpu.status = OUT_OF_MEMORY
    with pytest.raises(BackendError, match="cuMemcpyHtoDAsync failed: CUDA_ERROR_OUT_OF_MEMORY"):
        device.upload(np.zeros(3))


def test_a_launch_has_the_types_and_the_grid_of_the_source(gpu: FakeGpu) -> None:
    device = CudaDevice()
    prob, rois = device.zeros((2, 1500), np.float32), device.zeros((2, 4), np.int32)
    for _ in range(2):
        device.launch("clear_lost", prob=prob, rois=rois, objects=2, pixels=1500)
    (stream, config, kernel, arguments), again = gpu.launches
    assert stream is device.stream
    assert (config.grid, config.block) == ((2, 1, 2), (256, 1, 1))
    assert kernel == (b"boxes sm_90", "boxes", "clear_lost")
    assert arguments == (rois.address, 2, 1500, prob.address)
    assert [type(value) for value in arguments] == [int, np.int32, np.int32, int]
    assert again[1] is config, "a geometry is made once"


def test_an_empty_grid_is_not_launched(gpu: FakeGpu) -> None:
    device = CudaDevice()
    nothing = device.zeros((0, 4), np.int32)
    arguments = {"rois": nothing, "prob": device.zeros((0, 9), np.float32)}
    device.launch("clear_lost", **arguments, objects=0, pixels=9)
    assert not gpu.launches


def test_another_stream_shares_memory_and_kernels(gpu: FakeGpu) -> None:
    device = CudaDevice()
    device.load("boxes", "warp")
    builder = SimpleNamespace(__cuda_stream__=lambda: (0, 78))
    other = device.on(builder)
    arguments = {
        "rois": device.zeros((1, 4), np.int32),
        "prob": device.zeros((1, 9), np.float32),
    }
    other.launch("clear_lost", **arguments, objects=1, pixels=9)
    assert gpu.launches[0][0] is builder
    assert device.stream is not builder
    shown = other.empty((1,), np.float32).__cuda_array_interface__
    assert shown["stream"] == 78
    assert other.arch == "sm_90"


def test_a_machine_without_a_gpu_is_told_in_one_line(gpu: FakeGpu) -> None:
    gpu.device_error = RuntimeError('"cuda" is an NVIDIA driver library\nand was not found')
    with pytest.raises(
        BackendError, match=r"CUDA device 0 cannot be used: .* nvidia-smi"
    ) as raised:
        CudaDevice()
    assert "\n" not in str(raised.value)


def test_without_cuda_core_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
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
def foreign(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    seen = SimpleNamespace(view=view())
    gpu.StridedMemoryView = SimpleNamespace(  # type: ignore[attr-defined]
        from_any_interface=lambda obj, stream_ptr: seen.view
    )
    return seen


@pytest.mark.parametrize("strides", [None, (3, 1)])
def test_arrays_of_other_libraries_are_taken_as_they_are(
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
def test_arrays_that_cannot_be_taken_are_refused(
    foreign: SimpleNamespace, change: dict[str, Any], message: str
) -> None:
    foreign.view = view(**change)
    with pytest.raises(InputError, match=message):
        CudaDevice().array_from(object())


def test_cuda_core_packs_arguments_as_the_kernel_declares_them() -> None:
    """With the real cuda-core, which goes by the Python type of each argument."""
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


def test_the_cache_folder_reaches_the_compiler(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []
    monkeypatch.setattr(
        cuda_device, "compiled_kernels", lambda *_, cache_dir: seen.append(cache_dir) or b""
    )
    CudaDevice(cache_dir=tmp_path).load("warp")
    assert seen == [tmp_path]
