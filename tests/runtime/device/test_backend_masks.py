"""Masks of a device over sixty frames with the shipped engines are the host's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpn.engines.open import default_engine_dir, open_engines
from mpn.runtime.options import PipelineOptions
from mpn.runtime.pipeline import Pipeline
from mpn.synthetic import render_clip
from mpn.types import StepResult
from tests.emulation.cuda_shim.shim import Shim
from tests.emulation.streams import ShimStream
from tests.runtime.device.helpers import device_pipeline, iou, run
from tests.tolerances import DEVICE_IOU_MEAN, DEVICE_IOU_WORST, DEVICE_SMALL_AREA_PX

SIZE_HW, FRAMES = (160, 214), 60
"""On smaller frames a pixel of a ROI changes 2 % of the mask: the crops are enlarged."""
OPTIONS = PipelineOptions()


def ious(shim: Shim, objects: int, frames: int) -> tuple[list[float], list[StepResult]]:
    """Compute the IoU of each object that is not tiny, in all frames but the first."""
    clip = list(render_clip(frames=frames, size_hw=SIZE_HW, objects=objects))
    pictures = [frame.rgb for frame in clip]

    def engines() -> Any:
        return open_engines(default_engine_dir(), backend="cpu", threads=1)

    with Pipeline(engines(), options=OPTIONS) as host:
        expected = run(host, pictures, clip[0].labels)
    device, _ = device_pipeline(shim, engines(), OPTIONS)
    with device:
        given = run(device, pictures, clip[0].labels, expects=True)
    found = [
        iou(mine.labels == k, theirs.labels == k)
        for mine, theirs in zip(given[1:], expected[1:], strict=True)
        for k in range(1, objects + 1)
        if np.count_nonzero(theirs.labels == k) >= DEVICE_SMALL_AREA_PX
    ]
    return found, given


@pytest.mark.parametrize("objects", [1, 3])
def test_masks_of_sixty_frames_are_the_hosts(shim: Shim, objects: int) -> None:
    found, given = ious(shim, objects, FRAMES)
    assert len(found) >= FRAMES - 1
    assert np.mean(found) >= DEVICE_IOU_MEAN
    assert np.min(found) >= DEVICE_IOU_WORST
    assert {track.object_id for track in given[-1].tracks} == set(range(1, objects + 1))


@pytest.mark.parametrize(
    ("kernel", "argument", "factor"),
    [("crop_pack_f32", "gain1", 0.5), ("crop_scores_f32", "scale_x", 0.5)],
)
def test_wrong_argument_of_one_kernel_is_detected(
    shim: Shim, monkeypatch: pytest.MonkeyPatch, kernel: str, argument: str, factor: float
) -> None:
    """Control."""
    launch = ShimStream.launch

    def wrong(self: ShimStream, name: str, **arguments: Any) -> None:
        if name == kernel:
            arguments[argument] = factor * arguments[argument]
        launch(self, name, **arguments)

    monkeypatch.setattr(ShimStream, "launch", wrong)
    found, _ = ious(shim, 1, 12)
    assert np.mean(found) < DEVICE_IOU_MEAN or np.min(found) < DEVICE_IOU_WORST
