from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpn.runtime.host.osvos import recalibrate
from mpn.runtime.host.reliability import colour_table, mean_ratio
from mpn.types import Roi
from tests.emulation.cuda_shim.compare import (
    kernel_and_reference,
    kernel_outputs,
    largest_difference,
)
from tests.emulation.cuda_shim.scene import ODD_HW
from tests.emulation.cuda_shim.shim import Shim
from tests.tolerances import KERNEL_CONFIDENCE, KERNEL_VERSUS_REFERENCE

THRESHOLD = 0.5


@pytest.mark.parametrize("even_at", [0.1, 0.9])
def test_odds_are_shifted_as_on_the_cpu(shim: Shim, even_at: float) -> None:
    plane = np.random.default_rng(0).random(ODD_HW, dtype=np.float32)
    plane[0, :3] = 0, 1, even_at
    arguments: dict[str, Any] = {"pixels": plane.size, "less": (1 - even_at) / even_at}
    kernel, reference = kernel_and_reference(shim, "shift_odds", **arguments, plane=plane)
    assert largest_difference(kernel["plane"], reference["plane"]) <= KERNEL_VERSUS_REFERENCE
    expected = recalibrate(plane, threshold=even_at)
    assert largest_difference(kernel["plane"], expected) <= KERNEL_VERSUS_REFERENCE
    # Control: it is a shift.
    assert largest_difference(kernel["plane"], plane) > 0.3


def test_agreement_is_the_cpus(shim: Shim) -> None:
    from mpn.runtime.host.reliability import _bins

    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (*ODD_HW, 3), dtype=np.uint8)
    candidates = rng.random((3, *ODD_HW), dtype=np.float32)
    candidates[2] = 0
    planes = rng.random((2, *ODD_HW), dtype=np.float32)
    tables = np.stack([colour_table(rgb, candidate > 0.4) for candidate in candidates])
    plane_of = np.array([1, -1, 0], np.int32)
    arguments: dict[str, Any] = {
        "candidates": candidates,
        "planes": planes,
        "plane_of": plane_of,
        "bins": _bins(rgb).astype(np.uint16),
        "tables": tables,
        "objects": 3,
        "pixels": ODD_HW[0] * ODD_HW[1],
        "threshold": THRESHOLD,
        "sums": np.zeros((3, 3), np.uint64),
    }
    kernel, reference = kernel_and_reference(shim, "osvos_agreement", **arguments)
    sums = kernel["sums"]
    assert np.array_equal(sums, reference["sums"])
    assert not sums[1:].any(), "one without a plane, one that is nowhere"
    mask = candidates[0] > THRESHOLD
    frame = Roi(0, 0, ODD_HW[1], ODD_HW[0])
    count, plane, ratio = (int(value) for value in sums[0])
    assert count == mask.sum()
    assert abs(plane / 2**24 / count - planes[1][mask].mean()) <= KERNEL_CONFIDENCE
    expected = mean_ratio(rgb, tables[0], mask, box=frame)
    assert abs(ratio / 2**24 / count - 2 - expected) <= 10 * KERNEL_CONFIDENCE
    # Control: another plane is another mean.
    other = kernel_outputs(
        shim, "osvos_agreement", **{**arguments, "plane_of": np.zeros(3, np.int32)}
    )
    assert abs(int(other["sums"][0, 1]) - plane) / 2**24 / count > 1000 * KERNEL_CONFIDENCE


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("bad", [None, np.nan, np.inf, -np.inf])
def test_single_nonfinite_value_sets_the_flag(shim: Shim, dtype: str, bad: float | None) -> None:
    values = np.linspace(-60000, 60000, 3001).astype(dtype)
    if bad is not None:
        values[2998] = bad
    name = "flag_not_finite_f16" if dtype == "float16" else "flag_not_finite_f32"
    flag = np.zeros(1, np.int32)
    kernel, reference = kernel_and_reference(
        shim, name, values=values, count=values.size, flag=flag
    )
    assert kernel["flag"][0] == reference["flag"][0] == (bad is not None)
    kept = kernel_outputs(shim, name, values=values, count=100, flag=np.ones(1, np.int32))
    assert kept["flag"][0] == 1, "what was flagged stays so"
