from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpn.runtime.host import ops as cpu
from mpn.types import Roi
from tests.emulation.cuda_shim.compare import (
    kernel_and_reference,
    kernel_outputs,
    largest_difference,
)
from tests.emulation.cuda_shim.scene import EVEN_HW, ODD_HW, boxes_in, empty, make_scene
from tests.emulation.cuda_shim.shim import Shim
from tests.runtime.host.test_ops import GOLDEN_WARPS
from tests.tolerances import KERNEL_VERSUS_REFERENCE, WARP_VERSUS_FLOAT64

SIGMAS = {"sigma_px": 3.0, "sigma_frac": 0.5}


def rois_from(boxes: np.ndarray) -> list[Roi | None]:
    return [Roi(*row) if row[2] > row[0] else None for row in boxes.tolist()]


def warp_arguments(
    prob: np.ndarray, there: np.ndarray, reach: np.ndarray | None = None, **changes: Any
) -> dict[str, Any]:
    """Return arguments of warp_box without flow check, unbounded without ``reach``."""
    objects, height, width = prob.shape
    return {
        "prob": prob,
        "flow_to_prev_px": there,
        "flow_from_prev_px": None,
        "reach": np.array([[0, 0, width, height]] * objects, np.int32) if reach is None else reach,
        "objects": objects,
        "height": height,
        "width": width,
        **SIGMAS,
        "threshold": 0.5,
        "warped": empty(prob.shape),
        "boxes": np.array([[width, height, 0, 0]] * objects, np.int32),
        "areas": np.zeros(objects, np.int32),
        **changes,
    }


def tiny(size_hw: tuple[int, int]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    prob = rng.random((3, *size_hw), dtype=np.float32)
    return warp_arguments(prob, rng.normal(0, 0.7, (2, *size_hw)).astype(np.float32))


@pytest.mark.parametrize("size_hw", [ODD_HW, EVEN_HW, (1, 1), (1, 9), (9, 1), (2, 3)])
def test_warp_equals_its_reference_and_the_host(shim: Shim, size_hw: tuple[int, int]) -> None:
    arguments = tiny(size_hw)
    if min(size_hw) > 3:
        scene = make_scene(size_hw)
        arguments = warp_arguments(scene.prob, scene.there)
    kernel, reference = kernel_and_reference(shim, "warp_box", **arguments)
    assert largest_difference(kernel["warped"], reference["warped"]) <= KERNEL_VERSUS_REFERENCE
    expected = cpu.warp_bilinear(arguments["prob"], arguments["flow_to_prev_px"])
    assert largest_difference(kernel["warped"], expected) <= WARP_VERSUS_FLOAT64


@pytest.mark.parametrize("name", GOLDEN_WARPS)
def test_warp_matches_the_golden_case(shim: Shim, golden: Path, name: str) -> None:
    case = np.load(golden / "warp" / f"{name}.npz")
    there = np.ascontiguousarray(case["flow"].transpose(2, 0, 1))
    arguments = warp_arguments(case["prob"][None], there)
    warped = kernel_outputs(shim, "warp_box", **arguments)["warped"]
    error = largest_difference(warped[0], case["exact_zeros"].astype(np.float32))
    assert error <= WARP_VERSUS_FLOAT64
    # Control: with the sign of the flow wrong it fails wherever something moves.
    if name not in ("zero", "all_out"):
        other = kernel_outputs(shim, "warp_box", **{**arguments, "flow_to_prev_px": -there})
        assert largest_difference(other["warped"], warped) > 100 * WARP_VERSUS_FLOAT64


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, -1), (-7, 5)])
def test_warp_by_whole_pixels_is_an_exact_shift(shim: Shim, shift: tuple[int, int]) -> None:
    arguments = tiny((11, 14))
    arguments["flow_to_prev_px"] = np.broadcast_to(
        np.array(shift, np.float32)[:, None, None], (2, 11, 14)
    ).copy()
    warped = kernel_outputs(shim, "warp_box", **arguments)["warped"]
    padded = np.pad(arguments["prob"], ((0, 0), (9, 9), (9, 9)))
    dx, dy = shift
    assert np.array_equal(warped, padded[:, 9 + dy : 20 + dy, 9 + dx : 23 + dx])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38, 2.0**31, 4e9])
def test_warp_is_zero_if_the_coordinate_is_no_place(shim: Shim, value: float) -> None:
    for axis in (0, 1):
        flow = np.zeros((2, 9, 13), np.float32)
        flow[axis, 2:5, 3:9] = value
        arguments = warp_arguments(np.ones((3, 9, 13), np.float32), flow)
        warped = kernel_outputs(shim, "warp_box", **arguments)["warped"]
        assert not warped[:, 2:5, 3:9].any()
        assert warped.sum() == 3 * (9 * 13 - 18)


@pytest.mark.parametrize("size_hw", [ODD_HW, EVEN_HW])
@pytest.mark.parametrize("is_checked", [False, True])
def test_warp_with_check_and_boxes(
    shim: Shim, size_hw: tuple[int, int], *, is_checked: bool
) -> None:
    scene, reach = make_scene(size_hw), boxes_in(size_hw)
    back = scene.back if is_checked else None
    arguments = warp_arguments(scene.prob, scene.there, reach, flow_from_prev_px=back)
    kernel, reference = kernel_and_reference(shim, "warp_box", **arguments)
    assert largest_difference(kernel["warped"], reference["warped"]) <= KERNEL_VERSUS_REFERENCE
    assert np.array_equal(kernel["boxes"], reference["boxes"])
    assert np.array_equal(kernel["areas"], reference["areas"])
    expected = cpu.warp_bilinear(scene.prob, scene.there, boxes=rois_from(reach))
    if is_checked:
        for plane, box in zip(expected, rois_from(reach), strict=True):
            if box is not None:
                plane[box.y0 : box.y1, box.x0 : box.x1] *= cpu.flow_confidence(
                    scene.there, scene.back, box=box, **SIGMAS
                )
    assert largest_difference(kernel["warped"], expected) <= WARP_VERSUS_FLOAT64
    above = kernel["warped"] > 0.5
    assert np.array_equal(kernel["areas"], above.sum(axis=(1, 2)))
    assert kernel["areas"][1] == 0
    for plane, (x0, y0, x1, y1) in zip(above, kernel["boxes"].tolist(), strict=True):
        rows, columns = np.nonzero(plane)
        if rows.size:
            assert (x0, y0) == (columns.min(), rows.min())
            assert (x1, y1) == (columns.max() + 1, rows.max() + 1)
        else:
            assert x1 <= x0
    # Controls: the check matters, and so does the threshold.
    other = kernel_outputs(
        shim, "warp_box", **{**arguments, "flow_from_prev_px": scene.there, "threshold": 0.3}
    )
    assert largest_difference(other["warped"], kernel["warped"]) > 0.1
    assert not np.array_equal(other["areas"], kernel["areas"])


@pytest.mark.parametrize("sigmas", [(3.0, 0.5), (0.0, 0.5), (1.0, 0.0), (0.0, 0.0)])
def test_flow_check_equals_its_reference_and_the_host(
    shim: Shim, sigmas: tuple[float, float]
) -> None:
    """With probability 1 everywhere the result is the confidence inside the frame."""
    scene, (height, width) = make_scene(ODD_HW), ODD_HW
    scene.there[:, 5, 5] = scene.back[:, 5, 5] = 0
    chosen = {"sigma_px": sigmas[0], "sigma_frac": sigmas[1]}
    ones = np.ones((1, *ODD_HW), np.float32)
    arguments = warp_arguments(ones, scene.there, flow_from_prev_px=scene.back, **chosen)
    kernel, reference = kernel_and_reference(shim, "warp_box", **arguments)
    assert largest_difference(kernel["warped"], reference["warped"]) <= KERNEL_VERSUS_REFERENCE
    with np.errstate(all="ignore"):
        confidence = cpu.flow_confidence(
            scene.there, scene.back, box=Roi(0, 0, width, height), **chosen
        )
    expected = cpu.warp_bilinear(ones, scene.there)[0] * confidence
    assert largest_difference(kernel["warped"][0], expected) <= WARP_VERSUS_FLOAT64
    assert not kernel["warped"][0, [0, 1], [0, 1]].any()  # no number
    if sigmas != (0.0, 0.0):
        assert kernel["warped"][0, 5, 5] == (1 if sigmas[0] else 0)
