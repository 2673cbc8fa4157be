from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpn.runtime.host import ops as cpu
from mpn.types import Roi
from tests.emulation.cuda_shim.compare import kernel_and_twin, kernel_outputs, largest_difference
from tests.emulation.cuda_shim.scene import EVEN_HW, ODD_HW, boxes_in, empty, make_scene
from tests.emulation.cuda_shim.shim import Shim
from tests.runtime.host.test_ops import GOLDEN_WARPS
from tests.tolerances import KERNEL_VERSUS_TWIN, WARP_VERSUS_FLOAT64

SIGMAS = {"sigma_px": 3.0, "sigma_frac": 0.5}


def rois_from(boxes: np.ndarray) -> list[Roi | None]:
    return [Roi(*row) if row[2] > row[0] else None for row in boxes.tolist()]


def warp_arguments(size_hw: tuple[int, int], boxes: np.ndarray | None) -> dict[str, Any]:
    scene = make_scene(size_hw)
    return {
        "prob": scene.prob,
        "flow_to_prev_px": scene.there,
        "boxes": boxes,
        "objects": 3,
        **scene.sizes,
        "warped": empty(scene.prob.shape),
    }


@pytest.mark.parametrize("size_hw", [ODD_HW, EVEN_HW, (1, 1), (1, 9), (9, 1), (2, 3)])
def test_warp_equals_its_twin_and_the_cpu(shim: Shim, size_hw: tuple[int, int]) -> None:
    arguments = warp_arguments((9, 9), None)
    arguments = warp_arguments(size_hw, None) if min(size_hw) > 3 else tiny(size_hw)
    kernel, twin = kernel_and_twin(shim, "warp_bilinear", **arguments)
    assert largest_difference(kernel["warped"], twin["warped"]) <= KERNEL_VERSUS_TWIN
    expected = cpu.warp_bilinear(arguments["prob"], arguments["flow_to_prev_px"])
    assert largest_difference(kernel["warped"], expected) <= WARP_VERSUS_FLOAT64


def tiny(size_hw: tuple[int, int]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    prob = rng.random((3, *size_hw), dtype=np.float32)
    flow = rng.normal(0, 0.7, (2, *size_hw)).astype(np.float32)
    return {
        "prob": prob,
        "flow_to_prev_px": flow,
        "boxes": None,
        "objects": 3,
        "height": size_hw[0],
        "width": size_hw[1],
        "warped": empty(prob.shape),
    }


@pytest.mark.parametrize("size_hw", [ODD_HW, EVEN_HW])
def test_warp_in_boxes_equals_its_twin_and_the_cpu(shim: Shim, size_hw: tuple[int, int]) -> None:
    boxes = boxes_in(size_hw)
    arguments = warp_arguments(size_hw, boxes)
    kernel, twin = kernel_and_twin(shim, "warp_bilinear", **arguments)
    assert largest_difference(kernel["warped"], twin["warped"]) <= KERNEL_VERSUS_TWIN
    expected = cpu.warp_bilinear(
        arguments["prob"], arguments["flow_to_prev_px"], boxes=rois_from(boxes)
    )
    assert largest_difference(kernel["warped"], expected) <= WARP_VERSUS_FLOAT64
    assert not kernel["warped"][1].any()


@pytest.mark.parametrize("name", GOLDEN_WARPS)
def test_warp_matches_the_golden_case(shim: Shim, golden: Path, name: str) -> None:
    case = np.load(golden / "warp" / f"{name}.npz")
    prob = case["prob"][None]
    arguments = {
        "prob": prob,
        "flow_to_prev_px": np.ascontiguousarray(case["flow"].transpose(2, 0, 1)),
        "boxes": None,
        "objects": 1,
        "height": prob.shape[1],
        "width": prob.shape[2],
    }
    warped = kernel_outputs(shim, "warp_bilinear", **arguments, warped=empty(prob.shape))["warped"]
    error = largest_difference(warped[0], case["exact_zeros"].astype(np.float32))
    assert error <= WARP_VERSUS_FLOAT64
    # Control: with the sign of the flow wrong it fails wherever something moves.
    if name not in ("zero", "all_out"):
        arguments["flow_to_prev_px"] = -arguments["flow_to_prev_px"]
        other = kernel_outputs(shim, "warp_bilinear", **arguments, warped=empty(prob.shape))
        assert largest_difference(other["warped"], warped) > 100 * WARP_VERSUS_FLOAT64


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, -1), (-7, 5)])
def test_warp_by_whole_pixels_is_an_exact_shift(shim: Shim, shift: tuple[int, int]) -> None:
    arguments = tiny((11, 14))
    arguments["flow_to_prev_px"] = np.broadcast_to(
        np.array(shift, np.float32)[:, None, None], (2, 11, 14)
    ).copy()
    warped = kernel_outputs(shim, "warp_bilinear", **arguments)["warped"]
    padded = np.pad(arguments["prob"], ((0, 0), (9, 9), (9, 9)))
    dx, dy = shift
    assert np.array_equal(warped, padded[:, 9 + dy : 20 + dy, 9 + dx : 23 + dx])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38, 2.0**31, 4e9])
def test_warp_gives_zero_where_the_coordinate_is_no_place(shim: Shim, value: float) -> None:
    for axis in (0, 1):
        flow = np.zeros((2, 9, 13), np.float32)
        flow[axis, 2:5, 3:9] = value
        arguments = tiny((9, 13)) | {"flow_to_prev_px": flow}
        arguments["prob"] = np.ones((3, 9, 13), np.float32)
        warped = kernel_outputs(shim, "warp_bilinear", **arguments)["warped"]
        assert not warped[:, 2:5, 3:9].any()
        assert warped.sum() == 3 * (9 * 13 - 18)


@pytest.mark.parametrize("size_hw", [ODD_HW, EVEN_HW])
@pytest.mark.parametrize("is_checked", [False, True])
def test_warp_with_check_and_boxes(
    shim: Shim, size_hw: tuple[int, int], *, is_checked: bool
) -> None:
    scene, reach = make_scene(size_hw), boxes_in(size_hw)
    arguments = {
        "prob": scene.prob,
        "flow_to_prev_px": scene.there,
        "flow_from_prev_px": scene.back if is_checked else None,
        "reach": reach,
        "objects": 3,
        **scene.sizes,
        **SIGMAS,
        "threshold": 0.5,
        "warped": empty(scene.prob.shape),
        "boxes": np.array([[size_hw[1], size_hw[0], 0, 0]] * 3, np.int32),
        "areas": np.zeros(3, np.int32),
    }
    kernel, twin = kernel_and_twin(shim, "warp_box", **arguments)
    assert largest_difference(kernel["warped"], twin["warped"]) <= KERNEL_VERSUS_TWIN
    assert np.array_equal(kernel["boxes"], twin["boxes"])
    assert np.array_equal(kernel["areas"], twin["areas"])
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
def test_flow_confidence_equals_its_twin_and_the_cpu(
    shim: Shim, sigmas: tuple[float, float]
) -> None:
    scene, box = make_scene(ODD_HW), Roi(0, 0, 31, 30)
    scene.there[:, 5, 5] = scene.back[:, 5, 5] = 0
    chosen = {"sigma_px": sigmas[0], "sigma_frac": sigmas[1]}
    kernel, twin = kernel_and_twin(
        shim,
        "flow_confidence",
        flow_to_prev_px=scene.there,
        flow_from_prev_px=scene.back,
        x0=box.x0,
        y0=box.y0,
        box_height=30,
        box_width=31,
        **scene.sizes,
        **chosen,
        confidence=empty((30, 31)),
    )
    assert largest_difference(kernel["confidence"], twin["confidence"]) <= KERNEL_VERSUS_TWIN
    with np.errstate(all="ignore"):
        expected = cpu.flow_confidence(scene.there, scene.back, box=box, **chosen)
    assert largest_difference(kernel["confidence"], expected) <= WARP_VERSUS_FLOAT64
    assert kernel["confidence"][0, 0] == 0  # no number
    assert kernel["confidence"][1, 1] == 0
    if sigmas != (0.0, 0.0):
        assert kernel["confidence"][5, 5] == (1 if sigmas[0] else 0)
