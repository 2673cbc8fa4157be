from __future__ import annotations

import numpy as np
import pytest

from tests.emulation.cuda_shim.compare import kernel_and_reference, kernel_outputs
from tests.emulation.cuda_shim.shim import Shim

FLIP_ROWS = {"float32": "flip_rows_f32", "float16": "flip_rows_f16"}
AVERAGE_FLIPPED = {"float32": "average_flipped_f32", "float16": "average_flipped_f16"}
SIZES = [(1, 1), (3, 65), (4, 128), (5, 289)]


def values_of(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_rows_are_read_from_right_to_left(shim: Shim, rows: int, width: int, dtype: str) -> None:
    values = values_of((rows, width), dtype)
    kernel, reference = kernel_and_reference(
        shim, FLIP_ROWS[dtype],
        values=values, rows=rows, width=width, flipped=np.zeros_like(values),
    )  # fmt: skip
    assert np.array_equal(kernel["flipped"], reference["flipped"])
    assert np.array_equal(kernel["flipped"], values[:, ::-1])
    if width > 1:  # control: it is not a copy
        assert not np.array_equal(kernel["flipped"], values)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_average_flipped_matches_cpu(shim: Shim, rows: int, width: int, dtype: str) -> None:
    values, flipped = values_of((rows, width), dtype), values_of((rows, width), dtype, seed=1)
    name = AVERAGE_FLIPPED[dtype]
    sizes = {"rows": rows, "width": width}
    kernel, reference = kernel_and_reference(shim, name, flipped=flipped, **sizes, values=values)
    assert np.array_equal(kernel["values"], reference["values"])
    if dtype == "float32":
        expected = (values + flipped[:, ::-1]) * np.float32(0.5)
        assert np.array_equal(kernel["values"], expected)
    if width > 1:  # control: the order of the flipped row counts
        other = kernel_outputs(shim, name, flipped=flipped[:, ::-1].copy(), **sizes, values=values)
        assert not np.array_equal(other["values"], kernel["values"])
