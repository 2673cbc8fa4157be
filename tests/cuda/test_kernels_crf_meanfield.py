from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpn.runtime.crf.options import ResolvedCrf
from mpn.runtime.device.crf import spatial_taps
from mpn.runtime.device.images import box_rows, boxes_from_rows
from mpn.runtime.host.crf import _regions
from mpn.types import Roi
from tests.emulation.cuda_shim.compare import kernel_and_reference, largest_difference
from tests.emulation.cuda_shim.scene import empty, make_scene
from tests.emulation.cuda_shim.shim import Shim
from tests.tolerances import KERNEL_LOG, KERNEL_SUM_RELATIVE, KERNEL_VERSUS_REFERENCE

SIZE_HW = (24, 36)
CAPACITY = SIZE_HW[0] * SIZE_HW[1]
REGIONS = np.array([[0, 0, 20, 24], [22, 1, 27, 4], [0, 0, 0, 0]], np.int32)
STARTS = np.array([0, 480, 495, 495], np.int32)
TOTAL, OBJECTS, LABELS = 495, 3, 4
REGION_OF_OBJECT = np.array([1, -1, 0], np.int32)
RNG = np.random.default_rng(0)
SCENE = make_scene(SIZE_HW)
HERE = {"starts": STARTS, "objects": OBJECTS, "capacity": CAPACITY}
FRAME = {"height": SIZE_HW[0], "width": SIZE_HW[1]}


def planes(count: int) -> np.ndarray:
    return RNG.random((count, CAPACITY), dtype=np.float32)


def unary() -> np.ndarray:
    cost = -np.log(planes(LABELS) + np.float32(0.01))
    cost[1, 10:20] = np.inf
    return cost


@pytest.mark.parametrize(
    "boxes",
    [
        [Roi(0, 0, 5, 5), Roi(20, 10, 30, 20), None],
        [Roi(0, 0, 5, 5), Roi(6, 4, 9, 9), Roi(30, 20, 36, 24)],
        [None, None, None],
        [Roi(0, 0, 3, 24), Roi(33, 0, 36, 24), Roi(0, 10, 36, 12)],
        # The union of the first two reaches the third, which each of them passes.
        [Roi(0, 0, 4, 20), Roi(10, 14, 30, 24), Roi(2, 18, 12, 24)],
        [Roi(30, 0, 36, 4), Roi(0, 0, 4, 4), Roi(3, 3, 31, 8)],
    ],
)
@pytest.mark.parametrize(("margin_px", "whole_frame"), [(0, False), (2, False), (16, True)])
def test_regions_are_the_cpus(
    shim: Shim, boxes: list[Roi | None], margin_px: int, *, whole_frame: bool
) -> None:
    kernel, reference = kernel_and_reference(
        shim,
        "crf_regions",
        boxes=box_rows(boxes),
        objects=OBJECTS,
        margin_px=margin_px,
        is_whole_frame=int(whole_frame),
        **FRAME,
        regions=empty((OBJECTS, 4), np.int32),
        starts=empty((OBJECTS + 1,), np.int32),
        region_of_object=empty((OBJECTS,), np.int32),
        refined_boxes=empty((OBJECTS, 4), np.int32),
    )
    expected = _regions(boxes, ResolvedCrf(margin_px=margin_px, whole_frame=whole_frame), SIZE_HW)
    for found in (kernel, reference):
        members = {
            box: sorted(np.flatnonzero(found["region_of_object"] == region).tolist())
            for region, box in enumerate(boxes_from_rows(found["regions"]))
            if box is not None
        }
        assert members == dict(expected)
        areas = [box.size_hw[0] * box.size_hw[1] for box in members]
        assert found["starts"].tolist()[: len(areas) + 1] == [0, *np.cumsum(areas)]
        assert (found["starts"][len(areas) :] == sum(areas)).all()
        of_objects = boxes_from_rows(found["refined_boxes"])
        assert [box is None for box in of_objects] == [box is None for box in boxes]
        assert all(k in members[box] for k, box in enumerate(of_objects) if box is not None)


def test_many_objects_that_join_one_after_the_other(shim: Shim) -> None:
    rng = np.random.default_rng(5)
    for _ in range(10):
        corner = rng.integers(0, 60, (12, 2))
        rows = np.concatenate([corner, corner + rng.integers(1, 12, (12, 2))], axis=1)
        boxes = boxes_from_rows(rows.astype(np.int32))
        kernel, _reference = kernel_and_reference(
            shim,
            "crf_regions",
            boxes=rows.astype(np.int32),
            objects=12,
            margin_px=1,
            is_whole_frame=0,
            height=80,
            width=80,
            regions=empty((12, 4), np.int32),
            starts=empty((13,), np.int32),
            region_of_object=empty((12,), np.int32),
            refined_boxes=empty((12, 4), np.int32),
        )
        regions = boxes_from_rows(kernel["regions"])
        found = {
            (regions[r], tuple(np.flatnonzero(kernel["region_of_object"] == r).tolist()))
            for r in set(kernel["region_of_object"].tolist())
        }
        expected = _regions(boxes, ResolvedCrf(margin_px=1), (80, 80))
        assert found == {(box, tuple(members)) for box, members in expected}


def test_unary_equals_its_reference(shim: Shim) -> None:
    merged = SCENE.prob / 3
    merged[2, 3:5] = np.nan
    merged[0, 2:4] = 0
    kernel, reference = kernel_and_reference(
        shim,
        "crf_unary",
        merged=merged,
        regions=REGIONS,
        **HERE,
        region_of_object=REGION_OF_OBJECT,
        **FRAME,
        unary=np.full((LABELS, CAPACITY), 9, np.float32),
    )
    finite = np.isfinite(reference["unary"])
    assert np.array_equal(np.isfinite(kernel["unary"]), finite)
    assert largest_difference(kernel["unary"][finite], reference["unary"][finite]) <= KERNEL_LOG
    assert np.isinf(kernel["unary"][1, :480]).all(), "object 0 is no label in region 0"
    assert np.isfinite(kernel["unary"][3, :480]).all()
    smallest = -np.log(1e-5)
    assert abs(kernel["unary"][3, 3 * 20] - smallest) <= KERNEL_LOG, "a NaN poisons nothing"
    assert (kernel["unary"][:, TOTAL:] == 9).all()


def test_q_starts_as_the_softmax(shim: Shim) -> None:
    kernel, reference = kernel_and_reference(
        shim,
        "crf_start",
        unary=unary(),
        **HERE,
        labels=LABELS,
        q=np.zeros((LABELS, CAPACITY), "f4"),
    )
    assert largest_difference(kernel["q"], reference["q"]) <= KERNEL_VERSUS_REFERENCE
    assert np.abs(kernel["q"][:, :TOTAL].sum(axis=0) - 1).max() <= KERNEL_VERSUS_REFERENCE
    assert not kernel["q"][1, 10:20].any()
    assert not kernel["q"][:, TOTAL:].any()


@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize("sigma_px", [0.1, 1.0, 3.0, 40.0])
def test_the_spatial_kernel_equals_its_reference(
    shim: Shim, sigma_px: float, *, is_plain: bool
) -> None:
    taps = spatial_taps(sigma_px, max(SIZE_HW))
    channels = 1 if is_plain else 2
    arguments: dict[str, Any] = {
        "regions": REGIONS,
        **HERE,
        "width": SIZE_HW[1],
        "planes": None if is_plain else planes(2),
        "norm": None if is_plain else planes(1)[0],
        "taps": taps,
        "reach": len(taps) - 1,
        "channels": channels,
        "filtered": np.zeros((channels, CAPACITY), np.float32),
    }
    kernel, reference = kernel_and_reference(shim, "crf_rows", **arguments)
    largest = reference["filtered"].max()
    error = largest_difference(kernel["filtered"], reference["filtered"])
    assert error <= KERNEL_VERSUS_REFERENCE * largest
    del arguments["norm"]
    arguments["planes"] = kernel["filtered"]
    columns, reference = kernel_and_reference(shim, "crf_columns", **arguments)
    error = largest_difference(columns["filtered"], reference["filtered"])
    assert error <= KERNEL_VERSUS_REFERENCE * reference["filtered"].max()
    if sigma_px > 1:  # control: columns are not rows, and regions do not mix
        assert largest_difference(columns["filtered"], kernel["filtered"]) > 0.1 * largest


@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize(("exact_pixels", "written"), [(14, 0), (15, 15), (480, 495)])
def test_all_pairs_equal_their_reference(
    shim: Shim, exact_pixels: int, written: int, *, is_plain: bool
) -> None:
    channels = 1 if is_plain else 2
    kernel, reference = kernel_and_reference(
        shim,
        "crf_all_pairs",
        rgb=SCENE.rgb,
        regions=REGIONS,
        **HERE,
        width=SIZE_HW[1],
        planes=None if is_plain else planes(2),
        norm=None if is_plain else planes(1)[0],
        sxy=5.0,
        srgb=9.0,
        exact_pixels=exact_pixels,
        channels=channels,
        filtered=np.zeros((channels, CAPACITY), np.float32),
    )
    largest = max(reference["filtered"].max(), 1)
    error = largest_difference(kernel["filtered"], reference["filtered"])
    assert error <= KERNEL_SUM_RELATIVE * largest
    assert (kernel["filtered"][0] > 0).sum() == written


def test_norm_and_message_of_ones(shim: Shim) -> None:
    degree = planes(1)[0] + 1
    kernel, reference = kernel_and_reference(
        shim, "crf_norm", degree=degree, **HERE, norm=np.zeros(CAPACITY, np.float32)
    )
    assert largest_difference(kernel["norm"], reference["norm"]) <= KERNEL_VERSUS_REFERENCE
    assert np.allclose(kernel["norm"][:TOTAL] ** 2 * degree[:TOTAL], 1)
    for is_first in (0, 1):
        kernel, reference = kernel_and_reference(
            shim,
            "crf_of_ones",
            filtered=planes(1),
            norm=degree,
            **HERE,
            compat=9.0,
            is_first=is_first,
            of_ones=np.full(CAPACITY, 5, np.float32),
        )
        largest = reference["of_ones"].max()
        error = largest_difference(kernel["of_ones"], reference["of_ones"])
        assert error <= KERNEL_VERSUS_REFERENCE * largest


@pytest.mark.parametrize("without", [[], ["spatial"], ["bilateral"], ["spatial", "bilateral"]])
def test_an_update_equals_its_reference(shim: Shim, without: list[str]) -> None:
    messages: dict[str, Any] = {
        "spatial": planes(OBJECTS),
        "spatial_norm": planes(1)[0],
        "bilateral": planes(OBJECTS),
        "bilateral_norm": planes(1)[0],
    }
    for name in without:
        messages[name] = messages[f"{name}_norm"] = None
    arguments = {
        "unary": unary(),
        "of_ones": None if len(without) == 2 else 2 * planes(1)[0],
        **messages,
        **HERE,
        "labels": LABELS,
        "spatial_compat": 3.0,
        "bilateral_compat": 10.0,
        "q": np.zeros((LABELS, CAPACITY), np.float32),
    }
    kernel, reference = kernel_and_reference(shim, "crf_update", **arguments)
    assert largest_difference(kernel["q"], reference["q"]) <= 10 * KERNEL_VERSUS_REFERENCE
    assert np.abs(kernel["q"][:, :TOTAL].sum(axis=0) - 1).max() <= KERNEL_VERSUS_REFERENCE
    assert not kernel["q"][1, 10:20].any(), "what is no label stays none"


def test_marginals_go_back_to_their_objects(shim: Shim) -> None:
    q = planes(LABELS)
    refined = np.full((OBJECTS, *SIZE_HW), 9, np.float32)
    kernel, reference = kernel_and_reference(
        shim,
        "crf_store",
        q=q,
        regions=REGIONS,
        **HERE,
        region_of_object=REGION_OF_OBJECT,
        **FRAME,
        refined=refined,
    )
    assert np.array_equal(kernel["refined"], reference["refined"])
    assert np.array_equal(kernel["refined"][2, :24, :20], q[3, :480].reshape(24, 20))
    assert (kernel["refined"][1] == 9).all()
    assert (kernel["refined"] != 9).sum() == TOTAL
