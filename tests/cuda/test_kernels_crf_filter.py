from __future__ import annotations

import numpy as np
import pytest

from mpn.runtime.crf.permutohedral import PermutohedralLattice
from mpn.runtime.device.lattice import AXES
from tests.emulation.cuda_shim.compare import Outputs, kernel_and_reference, largest_difference
from tests.emulation.cuda_shim.lattice import (
    BLOCKS,
    CAPACITY,
    HERE,
    SMALL,
    TOTAL,
    built_lattice,
    features_of,
)
from tests.emulation.cuda_shim.shim import Shim
from tests.tolerances import KERNEL_LATTICE_RELATIVE, KERNEL_VERSUS_REFERENCE


@pytest.fixture(scope="module")
def lattice() -> Outputs:
    """Build the lattice that later kernels get."""
    return built_lattice()


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("is_plain", [False, True])
def test_values_are_spread_without_a_bit_of_difference(
    shim: Shim, lattice: Outputs, channels: int, *, is_plain: bool
) -> None:
    rng = np.random.default_rng(0)
    planes = rng.random((channels, CAPACITY), dtype=np.float32)
    planes[:, ::7] = 0
    kernel, reference = kernel_and_reference(
        shim,
        "crf_splat",
        **HERE,
        corners=lattice["corners"],
        weights=lattice["weights"],
        planes=None if is_plain else planes,
        norm=None if is_plain else rng.random(CAPACITY, dtype=np.float32),
        channels=channels,
        capacity=CAPACITY,
        sums=np.zeros((AXES * CAPACITY, channels), np.uint64),
    )
    assert np.array_equal(kernel["sums"], reference["sums"])
    assert kernel["sums"].any()


@pytest.mark.parametrize("channels", [1, 2])
def test_blur_equals_its_reference(shim: Shim, lattice: Outputs, channels: int) -> None:
    rng = np.random.default_rng(0)
    vertices = AXES * CAPACITY
    count = int(lattice["vertices"][0])
    here = {"vertices": lattice["vertices"], "neighbours": lattice["neighbours"]}
    sums = rng.integers(0, 2**45, (vertices, channels), dtype=np.uint64)
    kernel, reference = kernel_and_reference(
        shim,
        "crf_blur_sums",
        **here,
        sums=sums,
        channels=channels,
        blocks=BLOCKS,
        blurred=np.zeros((vertices, channels), np.float32),
    )
    largest = float(np.abs(reference["blurred"]).max())
    assert (
        largest_difference(kernel["blurred"], reference["blurred"])
        <= KERNEL_VERSUS_REFERENCE * largest
    )
    for axis, cleared in ((1, sums), (5, None)):
        kernel, reference = kernel_and_reference(
            shim,
            "crf_blur",
            **here,
            axis=axis,
            values=rng.random((vertices, channels), dtype=np.float32),
            channels=channels,
            blocks=BLOCKS,
            blurred=np.zeros((vertices, channels), np.float32),
            sums=cleared,
        )
        assert (
            largest_difference(kernel["blurred"], reference["blurred"]) <= KERNEL_VERSUS_REFERENCE
        )
        if cleared is not None:
            flat = kernel["sums"].reshape(-1)
            assert not flat[: count * channels].any()
            assert np.array_equal(flat, reference["sums"].reshape(-1))


@pytest.mark.parametrize("channels", [1, 2])
def test_values_are_read_back(shim: Shim, lattice: Outputs, channels: int) -> None:
    kernel, reference = kernel_and_reference(
        shim,
        "crf_slice",
        **HERE,
        corners=lattice["corners"],
        weights=lattice["weights"],
        values=np.random.default_rng(0).random((AXES * CAPACITY, channels), dtype=np.float32),
        channels=channels,
        capacity=CAPACITY,
        planes=np.full((channels, CAPACITY), 9, np.float32),
    )
    assert largest_difference(kernel["planes"], reference["planes"]) <= KERNEL_VERSUS_REFERENCE
    assert (kernel["planes"][:, SMALL] == 9).all()
    assert (kernel["planes"][:, TOTAL:] == 9).all()


def test_the_whole_filter_is_the_cpus(shim: Shim, lattice: Outputs) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((1, CAPACITY), dtype=np.float32)
    count = {"vertices": lattice["vertices"], "neighbours": lattice["neighbours"]}
    spread = {"corners": lattice["corners"], "weights": lattice["weights"], "channels": 1}
    vertices = (AXES * CAPACITY, 1)
    sums = np.zeros(vertices, np.uint64)
    shim.launch(
        "crf_splat", **HERE, **spread, planes=values, norm=None, capacity=CAPACITY, sums=sums
    )
    one, two = np.zeros(vertices, np.float32), np.zeros(vertices, np.float32)
    shim.launch("crf_blur_sums", **count, sums=sums, channels=1, blocks=BLOCKS, blurred=one)
    for axis in range(1, AXES):
        shim.launch(
            "crf_blur",
            **count,
            axis=axis,
            values=one,
            channels=1,
            blocks=BLOCKS,
            blurred=two,
            sums=None,
        )
        one, two = two, one
    filtered = np.zeros((1, CAPACITY), np.float32)
    shim.launch("crf_slice", **HERE, **spread, values=one, capacity=CAPACITY, planes=filtered)
    for region, pixels in ((0, slice(0, 480)), (2, slice(495, 705))):
        expected = PermutohedralLattice(features_of(region)).filter(values[0, pixels])
        expected *= np.float32(1 + 2.0**-5)  # the lattice's constant, which the kernels leave out
        error = largest_difference(filtered[0, pixels], expected)
        assert error <= KERNEL_LATTICE_RELATIVE * expected.max()
