from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mpn.cuda.array import DeviceArray, array_from_interface
from mpn.errors import EngineError


def foreign(shape: tuple[int, ...], strides: Any = None, typestr: str = "<f4") -> Any:
    """An array as torch or CuPy show it."""
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
def test_what_is_not_on_the_device_or_not_contiguous_is_refused(array: Any, says: str) -> None:
    with pytest.raises(EngineError, match=says):
        array_from_interface(array)
