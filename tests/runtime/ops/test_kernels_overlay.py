from __future__ import annotations

import numpy as np
import pytest

from mpn.masks import DAVIS_PALETTE
from mpn.runtime.media import overlay
from tests.emulation.cuda_shim.compare import kernel_and_twin, kernel_outputs
from tests.emulation.cuda_shim.scene import empty
from tests.emulation.cuda_shim.shim import Shim

SIZE_HW = (37, 53)
PALETTE = overlay._OVERLAY_PALETTE


def frame_and_labels() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)
    labels = np.zeros(SIZE_HW, np.uint8)
    labels[:20, 5:30] = 3
    labels[10:33, 25:53] = 254
    labels[36, 0] = 1
    labels[15, 40] = 2
    return rgb, labels


@pytest.mark.parametrize("opacity", [0.0, 0.25, 0.3, 0.5, 0.55, 1.0])
def test_the_overlay_is_the_cpus_bit_for_bit(shim: Shim, opacity: float) -> None:
    rgb, labels = frame_and_labels()
    arguments = {
        "rgb": rgb,
        "labels": labels,
        "palette": PALETTE,
        "height": SIZE_HW[0],
        "width": SIZE_HW[1],
        "opacity": opacity,
        "rest": 1 - opacity,
        "drawn": empty((*SIZE_HW, 3), np.uint8),
    }
    kernel, twin = kernel_and_twin(shim, "draw_overlay", **arguments)
    assert np.array_equal(kernel["drawn"], overlay.draw_overlay(rgb, labels, opacity=opacity))
    assert np.array_equal(kernel["drawn"], twin["drawn"])
    # Control: another palette is another picture.
    other = kernel_outputs(shim, "draw_overlay", **{**arguments, "palette": DAVIS_PALETTE})
    assert not np.array_equal(other["drawn"], kernel["drawn"])


def test_without_objects_the_frame_stays_as_it_is(shim: Shim) -> None:
    rgb, _ = frame_and_labels()
    drawn = kernel_outputs(
        shim,
        "draw_overlay",
        rgb=rgb,
        labels=np.zeros(SIZE_HW, np.uint8),
        palette=PALETTE,
        height=SIZE_HW[0],
        width=SIZE_HW[1],
        opacity=0.5,
        rest=0.5,
        drawn=empty((*SIZE_HW, 3), np.uint8),
    )["drawn"]
    assert np.array_equal(drawn, rgb)
