"""Signatures and launch geometry are read from the sources themselves."""

from __future__ import annotations

import inspect
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from mpn.cuda.registry import (
    KERNEL_FILES,
    kernel_signatures,
    kernel_source,
    signatures_in,
)
from mpn.errors import EngineError
from tests.reference.kernels import kernel_references

KERNEL = (
    "// launch: block 32 8; grid ceil(width,32) ceil(height,8) min(objects,2)\n"
    'extern "C" __global__ void __launch_bounds__(256) blur(\n'
    "    const float* __restrict__ plane, int objects, int height, int width,\n"
    "    uint64* sums, double weight) {\n}\n"
)


def test_every_kernel_file_of_the_package_is_listed() -> None:
    folder = resources.files("mpn.cuda") / "kernels"
    found = {file.name.removesuffix(".cu") for file in folder.iterdir() if ".cu" in file.name}
    assert {name for name in found if not name.endswith("h")} == set(KERNEL_FILES)


@pytest.mark.parametrize("name", sorted(kernel_signatures()))
def test_a_reference_has_the_parameters_of_its_kernel(name: str) -> None:
    parameters = [parameter.name for parameter in kernel_signatures()[name].parameters]
    assert list(inspect.signature(kernel_references()[name]).parameters) == parameters


def test_signature_matches_the_source() -> None:
    (signature,) = signatures_in(KERNEL, "blur")
    assert (signature.name, signature.family, signature.block) == ("blur", "blur", (32, 8, 1))
    kinds = [(p.name, p.dtype, p.is_pointer, p.is_const) for p in signature.parameters]
    assert kinds == [
        ("plane", np.float32, True, True),
        ("objects", np.int32, False, False),
        ("height", np.int32, False, False),
        ("width", np.int32, False, False),
        ("sums", np.uint64, True, False),
        ("weight", np.float64, False, False),
    ]


@pytest.mark.parametrize(
    ("sizes", "grid"), [((3, 8, 33), (2, 1, 2)), ((1, 9, 32), (1, 2, 1)), ((5, 1, 1), (1, 1, 2))]
)
def test_the_grid_covers_every_element(
    sizes: tuple[int, int, int], grid: tuple[int, int, int]
) -> None:
    (signature,) = signatures_in(KERNEL, "blur")
    assert signature.grid(dict(zip(("objects", "height", "width"), sizes, strict=True))) == grid


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("// launch: block 32 8; grid", "// grid", "declares 1 kernels, but only 0"),
        ("__launch_bounds__(256) ", "", "declares 1 kernels, but only 0"),
        ("block 32 8", "block 32 4", "bounded to 256"),
        ("double weight", "wchar_t weight", "'wchar_t weight'"),
        ("ceil(width,32)", "ceil(depth,32)", "'ceil\\(depth,32\\)'"),
        ("ceil(width,32)", "plane", "'plane'"),
        ("ceil(width,32)", "width.real", "'width.real'"),
        ("ceil(width,32)", "__import__(width)", "'__import__\\(width\\)'"),
    ],
)
def test_source_with_invalid_signature_raises(before: str, after: str, message: str) -> None:
    assert before in KERNEL
    with pytest.raises(EngineError, match=message):
        signatures_in(KERNEL.replace(before, after), "blur")


@pytest.mark.parametrize("family", KERNEL_FILES)
def test_a_source_holds_its_headers_once_and_includes_nothing(family: str) -> None:
    source = kernel_source(family)
    assert "#include" not in source
    assert "#pragma once" not in source
    assert source.count("struct Half {") == 1


@pytest.mark.parametrize("name", sorted(kernel_signatures()))
def test_every_kernel_is_run_by_a_test(name: str) -> None:
    """By its name, or by its name without the dtype."""
    tests = [path.read_text() for path in Path(__file__).parent.glob("test_kernels_*.py")]
    stem = name.removesuffix("_f16").removesuffix("_f32")
    assert any(f'"{name}"' in text or f'"{stem}_{{suffix}}"' in text for text in tests)
