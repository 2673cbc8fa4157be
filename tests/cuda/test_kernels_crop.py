from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpn.runtime.device.images import box_rows, boxes_from_rows, normalisation
from mpn.runtime.host import ops as cpu
from mpn.types import Roi
from tests.emulation.cuda_shim.compare import (
    kernel_and_reference,
    kernel_outputs,
    largest_difference,
)
from tests.emulation.cuda_shim.scene import ODD_HW, empty, make_scene
from tests.emulation.cuda_shim.shim import Shim
from tests.runtime.host.test_ops import MEAN, STD
from tests.tolerances import KERNEL_HALF_RELATIVE, KERNEL_NORMALISED, NORMALISED_RGB

SCENE = make_scene(ODD_HW)
ROIS = box_rows([Roi(3, 2, 41, 33), None, Roi(50, 0, 53, 1)])


def crop_arguments(size: int, dtype: str = "float32", **changes: Any) -> dict[str, Any]:
    given = {
        "rgb": SCENE.rgb,
        "prob": SCENE.prob,
        "rois": ROIS,
        "objects": None,
        "slots": 3,
        "channels": 4,
        **SCENE.sizes,
        "size": size,
        **normalisation(MEAN, STD),
    }
    given |= changes
    shape = (given["slots"], given["channels"], size, size)
    return {**given, "packed": empty(shape, dtype)}


def cpu_crops(rois: np.ndarray, size: int, prob: np.ndarray) -> np.ndarray:
    return cpu.crop_resize_pack(
        SCENE.rgb, prob, boxes_from_rows(rois), size=size, mean=MEAN, std=STD
    )


@pytest.mark.parametrize("size", [65, 33, 8, 1])
def test_crops_equal_the_reference_and_the_cpu(shim: Shim, size: int) -> None:
    kernel, reference = kernel_and_reference(shim, "crop_pack_f32", **crop_arguments(size))
    assert largest_difference(kernel["packed"], reference["packed"]) <= KERNEL_NORMALISED
    expected = cpu_crops(ROIS, size, SCENE.prob)
    assert largest_difference(kernel["packed"][[0, 2]], expected) <= NORMALISED_RGB
    assert not kernel["packed"][1].any()


@pytest.mark.parametrize(
    "change",
    [
        {"rois": box_rows([Roi(3, 2, 41, 34), None, Roi(49, 0, 53, 1)])},
        {"gain1": 1 / 255},
        {"offset2": 0.0},
        {"prob": np.ascontiguousarray(SCENE.prob[:, ::-1])},
    ],
)
def test_everything_that_goes_in_matters(shim: Shim, change: dict[str, Any]) -> None:
    """Control of the test above."""
    kernel = kernel_outputs(shim, "crop_pack_f32", **crop_arguments(33, **change))
    expected = cpu_crops(ROIS, 33, SCENE.prob)
    assert largest_difference(kernel["packed"][[0, 2]], expected) > 100 * NORMALISED_RGB


def test_slots_name_their_objects(shim: Shim) -> None:
    chosen = np.array([2, 0], np.int32)
    arguments = crop_arguments(33, objects=chosen, slots=2)
    kernel, reference = kernel_and_reference(shim, "crop_pack_f32", **arguments)
    assert largest_difference(kernel["packed"], reference["packed"]) <= KERNEL_NORMALISED
    every = kernel_outputs(shim, "crop_pack_f32", **crop_arguments(33))["packed"]
    assert np.array_equal(kernel["packed"], every[chosen])


def test_fifth_channel_is_left_alone(shim: Shim) -> None:
    arguments = crop_arguments(33, channels=5)
    kernel, reference = kernel_and_reference(shim, "crop_pack_f32", **arguments)
    four = kernel_outputs(shim, "crop_pack_f32", **crop_arguments(33))["packed"]
    for packed in (kernel["packed"], reference["packed"]):
        assert largest_difference(packed[:, :4], four) <= KERNEL_NORMALISED
        assert np.isnan(packed[:, 4]).all()


def test_half_precision_is_float32_rounded(shim: Shim) -> None:
    kernel, reference = kernel_and_reference(shim, "crop_pack_f16", **crop_arguments(33, "float16"))
    single = kernel_outputs(shim, "crop_pack_f32", **crop_arguments(33))["packed"]
    assert np.array_equal(kernel["packed"], single.astype(np.float16))
    error = largest_difference(kernel["packed"], reference["packed"])
    assert error <= KERNEL_HALF_RELATIVE * np.abs(single).max()
