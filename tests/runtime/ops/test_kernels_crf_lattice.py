from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpn.errors import InputError
from mpn.runtime.ops.cuda_lattice import AXES, lattice_packing
from mpn.runtime.permutohedral import PermutohedralLattice
from mpn.runtime.permutohedral_simplex import locate_simplices
from tests.runtime.ops.cuda_shim.compare import (
    Outputs,
    kernel_and_twin,
    largest_difference,
    twin_outputs,
)
from tests.runtime.ops.cuda_shim.scene import empty, make_scene
from tests.runtime.ops.cuda_shim.shim import Shim
from tests.tolerances import KERNEL_LATTICE_RELATIVE, KERNEL_VERSUS_TWIN

SIZE_HW = (24, 36)
SXY, SRGB = 15.0, 7.0
EMPTY_KEY = np.uint64(2**64 - 1)
# Two regions for the lattice and, between them, a small one that takes all pairs of pixels.
REGIONS = np.array([[0, 0, 20, 24], [22, 1, 27, 4], [21, 8, 36, 22], [0, 0, 0, 0]], np.int32)
STARTS = np.array([0, 480, 495, 705, 705], np.int32)
TOTAL, SMALL, OBJECTS = 705, slice(480, 495), 4
CAPACITY = SIZE_HW[0] * SIZE_HW[1]
SLOTS, BLOCKS = 8192, 3
PACKING = lattice_packing(SIZE_HW, sxy=SXY, srgb=SRGB)
RGB = make_scene(SIZE_HW).rgb
HERE = {"starts": STARTS, "objects": OBJECTS}


def insert_arguments() -> dict[str, Any]:
    return {
        "rgb": RGB,
        "regions": REGIONS,
        **HERE,
        "width": SIZE_HW[1],
        "capacity": CAPACITY,
        "sxy": SXY,
        "srgb": SRGB,
        "scale": PACKING.scale,
        "lowest": PACKING.lowest,
        "steps": PACKING.steps,
        "exact_pixels": 20,
        "slots": SLOTS,
        "keys": np.full(SLOTS, EMPTY_KEY, np.uint64),
        "corners": empty((CAPACITY, AXES), np.int32),
        "weights": empty((CAPACITY, AXES)),
    }


@pytest.fixture(scope="module")
def lattice() -> Outputs:
    """The lattice as the twins build it: what later kernels are given."""
    built = insert_arguments()
    numbered = {
        "numbers": empty((SLOTS,), np.int32),
        "vertex_keys": empty((AXES * CAPACITY,), np.uint64),
        "vertices": np.zeros(1, np.int32),
        "sums": empty((AXES * CAPACITY, 2), np.uint64),
    }
    from mpn.runtime.ops.twins import twins

    twins()["crf_insert"](**built)
    sizes = {"slots": SLOTS, "blocks": BLOCKS}
    twins()["crf_number"](keys=built["keys"], channels=2, **HERE, **sizes, **numbered)
    twins()["crf_renumber"](
        **HERE, numbers=numbered["numbers"], capacity=CAPACITY, corners=built["corners"]
    )
    neighbours = empty((AXES * CAPACITY, AXES, 2), np.int32)
    twins()["crf_neighbours"](
        vertex_keys=numbered["vertex_keys"],
        vertices=numbered["vertices"],
        keys=built["keys"],
        numbers=numbered["numbers"],
        steps=PACKING.steps,
        neighbours=neighbours,
        **HERE,
        **sizes,
    )
    kept = {name: built[name] for name in ("keys", "corners", "weights")}
    return {**kept, **numbered, "neighbours": neighbours}


@pytest.mark.parametrize(("total", "used"), [(0, 256), (21, 256), (22, 512), (705, 8192)])
def test_clear_empties_what_the_pixels_can_fill(shim: Shim, total: int, used: int) -> None:
    kernel, twin = kernel_and_twin(
        shim,
        "crf_clear",
        starts=np.array([0, total], np.int32),
        objects=1,
        slots=SLOTS,
        blocks=BLOCKS,
        keys=np.arange(SLOTS, dtype=np.uint64),
        vertices=np.array([5], np.int32),
    )
    assert np.array_equal(kernel["keys"], twin["keys"])
    assert (kernel["keys"] == EMPTY_KEY).sum() == used
    assert kernel["vertices"][0] == 0


def test_pixels_get_the_keys_and_weights_of_their_twin(shim: Shim) -> None:
    """Slots depend on the order of threads: seeds differ in them, never in what lies behind."""
    expected = twin_outputs(shim, "crf_insert", **insert_arguments())
    slots = []
    for seed in range(4):
        found = insert_arguments()
        shim.launch("crf_insert", seed=seed, **found)
        is_lattice = np.ones(TOTAL, np.bool_)
        is_lattice[SMALL] = False
        corners = found["corners"][:TOTAL]
        assert (corners[SMALL] == -1).all()
        keys = found["keys"][corners[is_lattice]]
        assert np.array_equal(keys, expected["keys"][expected["corners"][:TOTAL][is_lattice]])
        assert np.array_equal(np.sort(found["keys"]), np.sort(expected["keys"])), (
            "the same keys, each once"
        )
        weights = found["weights"][:TOTAL][is_lattice]
        assert largest_difference(weights, expected["weights"][:TOTAL][is_lattice]) == 0
        assert (weights >= 0).all()
        assert np.abs(weights.sum(axis=1) - 1).max() <= KERNEL_VERSUS_TWIN
        slots.append(corners.tobytes())
    assert len(set(slots)) > 1, "control: threads really compete for slots"


def test_the_weights_are_the_cpus(lattice: Outputs) -> None:
    for region, first in ((0, 0), (2, 495)):
        features = features_of(region)
        expected = locate_simplices(features).weights
        found = lattice["weights"][first : first + features.shape[1]]
        assert largest_difference(found, expected) <= KERNEL_VERSUS_TWIN
        # Control: they are another picture's with another deviation.
        assert largest_difference(found, locate_simplices(features * 2).weights) > 0.1


def features_of(region: int) -> np.ndarray:
    x0, y0, x1, y1 = REGIONS[region]
    y, x = np.indices((y1 - y0, x1 - x0), np.float32)
    colours = RGB[y0:y1, x0:x1].reshape(-1, 3).T / np.float32(SRGB)
    return np.stack([x.ravel() / np.float32(SXY), y.ravel() / np.float32(SXY), *colours])


def test_every_vertex_gets_one_number(shim: Shim, lattice: Outputs) -> None:
    count = int(lattice["vertices"][0])
    for seed in range(3):
        found: dict[str, Any] = {
            "numbers": empty((SLOTS,), np.int32),
            "vertex_keys": empty((AXES * CAPACITY,), np.uint64),
            "vertices": np.zeros(1, np.int32),
            "sums": empty((AXES * CAPACITY, 2), np.uint64),
        }
        shim.launch(
            "crf_number",
            seed=seed,
            keys=lattice["keys"],
            slots=SLOTS,
            channels=2,
            blocks=BLOCKS,
            **HERE,
            **found,
        )
        assert found["vertices"][0] == count
        taken = np.flatnonzero(lattice["keys"] != EMPTY_KEY)
        assert sorted(found["numbers"][taken]) == list(range(count))
        assert np.array_equal(found["vertex_keys"][found["numbers"][taken]], lattice["keys"][taken])
        assert not found["sums"][:count].any()
        assert found["sums"][count:].all(), "what lies behind stays as it is"


def test_slots_become_numbers(shim: Shim, lattice: Outputs) -> None:
    corners = np.full((CAPACITY, AXES), -1, np.int32)
    corners[:TOTAL] = np.flatnonzero(lattice["keys"] != EMPTY_KEY)[0]
    corners[SMALL] = -1
    kernel, twin = kernel_and_twin(
        shim,
        "crf_renumber",
        **HERE,
        numbers=lattice["numbers"],
        capacity=CAPACITY,
        corners=corners,
    )
    assert np.array_equal(kernel["corners"], twin["corners"])
    assert (kernel["corners"][SMALL] == -1).all()


def test_neighbours_are_the_twins(shim: Shim, lattice: Outputs) -> None:
    count = int(lattice["vertices"][0])
    names = ("vertex_keys", "vertices", "keys", "numbers")
    kernel, twin = kernel_and_twin(
        shim,
        "crf_neighbours",
        **{name: lattice[name] for name in names},
        **HERE,
        slots=SLOTS,
        steps=PACKING.steps,
        blocks=BLOCKS,
        neighbours=empty((AXES * CAPACITY, AXES, 2), np.int32),
    )
    found = kernel["neighbours"][:count]
    assert np.array_equal(found, twin["neighbours"][:count])
    # Whoever comes after me has me before: nothing joins two regions, or skips a vertex.
    vertex, axis = np.nonzero(found[..., 1] >= 0)
    after = found[vertex, axis, 1]
    assert np.array_equal(found[after, axis, 0], vertex)
    keys = lattice["vertex_keys"]
    assert np.array_equal(keys[after] >> np.uint64(55), keys[vertex] >> np.uint64(55))
    assert len(vertex) > count


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("is_plain", [False, True])
def test_values_are_spread_without_a_bit_of_difference(
    shim: Shim, lattice: Outputs, channels: int, *, is_plain: bool
) -> None:
    rng = np.random.default_rng(0)
    planes = rng.random((channels, CAPACITY), dtype=np.float32)
    planes[:, ::7] = 0
    kernel, twin = kernel_and_twin(
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
    assert np.array_equal(kernel["sums"], twin["sums"])
    assert kernel["sums"].any()


@pytest.mark.parametrize("channels", [1, 2])
def test_the_blur_is_its_twins(shim: Shim, lattice: Outputs, channels: int) -> None:
    rng = np.random.default_rng(0)
    vertices = AXES * CAPACITY
    count = int(lattice["vertices"][0])
    here = {"vertices": lattice["vertices"], "neighbours": lattice["neighbours"]}
    sums = rng.integers(0, 2**45, (vertices, channels), dtype=np.uint64)
    kernel, twin = kernel_and_twin(
        shim,
        "crf_blur_sums",
        **here,
        sums=sums,
        channels=channels,
        blocks=BLOCKS,
        blurred=np.zeros((vertices, channels), np.float32),
    )
    largest = float(np.abs(twin["blurred"]).max())
    assert largest_difference(kernel["blurred"], twin["blurred"]) <= KERNEL_VERSUS_TWIN * largest
    for axis, cleared in ((1, sums), (5, None)):
        kernel, twin = kernel_and_twin(
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
        assert largest_difference(kernel["blurred"], twin["blurred"]) <= KERNEL_VERSUS_TWIN
        if cleared is not None:
            flat = kernel["sums"].reshape(-1)
            assert not flat[: count * channels].any()
            assert np.array_equal(flat, twin["sums"].reshape(-1))


@pytest.mark.parametrize("channels", [1, 2])
def test_values_are_read_back(shim: Shim, lattice: Outputs, channels: int) -> None:
    kernel, twin = kernel_and_twin(
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
    assert largest_difference(kernel["planes"], twin["planes"]) <= KERNEL_VERSUS_TWIN
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


def test_a_frame_with_too_many_cells_is_refused() -> None:
    with pytest.raises(InputError, match=r"3840x2160 .* use larger standard deviations"):
        lattice_packing((2160, 3840), sxy=0.2, srgb=0.2)
    for size_hw in ((480, 854), (2160, 3840), (4320, 7680)):
        lattice_packing(size_hw, sxy=15, srgb=7)
        lattice_packing(size_hw, sxy=3, srgb=3)
