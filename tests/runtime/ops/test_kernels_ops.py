"""CudaOps through the shim against mpn.runtime.host.ops, function by function."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from mpn.cuda.array import DeviceArray, checked_arguments
from mpn.cuda.registry import kernel_signatures
from mpn.errors import InputError
from mpn.runtime.device.images import CudaOps, box_rows, boxes_from_rows, normalisation
from mpn.runtime.host import ops as base
from mpn.runtime.host import ops as cpu
from mpn.types import Roi
from tests.emulation.cuda_shim.compare import largest_difference
from tests.emulation.cuda_shim.device import ShimDevice
from tests.emulation.cuda_shim.scene import EVEN_HW, ODD_HW, make_scene
from tests.emulation.cuda_shim.shim import Shim
from tests.runtime.host.test_ops import MEAN, STD
from tests.tolerances import KERNEL_RESIZE, NORMALISED_RGB, WARP_VERSUS_FLOAT64

BOXES = [Roi(5, 4, 47, 34), None, Roi(0, 0, 9, 30)]


@pytest.fixture
def device(shim: Shim) -> ShimDevice:
    return ShimDevice(shim, seed=1)


def test_the_methods_have_the_parameters_of_the_protocol() -> None:
    for name in ("warp_bilinear", "flow_confidence", "crop_resize_pack", "paste"):
        expected = inspect.signature(getattr(base.Ops, name)).parameters
        found = inspect.signature(getattr(CudaOps, name)).parameters
        assert [(p.name, p.kind, p.default) for p in found.values()] == [
            (p.name, p.kind, p.default) for p in expected.values()
        ]


@pytest.mark.parametrize("size_hw", [ODD_HW, EVEN_HW])
@pytest.mark.parametrize("boxes", [None, BOXES])
def test_warp(device: ShimDevice, size_hw: tuple[int, int], boxes: list[Roi | None] | None) -> None:
    scene = make_scene(size_hw)
    given = device.upload(scene.prob), device.upload(scene.there)
    warped = device.download(CudaOps(device).warp_bilinear(*given, boxes=boxes))
    expected = cpu.warp_bilinear(scene.prob, scene.there, boxes=boxes)
    assert largest_difference(warped, expected) <= WARP_VERSUS_FLOAT64


def test_flow_confidence(device: ShimDevice) -> None:
    scene, box = make_scene(ODD_HW), Roi(2, 3, 50, 30)
    given = device.upload(scene.there), device.upload(scene.back)
    sigmas = {"sigma_px": 3.0, "sigma_frac": 0.5}
    confidence = device.download(CudaOps(device).flow_confidence(*given, box=box, **sigmas))
    expected = cpu.flow_confidence(scene.there, scene.back, box=box, **sigmas)
    assert largest_difference(confidence, expected) <= WARP_VERSUS_FLOAT64


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("rois", [BOXES, [None] * 3])
def test_crop(device: ShimDevice, rois: list[Roi | None], dtype: str) -> None:
    scene = make_scene(ODD_HW)
    ops = CudaOps(device, dtype=dtype)  # type: ignore[arg-type]
    given = device.upload(scene.rgb), device.upload(scene.prob)
    packed = device.download(ops.crop_resize_pack(*given, rois, size=33, mean=MEAN, std=STD))
    expected = cpu.crop_resize_pack(scene.rgb, scene.prob, rois, size=33, mean=MEAN, std=STD)
    assert packed.dtype == dtype
    if dtype == "float32":
        assert largest_difference(packed, expected) <= NORMALISED_RGB
    else:
        assert largest_difference(packed, expected.astype(np.float16)) <= 2**-9


@pytest.mark.parametrize("rois", [BOXES, [None] * 3])
def test_paste(device: ShimDevice, rois: list[Roi | None]) -> None:
    count = sum(roi is not None for roi in rois)
    crops = np.random.default_rng(0).random((count, 1, 33, 33), dtype=np.float32)
    prob = device.download(CudaOps(device).paste(device.upload(crops), rois, ODD_HW))
    assert largest_difference(prob, cpu.paste(crops, rois, ODD_HW)) <= KERNEL_RESIZE


def array(*shape: int, dtype: str = "float32") -> DeviceArray:
    return DeviceArray(256, shape, dtype, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ops: ops.warp_bilinear(array(3, 4, 5), array(2, 4, 6)), r"\(3, 4, 5\) and \(2, 4"),
        (lambda ops: ops.warp_bilinear(array(3, 4, 5), array(2, 4, 5), boxes=[None]), "3 boxes"),
        (
            lambda ops: ops.flow_confidence(
                array(2, 4, 5), array(2, 4, 6), box=Roi(0, 0, 1, 1), sigma_px=1, sigma_frac=1
            ),
            "both flows",
        ),
        (
            lambda ops: ops.crop_resize_pack(
                array(4, 5, 3), array(1, 4, 5), [None], size=9, mean=MEAN, std=STD
            ),
            r"\(H, W, 3\) uint8 RGB, got \(4, 5, 3\) float32",
        ),
        (
            lambda ops: ops.crop_resize_pack(
                array(4, 5, 3, dtype="uint8"), array(1, 5, 5), [None], size=9, mean=MEAN, std=STD
            ),
            r"frame \(4, 5\), got \(1, 5, 5\)",
        ),
        (
            lambda ops: ops.crop_resize_pack(
                array(4, 5, 3, dtype="uint8"), array(1, 4, 5), [], size=9, mean=MEAN, std=STD
            ),
            "1 rois, got 0",
        ),
        (lambda ops: ops.paste(array(1, 9, 9), [None], (4, 5)), r"\(N, 1, S, S\)"),
        (lambda ops: ops.paste(array(1, 1, 9, 9), [None], (4, 5)), "expected 1 rois"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(device: ShimDevice, call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(CudaOps(device))
    assert not device.launched


def test_boxes_go_there_and_back() -> None:
    assert boxes_from_rows(box_rows(BOXES)) == tuple(BOXES)
    assert box_rows([]).shape == (0, 4)


def test_normalisation_is_that_of_the_cpu() -> None:
    given = normalisation(MEAN, STD)
    value = 200 * given["gain1"] + given["offset1"]
    assert value == pytest.approx((200 / 255 - MEAN[1]) / STD[1], abs=NORMALISED_RGB)


CHECKED = kernel_signatures()["clear_lost"]
RIGHT = {"rois": array(2, 4, dtype="int32"), "objects": 2, "pixels": 20, "prob": array(2, 20)}


def test_arguments_become_addresses_and_numbers() -> None:
    assert checked_arguments(CHECKED, RIGHT) == {
        "rois": 256,
        "objects": 2,
        "pixels": 20,
        "prob": 256,
    }
    assert checked_arguments(CHECKED, {**RIGHT, "rois": None})["rois"] == 0
    assert list(checked_arguments(CHECKED, dict(reversed(RIGHT.items())))) == list(RIGHT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rois": array(2, 4)}, "takes rois as int32 array, got an array of float32"),
        ({"objects": array(2, dtype="int32")}, "takes objects as int32, got an array"),
        ({"objects": 1.5}, "takes objects as int32, got 1.5"),
        ({"objects": None}, "takes objects as int32, got None"),
        ({"rois": 3}, "takes rois as an array of int32 or None, got 3"),
        ({"more": 3}, "takes rois, objects, pixels, prob; got"),
    ],
)
def test_arguments_of_another_kind_are_refused(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked_arguments(CHECKED, {**RIGHT, **change})


def test_parts_of_an_array_share_its_memory(device: ShimDevice) -> None:
    whole = device.upload(np.arange(24, dtype=np.float32).reshape(4, 6))
    part = whole.part(1, 3)
    assert device.download(part).tolist() == np.arange(6, 18).reshape(2, 6).tolist()
    assert device.download(part.reshape(3, 4))[2].tolist() == [14, 15, 16, 17]
    assert (part.size, part.nbytes, part.address - whole.address) == (12, 48, 24)
    with pytest.raises(InputError, match="cannot become"):
        part.reshape(5, 3)
    with pytest.raises(InputError, match=r"3\.\.5"):
        whole.part(3, 5)


def test_other_libraries_are_told_where_an_array_is() -> None:
    shown = DeviceArray(4096, (2, 3), np.float16, None, stream_address=7).__cuda_array_interface__
    assert shown == {
        "shape": (2, 3),
        "typestr": "<f2",
        "data": (4096, False),
        "strides": None,
        "version": 3,
        "stream": 7,
    }
