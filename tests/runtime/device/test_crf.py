"""Dense CRF of the device, through the shim, against the host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpn.runtime.crf import kernels as crf_kernels
from mpn.runtime.crf.dense import dense_crf
from mpn.runtime.crf.options import ResolvedCrf
from mpn.runtime.device import lattice as cuda_lattice
from mpn.runtime.device.crf import CudaCrf
from mpn.runtime.device.images import box_rows, boxes_from_rows
from mpn.runtime.host.crf import refine
from mpn.types import Roi
from tests.emulation.cuda_shim.compare import largest_difference
from tests.emulation.cuda_shim.device import ShimDevice
from tests.emulation.cuda_shim.scene import empty, make_scene
from tests.emulation.cuda_shim.shim import Shim
from tests.tolerances import (
    CRF_ARGMAX_AGREEMENT,
    CRF_MEAN_ABSOLUTE,
    CRF_VERSUS_FLOAT64,
    KERNEL_CRF,
)

GOLDEN = ("deeplab_like", "pydensecrf_readme", "osvos_like", "gauss_only")


@pytest.fixture(autouse=True)
def few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use few threads in kernels with strided loops: the shim emulates each thread."""
    monkeypatch.setattr(cuda_lattice, "_BLOCKS", 2)


def golden_case(golden: Path, name: str) -> tuple[Any, dict[str, Any]]:
    case = np.load(golden / "crf" / f"small_exact_{name}.npz", allow_pickle=True)
    given = json.loads(str(case["params"]))
    return case, {
        "sxy_gaussian": given["sxy_g"],
        "compat_gaussian": given["compat_g"],
        "sxy_bilateral": given["sxy_b"] or 1.0,
        "srgb_bilateral": given["srgb_b"] or 1.0,
        "compat_bilateral": given["compat_b"],
    }


def on_the_device(
    shim: Shim, unary: np.ndarray, rgb: np.ndarray, seed: int = 1, **parameters: Any
) -> np.ndarray:
    exact_pixels = parameters.pop("exact_pixels", crf_kernels.EXACT_PIXELS)
    device = ShimDevice(shim, seed=seed)
    crf = CudaCrf(
        device,
        objects=len(unary) - 1,
        size_hw=(rgb.shape[0], rgb.shape[1]),
        options=ResolvedCrf(**parameters),
        exact_pixels=exact_pixels,
    )
    q = device.download(crf.dense_crf(device.upload(unary), device.upload(rgb)))
    assert device.downloads == 1, "nothing but the result comes back to the host"
    return q


@pytest.mark.parametrize("name", GOLDEN)
def test_all_pairs_match_the_golden_case_in_float64(shim: Shim, golden: Path, name: str) -> None:
    case, parameters = golden_case(golden, name)
    unary = -np.log(np.clip(case["prob"], 1e-5, 1)).astype(np.float32)
    q = on_the_device(shim, unary, case["image_rgb"], **parameters)
    exact = case["Q_exact_float64"].reshape(q.shape).astype(np.float32)
    assert largest_difference(q, exact) <= CRF_VERSUS_FLOAT64
    # Control: one iteration less is not enough.
    other = on_the_device(shim, unary, case["image_rgb"], **parameters, iterations=4)
    assert largest_difference(other, exact) > 10 * CRF_VERSUS_FLOAT64


@pytest.mark.parametrize("name", GOLDEN[:3])
def test_the_lattice_matches_pydensecrf_and_the_cpu(
    shim: Shim, golden: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, parameters = golden_case(golden, name)
    rgb = case["image_rgb"]
    unary = -np.log(np.clip(case["prob"], 1e-5, 1)).astype(np.float32)
    q = on_the_device(shim, unary, rgb, **parameters, exact_pixels=0)
    expected = case["Q_pydensecrf"].reshape(q.shape)
    assert np.abs(q - expected).mean() <= CRF_MEAN_ABSOLUTE
    assert (q.argmax(axis=0) == expected.argmax(axis=0)).mean() >= CRF_ARGMAX_AGREEMENT
    monkeypatch.setattr(crf_kernels, "EXACT_PIXELS", 0)
    on_the_cpu = dense_crf(unary, rgb, iterations=5, **parameters)
    assert largest_difference(q, on_the_cpu) <= KERNEL_CRF
    # Control: the lattice differs from the definition.
    monkeypatch.setattr(crf_kernels, "EXACT_PIXELS", 10**6)
    by_definition = dense_crf(unary, rgb, iterations=5, **parameters)
    assert largest_difference(q, by_definition) > 100 * KERNEL_CRF


def test_the_order_of_threads_changes_no_bit(shim: Shim, golden: Path) -> None:
    case, parameters = golden_case(golden, "deeplab_like")
    unary = -np.log(np.clip(case["prob"], 1e-5, 1)).astype(np.float32)
    runs = [
        on_the_device(shim, unary, case["image_rgb"], seed, **parameters, exact_pixels=0)
        for seed in range(3)
    ]
    assert runs[0].tobytes() == runs[1].tobytes() == runs[2].tobytes()


def test_the_golden_picture_of_pydensecrf_with_four_labels(shim: Shim, golden: Path) -> None:
    case = np.load(golden / "crf" / "crf_4labels.npz", allow_pickle=True)
    given = json.loads(str(case["params_deeplab_like"]))
    q = on_the_device(
        shim,
        case["unary"],
        case["image_rgb"],
        sxy_gaussian=given["sxy_g"],
        compat_gaussian=given["compat_g"],
        sxy_bilateral=given["sxy_b"],
        srgb_bilateral=given["srgb_b"],
        compat_bilateral=given["compat_b"],
    )
    expected = case["Q_deeplab_like"].reshape(q.shape)
    assert np.abs(q - expected).mean() <= CRF_MEAN_ABSOLUTE
    assert (q.argmax(axis=0) == expected.argmax(axis=0)).mean() >= CRF_ARGMAX_AGREEMENT


BOXES = [Roi(4, 4, 20, 18), None, Roi(30, 20, 50, 37), Roi(14, 10, 24, 22)]


@pytest.mark.parametrize("whole_frame", [False, True])
@pytest.mark.parametrize("exact_pixels", [0, 450, 10**6])
def test_refine_equals_the_cpu(
    shim: Shim, monkeypatch: pytest.MonkeyPatch, exact_pixels: int, *, whole_frame: bool
) -> None:
    scene = make_scene((37, 53), 4)
    prob = np.zeros_like(scene.prob)
    for k, box in enumerate(BOXES):
        if box is not None:
            window = (k, slice(box.y0, box.y1), slice(box.x0, box.x1))
            prob[window] = scene.prob[window]
    merged = prob / (np.prod(1 - prob, axis=0) + prob.sum(axis=0))
    options = ResolvedCrf(margin_px=2, whole_frame=whole_frame, iterations=3)
    monkeypatch.setattr(crf_kernels, "EXACT_PIXELS", exact_pixels)
    expected, expected_boxes = refine(merged, scene.rgb, boxes=BOXES, options=options)
    device = ShimDevice(shim, seed=1)
    crf = CudaCrf(device, objects=4, size_hw=(37, 53), options=options, exact_pixels=exact_pixels)
    refined = device.upload(empty(merged.shape))
    refined_boxes = device.upload(empty((4, 4), np.int32))
    given = device.upload(merged)
    for _ in range(2):  # the second run starts from the buffers of the first
        crf.refine(
            given,
            device.upload(scene.rgb),
            device.upload(box_rows(BOXES)),
            refined=refined,
            refined_boxes=refined_boxes,
        )
        assert largest_difference(device.download(refined), expected) <= KERNEL_CRF
        assert boxes_from_rows(device.download(refined_boxes)) == expected_boxes
    assert np.array_equal(device.download(given), merged)
    # Control: the CRF changes the result.
    assert largest_difference(expected, merged) > 0.1


def test_without_an_object_nothing_changes(shim: Shim) -> None:
    scene = make_scene((9, 11), 2)
    device = ShimDevice(shim)
    crf = CudaCrf(device, objects=2, size_hw=(9, 11), options=ResolvedCrf())
    merged, refined = device.upload(scene.prob), device.upload(empty(scene.prob.shape))
    boxes = device.zeros((2, 4), np.int32)
    crf.refine(merged, device.upload(scene.rgb), boxes, refined=refined, refined_boxes=boxes)
    assert np.array_equal(device.download(refined), scene.prob)


@pytest.mark.parametrize("left_out", ["compat_gaussian", "compat_bilateral", "both"])
def test_kernels_can_be_left_out(shim: Shim, left_out: str) -> None:
    scene = make_scene((12, 14))
    unary = -np.log(scene.prob + np.float32(0.01))
    chosen = {"compat_gaussian": 3.0, "compat_bilateral": 4.0}
    for name in chosen:
        if left_out in (name, "both"):
            chosen[name] = 0.0
    q = on_the_device(shim, unary, scene.rgb, **chosen)
    parameters = {"sxy_gaussian": 1.0, "sxy_bilateral": 15.0, "srgb_bilateral": 7.0}
    expected = dense_crf(unary, scene.rgb, iterations=5, **chosen, **parameters)
    assert largest_difference(q, expected) <= KERNEL_CRF
