from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpn.runtime.host.preprocess import flow_input, osvos_input, resize_rgb
from tests.emulation.cuda_shim.compare import (
    kernel_and_reference,
    kernel_outputs,
    largest_difference,
)
from tests.emulation.cuda_shim.scene import empty
from tests.emulation.cuda_shim.shim import Shim

BGR_MEAN = (104.00699, 116.66877, 122.67892)
SIZES = [
    ((40, 50), (40, 50)),  # the same
    ((40, 50), (64, 64)),  # grows: fixed point
    ((33, 47), (64, 64)),
    ((40, 50), (30, 70)),  # one side grows
    ((100, 80), (128, 65)),
    ((40, 50), (20, 25)),  # halves: OpenCV rounds half up
    ((60, 90), (30, 30)),  # whole multiples
    ((90, 60), (30, 20)),
    ((40, 52), (30, 33)),  # shrinks
    ((41, 50), (41, 49)),
    ((48, 48), (47, 48)),
    ((7, 5), (1, 1)),
    ((1, 1), (3, 4)),
]


def frame(size_hw: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)


def pack_arguments(
    rgb: np.ndarray, to_hw: tuple[int, int], dtype: str = "float32", **changes: Any
) -> dict[str, Any]:
    plain = {f"gain{c}": 1.0 for c in range(3)} | {f"offset{c}": 0.0 for c in range(3)}
    return {
        "rgb": rgb,
        "height": rgb.shape[0],
        "width": rgb.shape[1],
        "to_height": to_hw[0],
        "to_width": to_hw[1],
        "is_bgr": 0,
        **plain,
        **changes,
        "planes": empty((3, *to_hw), dtype),
    }


@pytest.mark.parametrize(("size_hw", "to_hw"), SIZES)
def test_a_flow_networks_frame_is_the_cpus_bit_for_bit(
    shim: Shim, size_hw: tuple[int, int], to_hw: tuple[int, int]
) -> None:
    rgb = frame(size_hw)
    kernel, reference = kernel_and_reference(shim, "pack_rgb_f32", **pack_arguments(rgb, to_hw))
    assert np.array_equal(kernel["planes"], flow_input(rgb, to_hw)[0])
    assert np.array_equal(kernel["planes"], reference["planes"])


@pytest.mark.parametrize(("size_hw", "to_hw"), SIZES)
def test_a_frame_is_resized_as_on_the_cpu_bit_for_bit(
    shim: Shim, size_hw: tuple[int, int], to_hw: tuple[int, int]
) -> None:
    rgb = frame(size_hw, 1)
    kernel, reference = kernel_and_reference(
        shim,
        "resize_rgb",
        rgb=rgb,
        height=size_hw[0],
        width=size_hw[1],
        to_height=to_hw[0],
        to_width=to_hw[1],
        resized=np.full((*to_hw, 3), 7, np.uint8),
    )
    assert np.array_equal(kernel["resized"], resize_rgb(rgb, to_hw))
    assert np.array_equal(kernel["resized"], reference["resized"])


@pytest.mark.parametrize(("size_hw", "to_hw"), [((40, 50), (40, 50)), ((40, 50), (64, 64))])
def test_osvoss_frame_is_the_cpus_bit_for_bit(
    shim: Shim, size_hw: tuple[int, int], to_hw: tuple[int, int]
) -> None:
    rgb = frame(size_hw)
    shifts = {f"offset{c}": -mean for c, mean in enumerate(BGR_MEAN)}
    arguments = pack_arguments(rgb, to_hw, is_bgr=1, **shifts)
    kernel, reference = kernel_and_reference(shim, "pack_rgb_f32", **arguments)
    expected = osvos_input(rgb, to_hw, channel_order="bgr", mean=BGR_MEAN)[0]
    assert np.array_equal(kernel["planes"], expected)
    assert np.array_equal(kernel["planes"], reference["planes"])
    # Control: in the other order it is another picture.
    other = kernel_outputs(shim, "pack_rgb_f32", **{**arguments, "is_bgr": 0})
    assert largest_difference(other["planes"], expected) > 1


def test_half_precision_is_float32_rounded(shim: Shim) -> None:
    rgb = frame((40, 50))
    change = {"gain0": 1 / 58.395, "offset0": -2.1179}
    single = kernel_outputs(shim, "pack_rgb_f32", **pack_arguments(rgb, (64, 64), **change))
    kernel, reference = kernel_and_reference(
        shim, "pack_rgb_f16", **pack_arguments(rgb, (64, 64), "float16", **change)
    )
    assert np.array_equal(kernel["planes"], single["planes"].astype(np.float16))
    assert np.array_equal(kernel["planes"], reference["planes"])


@pytest.mark.parametrize("is_bgr", [0, 1])
@pytest.mark.parametrize("size_hw", [(2, 2), (30, 50), (1, 1), (7, 9)])
def test_packing_without_a_resize_by_whole_words(
    shim: Shim, size_hw: tuple[int, int], is_bgr: int
) -> None:
    rgb = frame(size_hw)
    change = {"is_bgr": is_bgr, "gain0": 0.5, "gain1": 2.0, "gain2": 3.0, "offset1": -7.0}
    for suffix, dtype in (("f32", "float32"), ("f16", "float16")):
        arguments = pack_arguments(rgb, size_hw, dtype, **change)
        expected = kernel_outputs(shim, f"pack_rgb_{suffix}", **arguments)["planes"]
        words = {
            name: value
            for name, value in arguments.items()
            if not name.endswith(("height", "width"))
        }
        kernel, reference = kernel_and_reference(
            shim, f"pack_rgb_same_{suffix}", **words, pixels=size_hw[0] * size_hw[1]
        )
        assert np.array_equal(kernel["planes"], expected)
        assert np.array_equal(kernel["planes"], reference["planes"])


def test_one_level_of_one_pixel_is_noticed(shim: Shim) -> None:
    """Control of the comparisons bit for bit."""
    rgb = frame((40, 50))
    expected = flow_input(rgb, (64, 64))[0]
    rgb[20, 20, 1] ^= 16
    kernel = kernel_outputs(shim, "pack_rgb_f32", **pack_arguments(rgb, (64, 64)))
    assert not np.array_equal(kernel["planes"], expected)
