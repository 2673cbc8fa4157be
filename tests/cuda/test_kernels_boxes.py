from __future__ import annotations

import numpy as np
import pytest

from mpn.runtime.device.images import box_rows, boxes_from_rows
from mpn.runtime.host.roi import box_from_prob, reachable_boxes, roi_from_prob
from mpn.types import Roi
from tests.emulation.cuda_shim.compare import kernel_and_reference, kernel_outputs
from tests.emulation.cuda_shim.scene import EVEN_HW, ODD_HW, empty, make_scene
from tests.emulation.cuda_shim.shim import Shim

SUPPORTS = [Roi(5, 4, 20, 30), None, Roi(0, 0, 53, 37), Roi(52, 36, 53, 37)]


def smooth_flow(size_hw: tuple[int, int], offset: tuple[float, float]) -> np.ndarray:
    rng = np.random.default_rng(1)
    flow = rng.normal(0, 2, (2, *size_hw)) + np.array(offset)[:, None, None]
    return flow.astype(np.float32)


def reached(shim: Shim, flow: np.ndarray, partials: int) -> np.ndarray:
    """Run both kernels in a row and compare them with their references."""
    height, width = flow.shape[1:]
    kernel, reference = kernel_and_reference(
        shim,
        "flow_extent",
        flow_to_prev_px=flow,
        pixels=height * width,
        partials=partials,
        extents=empty((partials, 4)),
    )
    assert np.array_equal(kernel["extents"][:, 0], reference["extents"][:, 0], equal_nan=True)
    known = ~np.isnan(kernel["extents"][:, 0])
    assert np.array_equal(kernel["extents"][known], reference["extents"][known])
    arguments = {
        "supports": box_rows(SUPPORTS),
        "extents": kernel["extents"],
        "partials": partials,
        "objects": 4,
        "height": height,
        "width": width,
        "reach": empty((4, 4), np.int32),
        "boxes": empty((4, 4), np.int32),
        "areas": empty((4,), np.int32),
    }
    kernel, reference = kernel_and_reference(shim, "reach_boxes", **arguments)
    for name in ("reach", "boxes", "areas"):
        assert np.array_equal(kernel[name], reference[name])
    assert np.array_equal(kernel["boxes"], [[width, height, 0, 0]] * 4)
    assert not kernel["areas"].any()
    in_place = dict(arguments, reach=arguments["supports"])
    assert np.array_equal(kernel_outputs(shim, "reach_boxes", **in_place)["reach"], kernel["reach"])
    return kernel["reach"]


@pytest.mark.parametrize("partials", [1, 2, 9])
@pytest.mark.parametrize("offset", [(0, 0), (4.5, -3.25), (-60, 0), (0, 1e9), (-3e38, 3e38)])
def test_reach_is_the_cpus(shim: Shim, offset: tuple[float, float], partials: int) -> None:
    flow = smooth_flow(ODD_HW, offset)
    assert boxes_from_rows(reached(shim, flow, partials)) == tuple(reachable_boxes(SUPPORTS, flow))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0, 0), (1, 36, 52), (0, 20, 7)])
def test_a_flow_that_is_no_number_reaches_everywhere(
    shim: Shim, value: float, place: tuple[int, int, int]
) -> None:
    flow = smooth_flow(ODD_HW, (0, 0))
    flow[place] = value
    reach = boxes_from_rows(reached(shim, flow, 2))
    assert reach == tuple(reachable_boxes(SUPPORTS, flow))
    assert reach[0] == Roi(0, 0, 53, 37)


def test_more_objects_than_threads(shim: Shim) -> None:
    supports = np.tile(box_rows(SUPPORTS), (75, 1))
    kernel, reference = kernel_and_reference(
        shim,
        "reach_boxes",
        supports=supports,
        extents=np.array([[-1.5, 2, -3, 0.5]], np.float32),
        partials=1,
        objects=300,
        height=37,
        width=53,
        reach=empty((300, 4), np.int32),
        boxes=empty((300, 4), np.int32),
        areas=empty((300,), np.int32),
    )
    assert np.array_equal(kernel["reach"], reference["reach"])
    assert np.array_equal(kernel["reach"][:4], kernel["reach"][-4:])


def test_reset_boxes_empties_boxes_areas_and_sums(shim: Shim) -> None:
    kernel, reference = kernel_and_reference(
        shim,
        "reset_boxes",
        objects=3,
        height=37,
        width=53,
        boxes=empty((3, 4), np.int32),
        areas=empty((3,), np.int32),
        prob_sums=empty((3,), np.uint64),
    )
    assert kernel["boxes"].tolist() == reference["boxes"].tolist() == [[53, 37, 0, 0]] * 3
    assert not kernel["areas"].any()
    assert not kernel["prob_sums"].any()


@pytest.mark.parametrize(
    ("margin_frac", "margin_px_min"), [(0.15, 16), (0.0, 0), (0.5, 3), (1e12, 0), (0.1, 10**6)]
)
def test_rois_are_the_cpus(shim: Shim, margin_frac: float, margin_px_min: int) -> None:
    height, width = 90, 120
    prob = np.zeros((3, height, width), np.float32)
    prob[0, 20:41, 30:67] = prob[2, 85:, :3] = 1
    boxes = box_rows([box_from_prob(plane, 0.5) for plane in prob])
    kernel, reference = kernel_and_reference(
        shim,
        "rois_from_boxes",
        boxes=boxes,
        areas=prob.sum(axis=(1, 2)).astype(np.int32),
        first_areas_px=np.ones(3),
        reach=np.full((3, 4), 7, np.int32),
        objects=3,
        height=height,
        width=width,
        margin_frac=margin_frac,
        margin_px_min=margin_px_min,
        lost_area_frac=0.0,
        rois=empty((3, 4), np.int32),
        supports=empty((3, 4), np.int32),
    )
    assert np.array_equal(kernel["rois"], reference["rois"])
    assert np.array_equal(kernel["supports"], reference["supports"])
    expected = tuple(
        roi_from_prob(plane, threshold=0.5, margin_frac=margin_frac, margin_px_min=margin_px_min)
        for plane in prob
    )
    assert boxes_from_rows(kernel["rois"]) == expected
    assert (kernel["supports"][[0, 2]] == 7).all()
    assert not kernel["supports"][1].any()


@pytest.mark.parametrize(("area", "is_lost"), [(9, True), (10, False), (11, False)])
def test_an_object_is_lost_below_its_share_of_the_first_area(
    shim: Shim, area: int, *, is_lost: bool
) -> None:
    kernel = kernel_outputs(
        shim,
        "rois_from_boxes",
        boxes=np.array([[3, 3, 8, 8]], np.int32),
        areas=np.array([area], np.int32),
        first_areas_px=np.array([100.0]),
        reach=np.array([[0, 0, 9, 9]], np.int32),
        objects=1,
        height=20,
        width=20,
        margin_frac=0.0,
        margin_px_min=0,
        lost_area_frac=0.1,
        rois=empty((1, 4), np.int32),
        supports=empty((1, 4), np.int32),
    )
    assert (not kernel["rois"].any()) == is_lost
    assert (not kernel["supports"].any()) == is_lost


@pytest.mark.parametrize("size_hw", [ODD_HW, EVEN_HW])
def test_planes_of_lost_objects_are_cleared(shim: Shim, size_hw: tuple[int, int]) -> None:
    prob = make_scene(size_hw).prob
    kernel, reference = kernel_and_reference(
        shim,
        "clear_lost",
        rois=box_rows([Roi(1, 1, 2, 2), None, Roi(0, 0, 1, 1)]),
        objects=3,
        pixels=size_hw[0] * size_hw[1],
        prob=prob,
    )
    assert np.array_equal(kernel["prob"], reference["prob"])
    assert np.array_equal(kernel["prob"][[0, 2]], prob[[0, 2]])
    assert not kernel["prob"][1].any()
