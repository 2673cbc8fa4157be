from __future__ import annotations

import numpy as np
import pytest

from mpn.cuda.array import DeviceArray
from mpn.cuda.device import CudaDevice
from mpn.engines.buffers import DeviceBuffers
from mpn.engines.spec import EngineSpec, TensorSpec, engine_spec
from mpn.errors import EngineError
from tests.emulation.driver import FakeDriver, install_driver

SPEC = engine_spec("propagation", frame_size_hw=(64, 96), roi_size=65, max_objects=4)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return install_driver(monkeypatch)


@pytest.fixture
def device(driver: FakeDriver) -> CudaDevice:
    return CudaDevice()


def test_memory_is_had_once_for_the_largest_number(device: CudaDevice, driver: FakeDriver) -> None:
    with DeviceBuffers(SPEC, device) as buffers:
        assert driver.allocated == 4 * 5 * 65 * 65 * 4
        for objects in (1, 4):
            found = buffers.of(objects)
            assert found.inputs["rgb_prob"].shape == (objects, 4, 65, 65)
            assert found.outputs["prob"].shape == (objects, 1, 65, 65)
        assert driver.log.count("cuMemAlloc") == 2
    assert driver.allocated > 0, "arrays that are still referenced keep their memory"
    del found
    assert driver.allocated == 0
    buffers.close()


def test_the_first_rows_are_the_objects(device: CudaDevice, driver: FakeDriver) -> None:
    with DeviceBuffers(SPEC, device) as buffers:
        for objects in range(1, 5):
            assert (
                buffers.of(objects).inputs["rgb_prob"].address
                == buffers.of(1).inputs["rgb_prob"].address
            )


def test_out_of_memory_frees_earlier_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = install_driver(monkeypatch, memory=4 * 4 * 65 * 65 * 4 + 100)
    with pytest.raises(EngineError, match="cannot allocate"):
        DeviceBuffers(SPEC, CudaDevice())
    assert driver.allocated == 0


def test_a_plan_may_take_an_input_in_half(device: CudaDevice) -> None:
    with DeviceBuffers(SPEC, device, {"rgb_prob": "float16"}) as buffers:
        assert buffers.of(1).inputs["rgb_prob"].dtype == np.float16
        assert buffers.of(1).outputs["prob"].dtype == np.float32
        assert (
            buffers.objects_in({"rgb_prob": DeviceArray(0, (3, 4, 65, 65), np.float16, None)}) == 3
        )


def test_batches_are_put_together_in_order(device: CudaDevice, driver: FakeDriver) -> None:
    rgb_prob = np.arange(6, dtype=np.float32)[:, None, None, None] * np.ones((6, 4, 65, 65), "f4")
    batches: list[int] = []

    with DeviceBuffers(SPEC, device) as buffers:

        def start(objects: int) -> None:
            batches.append(objects)
            own = buffers.of(objects)
            source, target = own.inputs["rgb_prob"], own.outputs["prob"]

            def compute() -> None:
                values = driver.array(source.address, source.shape, source.dtype)
                driver.array(target.address, target.shape, target.dtype)[...] = values[:, 3:] + 1

            driver.enqueue(device.address, compute)

        got = buffers.run_batches({"rgb_prob": rgb_prob}, start)["prob"]
    assert batches == [4, 2]
    np.testing.assert_array_equal(got[:, 0, 0, 0], np.arange(6) + 1)


def test_inputs_of_different_numbers_are_refused(device: CudaDevice) -> None:
    tensors = tuple(TensorSpec(name, ("objects", 2)) for name in ("a", "b"))
    spec = EngineSpec("propagation", tensors, (TensorSpec("prob", ("objects", 1)),), max_objects=4)
    with DeviceBuffers(spec, device) as buffers:
        arrays = {"a": np.zeros((2, 2), np.float32), "b": np.zeros((3, 2), np.float32)}
        with pytest.raises(EngineError, match="differ in their objects"):
            buffers.run_batches(arrays, lambda objects: None)
        with pytest.raises(EngineError, match="must be float32"):
            buffers.objects_in(
                {"a": DeviceArray(0, (2, 2), "f4", None), "b": DeviceArray(0, (2, 1), "f4", None)}
            )


def test_another_dynamic_axis_is_refused(device: CudaDevice) -> None:
    spec = EngineSpec("flow", (TensorSpec("frame0", (1, "height")),), (), max_objects=None)
    with pytest.raises(EngineError, match="a dynamic axis other than 'objects'"):
        DeviceBuffers(spec, device)
