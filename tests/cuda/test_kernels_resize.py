from __future__ import annotations

import cv2
import numpy as np
import pytest

from mpn.runtime.host.preprocess import resize_prob
from tests.cuda.test_kernels_pack import SIZES
from tests.emulation.cuda_shim.compare import (
    kernel_and_reference,
    kernel_outputs,
    largest_difference,
)
from tests.emulation.cuda_shim.scene import empty
from tests.emulation.cuda_shim.shim import Shim
from tests.tolerances import FLOW_RESIZE_PX, KERNEL_RESIZE, KERNEL_VERSUS_REFERENCE


def planes(size_hw: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).random((2, *size_hw), dtype=np.float32)


@pytest.mark.parametrize(("size_hw", "to_hw"), SIZES)
def test_planes_are_resized_as_on_the_cpu(
    shim: Shim, size_hw: tuple[int, int], to_hw: tuple[int, int]
) -> None:
    prob = planes(size_hw)
    kernel, reference = kernel_and_reference(
        shim,
        "resize_planes",
        planes=prob,
        count=2,
        height=size_hw[0],
        width=size_hw[1],
        to_height=to_hw[0],
        to_width=to_hw[1],
        resized=empty((2, *to_hw)),
    )
    assert largest_difference(kernel["resized"], reference["resized"]) <= KERNEL_VERSUS_REFERENCE
    assert largest_difference(kernel["resized"], resize_prob(prob, to_hw)) <= KERNEL_RESIZE


@pytest.mark.parametrize(("size_hw", "to_hw"), [((64, 64), (40, 50)), ((40, 50), (64, 70))])
def test_a_flow_is_resized_with_its_pixels(
    shim: Shim, size_hw: tuple[int, int], to_hw: tuple[int, int]
) -> None:
    flow = planes(size_hw) * 20 - 10
    gain_y, gain_x = to_hw[0] / size_hw[0], to_hw[1] / size_hw[1]
    arguments = {
        "flow_px": flow,
        "height": size_hw[0],
        "width": size_hw[1],
        "to_height": to_hw[0],
        "to_width": to_hw[1],
        "gain_x": gain_x,
        "gain_y": gain_y,
        "resized_px": empty((2, *to_hw)),
    }
    kernel, reference = kernel_and_reference(shim, "resize_flow", **arguments)
    assert largest_difference(kernel["resized_px"], reference["resized_px"]) <= FLOW_RESIZE_PX
    expected = np.stack(
        [
            cv2.resize(plane, to_hw[::-1], interpolation=cv2.INTER_LINEAR) * np.float32(gain)
            for plane, gain in zip(flow, (gain_x, gain_y), strict=True)
        ]
    )
    assert largest_difference(kernel["resized_px"], expected) <= FLOW_RESIZE_PX
    # Control: the two gains are not exchanged.
    other = kernel_outputs(shim, "resize_flow", **{**arguments, "gain_x": gain_y})
    assert largest_difference(other["resized_px"], expected) > 0.1
