from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from mpn.runtime.device.images import blur_taps, boxes_from_rows, cube_root_table, gamma_table
from mpn.runtime.host import ops as cpu
from mpn.runtime.host import reliability as colour
from mpn.runtime.host.reliability import FLOW_CHECK_FRAC, suppress_unreliable
from tests.emulation.cuda_shim.compare import (
    kernel_and_reference,
    kernel_outputs,
    largest_difference,
)
from tests.emulation.cuda_shim.device import ShimDevice
from tests.emulation.cuda_shim.scene import EVEN_HW, ODD_HW, Scene, empty, make_scene
from tests.emulation.cuda_shim.shim import Shim
from tests.reference.kernels import kernel_references
from tests.tolerances import KERNEL_VERSUS_REFERENCE, WARP_VERSUS_FLOAT64

TABLES = {"gamma": gamma_table(), "cube_root": cube_root_table()}
CHECK_PX, WEIGHT = 3.0, 0.7


def all_colours(step: int) -> np.ndarray:
    levels = np.arange(0, 256, step, dtype=np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)


def bins_by_opencv(rgb: np.ndarray) -> np.ndarray:
    """Bin colours with cv2.cvtColor: L in 8, a and b in 32 bins."""
    lab = cv2.cvtColor(rgb.reshape(1, -1, 3), cv2.COLOR_RGB2LAB)[0].astype(int)
    a, b = (np.clip(lab[:, i] - 64, 0, 127) // 4 for i in (1, 2))
    return (lab[:, 0] // 32 * 32 + a) * 32 + b


def reference_bins(rgb: np.ndarray) -> np.ndarray:
    bins = empty((len(rgb),), np.uint16)
    kernel_references()["colour_bins"](rgb=rgb, pixels=len(rgb), **TABLES, bins=bins)
    return bins


def test_the_reference_puts_every_colour_into_opencvs_bin() -> None:
    """All 2^24 colours."""
    greens_and_blues = all_colours(1).reshape(256, -1, 3)
    for reds in greens_and_blues.reshape(32, -1, 3):
        assert np.array_equal(reference_bins(reds), bins_by_opencv(reds))


def test_one_unit_in_the_tables_is_noticed() -> None:
    """Control of the test above: an exact cube root differs in three entries by one."""
    t = np.arange(3072) / 2040
    exact = np.rint(2**15 * np.where(t < 0.008856, t * 7.787 + 16 / 116, np.cbrt(t)))
    assert (exact != TABLES["cube_root"]).sum() == 3
    colours = all_colours(3)
    shifted = dict(TABLES, cube_root=TABLES["cube_root"] + np.uint16(20))
    bins = empty((len(colours),), np.uint16)
    kernel_references()["colour_bins"](rgb=colours, pixels=len(colours), **shifted, bins=bins)
    assert not np.array_equal(bins, bins_by_opencv(colours))


@pytest.mark.parametrize("count", [1, 4, 1023, 5003])
def test_the_kernel_puts_colours_into_the_same_bins(shim: Shim, count: int) -> None:
    colours = all_colours(9)[:: 24389 // count][:count]
    assert len(colours) == count
    arguments = {"rgb": colours, "pixels": count, **TABLES, "bins": empty((count,), np.uint16)}
    kernel, reference = kernel_and_reference(shim, "colour_bins", **arguments)
    assert np.array_equal(kernel["bins"], reference["bins"])
    assert np.array_equal(kernel["bins"], bins_by_opencv(colours))


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_colours_at_any_address(shim: Shim, offset: int) -> None:
    """A frame inside another array may start between two words."""
    device = ShimDevice(shim)
    colours = all_colours(15)[:1021]
    memory = device.upload(np.concatenate([np.zeros(offset, np.uint8), colours.ravel()]))
    bins = device.empty((1021,), np.uint16)
    device.launch(
        "colour_bins",
        rgb=memory.part(offset, memory.size),
        pixels=1021,
        gamma=device.upload(TABLES["gamma"]),
        cube_root=device.upload(TABLES["cube_root"]),
        bins=bins,
    )
    assert np.array_equal(device.download(bins), bins_by_opencv(colours))


def test_the_blur_is_opencvs() -> None:
    rng = np.random.default_rng(0)
    plane = rng.normal(0, 1, (30, 40)).astype(np.float32)
    blurred = cv2.sepFilter2D(plane, cv2.CV_32F, blur_taps(), blur_taps())
    assert (
        largest_difference(blurred, cv2.GaussianBlur(plane, (0, 0), 2.0)) <= KERNEL_VERSUS_REFERENCE
    )


def scene_with_colours(size_hw: tuple[int, int]) -> tuple[Scene, np.ndarray]:
    scene = make_scene(size_hw)
    masks = [scene.rgb[..., c] > 128 for c in range(3)]
    return scene, np.stack([colour.colour_table(scene.rgb, mask) for mask in masks])


def weigh_arguments(scene: Scene, tables: np.ndarray, reach: np.ndarray) -> dict[str, Any]:
    height, width = scene.size_hw
    return {
        "prob": scene.prob,
        "flow_to_prev_px": scene.there,
        "flow_from_prev_px": scene.back,
        "reach": reach,
        "bins": reference_bins(scene.rgb.reshape(-1, 3)).reshape(scene.size_hw),
        "tables": tables,
        "blur": blur_taps(),
        "objects": 3,
        **scene.sizes,
        "sigma_px": CHECK_PX,
        "sigma_frac": FLOW_CHECK_FRAC,
        "weight": WEIGHT,
        "threshold": 0.5,
        "warped": empty(scene.prob.shape),
        "boxes": np.array([[width, height, 0, 0]] * 3, np.int32),
        "areas": np.zeros(3, np.int32),
    }


@pytest.mark.parametrize(
    ("size_hw", "reach"),
    [
        (ODD_HW, [[5, 4, 47, 34], [0, 0, 0, 0], [0, 0, 53, 37]]),
        (EVEN_HW, [[31, 3, 33, 40], [10, 31, 45, 32], [51, 39, 52, 40]]),
        ((70, 41), [[0, 33, 41, 36], [2, 0, 39, 70], [7, 8, 8, 69]]),
    ],
)
def test_evidence_equals_its_reference_and_the_cpu(
    shim: Shim, size_hw: tuple[int, int], reach: list[list[int]]
) -> None:
    scene, tables = scene_with_colours(size_hw)
    rows = np.array(reach, np.int32)
    arguments = weigh_arguments(scene, tables, rows)
    kernel, reference = kernel_and_reference(shim, "warp_colour_box", **arguments)
    assert largest_difference(kernel["warped"], reference["warped"]) <= KERNEL_VERSUS_REFERENCE
    assert np.array_equal(kernel["boxes"], reference["boxes"])
    assert np.array_equal(kernel["areas"], reference["areas"])
    boxes = boxes_from_rows(rows)
    expected = cpu.warp_bilinear(scene.prob, scene.there, boxes=boxes)
    for plane, table, box in zip(expected, tables, boxes, strict=True):
        if box is not None:
            suppress_unreliable(
                plane,
                box,
                flow_to_prev_px=scene.there,
                flow_from_prev_px=scene.back,
                flow_check_px=CHECK_PX,
                rgb=scene.rgb,
                colour_table=table,
                colour_weight=WEIGHT,
            )
    assert largest_difference(kernel["warped"], expected) <= WARP_VERSUS_FLOAT64
    assert np.array_equal(kernel["areas"], (expected > 0.5).sum(axis=(1, 2)))


@pytest.mark.parametrize(
    "change", [{"weight": 0.0}, {"flow_from_prev_px": None}, {"blur": np.eye(17, dtype="f4")[8]}]
)
def test_each_kind_of_evidence_matters(shim: Shim, change: dict[str, Any]) -> None:
    """Control of the test above."""
    scene, tables = scene_with_colours(ODD_HW)
    arguments = weigh_arguments(scene, tables, np.array([[0, 0, 53, 37]] * 3, np.int32))
    kernel = kernel_outputs(shim, "warp_colour_box", **arguments)
    other = kernel_outputs(shim, "warp_colour_box", **{**arguments, **change})
    assert largest_difference(kernel["warped"], other["warped"]) > 0.05


def test_a_probability_that_is_no_number_becomes_nothing(shim: Shim) -> None:
    scene, tables = scene_with_colours(ODD_HW)
    scene.prob[:, 10:14] = np.nan
    arguments = weigh_arguments(scene, tables, np.array([[0, 0, 53, 37]] * 3, np.int32))
    arguments |= {"flow_to_prev_px": np.zeros_like(scene.there), "flow_from_prev_px": None}
    kernel, reference = kernel_and_reference(shim, "warp_colour_box", **arguments)
    assert largest_difference(kernel["warped"], reference["warped"]) <= KERNEL_VERSUS_REFERENCE
    assert not kernel["warped"][:, 10:14].any()
    assert kernel["warped"][:, 14:].any()
