from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpn.errors import InputError
from mpn.runtime.crf.permutohedral import locate_simplices
from mpn.runtime.device.lattice import AXES, lattice_packing
from tests.emulation.cuda_shim.compare import (
    Outputs,
    kernel_and_reference,
    largest_difference,
    reference_outputs,
)
from tests.emulation.cuda_shim.lattice import (
    BLOCKS,
    CAPACITY,
    EMPTY_KEY,
    HERE,
    PACKING,
    SLOTS,
    SMALL,
    TOTAL,
    built_lattice,
    features_of,
    insert_arguments,
)
from tests.emulation.cuda_shim.scene import empty
from tests.emulation.cuda_shim.shim import Shim
from tests.tolerances import KERNEL_VERSUS_REFERENCE


@pytest.fixture(scope="module")
def lattice() -> Outputs:
    """Build the lattice that later kernels get."""
    return built_lattice()


@pytest.mark.parametrize(("total", "used"), [(0, 256), (21, 256), (22, 512), (705, 8192)])
def test_clear_resets_the_slots_of_all_pixels(shim: Shim, total: int, used: int) -> None:
    kernel, reference = kernel_and_reference(
        shim,
        "crf_clear",
        starts=np.array([0, total], np.int32),
        objects=1,
        slots=SLOTS,
        blocks=BLOCKS,
        keys=np.arange(SLOTS, dtype=np.uint64),
        vertices=np.array([5], np.int32),
    )
    assert np.array_equal(kernel["keys"], reference["keys"])
    assert (kernel["keys"] == EMPTY_KEY).sum() == used
    assert kernel["vertices"][0] == 0


def test_insert_equals_keys_and_weights_of_reference(shim: Shim) -> None:
    """Slots depend on the order of the threads; their contents do not."""
    expected = reference_outputs(shim, "crf_insert", **insert_arguments())
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
        assert np.abs(weights.sum(axis=1) - 1).max() <= KERNEL_VERSUS_REFERENCE
        slots.append(corners.tobytes())
    assert len(set(slots)) > 1, "control: threads really compete for slots"


def test_the_weights_are_the_cpus(lattice: Outputs) -> None:
    for region, first in ((0, 0), (2, 495)):
        features = features_of(region)
        expected = locate_simplices(features).weights
        found = lattice["weights"][first : first + features.shape[1]]
        assert largest_difference(found, expected) <= KERNEL_VERSUS_REFERENCE
        # Control: they are another picture's with another deviation.
        assert largest_difference(found, locate_simplices(features * 2).weights) > 0.1


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
    kernel, reference = kernel_and_reference(
        shim,
        "crf_renumber",
        **HERE,
        numbers=lattice["numbers"],
        capacity=CAPACITY,
        corners=corners,
    )
    assert np.array_equal(kernel["corners"], reference["corners"])
    assert (kernel["corners"][SMALL] == -1).all()


def test_neighbours_equal_their_reference(shim: Shim, lattice: Outputs) -> None:
    count = int(lattice["vertices"][0])
    names = ("vertex_keys", "vertices", "keys", "numbers")
    kernel, reference = kernel_and_reference(
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
    assert np.array_equal(found, reference["neighbours"][:count])
    # The successor of a vertex has it as predecessor: nothing joins two regions, or skips a vertex.
    vertex, axis = np.nonzero(found[..., 1] >= 0)
    after = found[vertex, axis, 1]
    assert np.array_equal(found[after, axis, 0], vertex)
    keys = lattice["vertex_keys"]
    assert np.array_equal(keys[after] >> np.uint64(55), keys[vertex] >> np.uint64(55))
    assert len(vertex) > count


def test_a_frame_with_too_many_cells_is_refused() -> None:
    with pytest.raises(InputError, match=r"3840x2160 .* use larger standard deviations"):
        lattice_packing((2160, 3840), sxy=0.2, srgb=0.2)
    for size_hw in ((480, 854), (2160, 3840), (4320, 7680)):
        lattice_packing(size_hw, sxy=15, srgb=7)
        lattice_packing(size_hw, sxy=3, srgb=3)
