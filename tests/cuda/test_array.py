from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mpn.cuda.array import DeviceArray, array_from_interface, checked_arguments
from mpn.cuda.device import CudaDevice
from mpn.cuda.registry import kernel_signatures
from mpn.errors import EngineError, InputError
from tests.emulation.driver import install_driver


def foreign(shape: tuple[int, ...], strides: Any = None, typestr: str = "<f4") -> Any:
    """Make an object with the array interface of torch and CuPy."""
    return SimpleNamespace(
        __cuda_array_interface__={
            "shape": shape,
            "typestr": typestr,
            "data": (0x1000, False),
            "strides": strides,
            "version": 3,
        }
    )


def test_the_runtimes_own_arrays_are_taken_as_they_are() -> None:
    array = DeviceArray(0x1000, (2, 3), np.float16, None)
    assert array_from_interface(array) is array


@pytest.mark.parametrize("strides", [None, (12, 4)])
def test_arrays_of_other_libraries_are_taken_by_their_address(strides: Any) -> None:
    array = foreign((2, 3), strides)
    tensor = array_from_interface(array)
    assert (tensor.address, tensor.shape, tensor.dtype) == (0x1000, (2, 3), np.float32)
    assert tensor.owner is array


def test_a_buffer_shows_itself_to_other_libraries() -> None:
    tensor = DeviceArray(0x2000, (4, 5), np.float16, None)
    again = array_from_interface(SimpleNamespace(
        __cuda_array_interface__=tensor.__cuda_array_interface__
    ))  # fmt: skip
    assert (again.address, again.shape, again.dtype) == (0x2000, (4, 5), np.float16)
    assert tensor.nbytes == 40
    assert repr(tensor) == "DeviceArray((4, 5), float16)"


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (foreign((2, 3), (24, 8)), r"C-contiguous, got strides \(24, 8\) of \(2, 3\)"),
        (np.zeros(3), "an array on the device was expected, got ndarray"),
        ("text", "an array on the device was expected, got str"),
    ],
)
def test_host_or_strided_array_raises(array: Any, says: str) -> None:
    with pytest.raises(EngineError, match=says):
        array_from_interface(array)


def array(*shape: int, dtype: str = "float32") -> DeviceArray:
    return DeviceArray(256, shape, dtype, None)


CHECKED = kernel_signatures()["clear_lost"]
RIGHT = {"rois": array(2, 4, dtype="int32"), "objects": 2, "pixels": 20, "prob": array(2, 20)}


def test_arguments_become_addresses_and_numbers() -> None:
    assert checked_arguments(CHECKED, RIGHT) == {
        "rois": 256,
        "objects": 2,
        "pixels": 20,
        "prob": 256,
    }
    assert checked_arguments(CHECKED, {**RIGHT, "rois": None})["rois"] == 0
    assert list(checked_arguments(CHECKED, dict(reversed(RIGHT.items())))) == list(RIGHT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rois": array(2, 4)}, "takes rois as int32 array, got an array of float32"),
        ({"objects": array(2, dtype="int32")}, "takes objects as int32, got an array"),
        ({"objects": 1.5}, "takes objects as int32, got 1.5"),
        ({"objects": None}, "takes objects as int32, got None"),
        ({"rois": 3}, "takes rois as an array of int32 or None, got 3"),
        ({"more": 3}, "takes rois, objects, pixels, prob; got"),
    ],
)
def test_arguments_of_another_kind_are_refused(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked_arguments(CHECKED, {**RIGHT, **change})


def test_parts_of_an_array_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    install_driver(monkeypatch)
    device = CudaDevice()
    whole = device.upload(np.arange(24, dtype=np.float32).reshape(4, 6))
    part = whole.part(1, 3)
    assert device.download(part).tolist() == np.arange(6, 18).reshape(2, 6).tolist()
    assert device.download(part.reshape(3, 4))[2].tolist() == [14, 15, 16, 17]
    assert (part.size, part.nbytes, part.address - whole.address) == (12, 48, 24)
    with pytest.raises(InputError, match="cannot become"):
        part.reshape(5, 3)
    with pytest.raises(InputError, match=r"3\.\.5"):
        whole.part(3, 5)


def test_array_exports_its_address_to_other_libraries() -> None:
    shown = DeviceArray(4096, (2, 3), np.float16, None, stream_address=7).__cuda_array_interface__
    assert shown == {
        "shape": (2, 3),
        "typestr": "<f2",
        "data": (4096, False),
        "strides": None,
        "version": 3,
        "stream": 7,
    }
