from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from mpn.cuda.device import CudaDevice, open_device, why_no_device
from mpn.errors import BackendError, EngineError, MissingExtraError
from tests.emulation.driver import CUresult, FakeDriver, install_driver


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return install_driver(monkeypatch)


@pytest.fixture
def device(driver: FakeDriver) -> CudaDevice:
    return open_device()


def test_a_device_tells_its_name_and_architecture(device: CudaDevice) -> None:
    assert (device.index, device.name, device.arch) == (0, "Fake H200", "sm_90")
    assert why_no_device() is None


def test_bytes_come_back_as_they_went(device: CudaDevice, driver: FakeDriver) -> None:
    array = np.arange(12, dtype=np.float32)
    address, stream = device.allocate(array.nbytes), device.create_stream()
    out = np.zeros_like(array)
    device.upload(array, address, stream)
    array[:] = -1  # the copy was taken: pageable memory may be changed at once
    device.download(address, out, stream)
    assert not out.any(), "nothing has been waited for"
    device.synchronize(stream)
    np.testing.assert_array_equal(out, np.arange(12))
    device.zero(address, 8, stream)
    device.download(address, out, stream)
    device.synchronize(stream)
    np.testing.assert_array_equal(out[:3], [0, 0, 2])
    device.free(address)
    device.destroy_stream(stream)
    assert (driver.allocated, driver.open_streams) == (0, 0)


def test_copies_on_the_device_are_ordered_across_streams(
    device: CudaDevice, driver: FakeDriver
) -> None:
    first, second = device.create_stream(), device.create_stream()
    source, target = device.allocate(4), device.allocate(4)
    out = np.zeros(1, np.float32)
    device.upload(np.ones(1, np.float32), source, first)
    device.order(first, second)
    device.copy(source, target, 4, second)
    device.download(target, out, second)
    device.synchronize(second)
    assert out[0] == 1
    # Control: without the order the second stream copies what was there before.
    device.upload(np.full(1, 2, np.float32), source, first)
    device.copy(source, target, 4, second)
    device.download(target, out, second)
    device.synchronize(second)
    assert out[0] == 1
    calls = len(driver.log)
    device.order(first, first)
    assert len(driver.log) == calls, "a stream is in order with itself"


def test_a_graph_does_again_what_was_recorded(device: CudaDevice) -> None:
    stream = device.create_stream()
    source, target = device.allocate(4), device.allocate(4)
    out = np.zeros(1, np.float32)
    device.zero(target, 4, stream)
    assert not device.is_capturing(stream)

    def start() -> None:
        assert device.is_capturing(stream)
        device.copy(source, target, 4, stream)

    graph = device.capture(stream, start)
    for value in (3.0, 4.0):
        device.upload(np.full(1, value, np.float32), source, stream)
        graph.launch(stream)
        device.download(target, out, stream)
        device.synchronize(stream)
        assert out[0] == value
    graph.close()
    graph.close()


@pytest.mark.parametrize("how", ["raises", "synchronises", "allocates"])
def test_a_capture_that_fails_leaves_the_stream_usable(device: CudaDevice, how: str) -> None:
    stream = device.create_stream()
    address, out = device.allocate(4), np.ones(1, np.float32)

    def start() -> None:
        if how == "raises":
            raise EngineError("no")
        if how == "synchronises":
            device.synchronize(stream)
        device.allocate(4)

    with pytest.raises(EngineError):
        device.capture(stream, start)
    assert not device.is_capturing(stream)
    device.zero(address, 4, stream)
    device.download(address, out, stream)
    device.synchronize(stream)
    assert out[0] == 0


def test_memory_that_is_not_there_is_an_error_in_one_line(device: CudaDevice) -> None:
    with pytest.raises(EngineError, match=r"2000 MB of memory on Fake H200 .*OUT_OF_MEMORY.*end"):
        device.allocate(2 * 10**9)


def test_every_failing_call_is_an_error_that_names_it(
    device: CudaDevice, driver: FakeDriver
) -> None:
    stream = device.create_stream()
    driver.fail["cuStreamSynchronize"] = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(EngineError, match="cuStreamSynchronize failed: CUDA_ERROR_ILLEGAL_ADDRESS"):
        device.synchronize(stream)


def test_another_thread_makes_the_context_its_own(device: CudaDevice, driver: FakeDriver) -> None:
    """CUDA keeps the current context by thread, and flow runs in one of its own."""
    driver.log.clear()
    thread = threading.Thread(target=lambda: device.synchronize(0))
    thread.start()
    thread.join()
    assert driver.log == ["cuCtxSetCurrent", "cuStreamSynchronize"]


def test_only_contiguous_arrays_are_copied(device: CudaDevice) -> None:
    with pytest.raises(EngineError, match="C-contiguous"):
        device.upload(np.zeros((4, 4), np.float32)[:, ::2], device.allocate(64), 0)


def test_no_driver_no_device_and_no_bindings_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, driver: FakeDriver
) -> None:
    with pytest.raises(BackendError, match=r"CUDA device 3 cannot be used \(there are 1 devices"):
        open_device(3)
    driver.fail["cuInit"] = CUresult.CUDA_ERROR_NO_DEVICE
    with pytest.raises(BackendError, match=r"cuInit failed: CUDA_ERROR_NO_DEVICE.*nvidia-smi"):
        open_device()
    assert "NO_DEVICE" in str(why_no_device())
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(MissingExtraError, match=r"\[gpu\]"):
        open_device()
