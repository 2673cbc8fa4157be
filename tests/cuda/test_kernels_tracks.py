from __future__ import annotations

import numpy as np
import pytest

from mpn.runtime.device.images import boxes_from_rows
from mpn.runtime.host.merge import labels_from_merged, merge
from mpn.runtime.tracks import measure_objects, tracks_from_measured
from mpn.types import Roi
from tests.emulation.cuda_shim.compare import kernel_and_reference
from tests.emulation.cuda_shim.scene import EVEN_HW, ODD_HW
from tests.emulation.cuda_shim.shim import Shim
from tests.tolerances import KERNEL_CONFIDENCE

IDS = np.array([3, 7, 254], np.uint8)


@pytest.mark.parametrize("size_hw", [ODD_HW, EVEN_HW])
def test_tracks_are_the_cpus(shim: Shim, size_hw: tuple[int, int]) -> None:
    prob = np.random.default_rng(0).random((3, *size_hw), dtype=np.float32)
    prob[1] = 0
    prob[2, :, 20:] = 0
    merged = merge(prob)
    labels = labels_from_merged(merged, IDS.tolist())
    kernel, reference = kernel_and_reference(
        shim,
        "track_stats",
        labels=labels,
        prob=merged,
        object_ids=IDS,
        objects=3,
        height=size_hw[0],
        width=size_hw[1],
        boxes=np.array([[size_hw[1], size_hw[0], 0, 0]] * 3, np.int32),
        areas=np.zeros(3, np.int32),
        prob_sums=np.zeros(3, np.uint64),
    )
    for name in ("boxes", "areas", "prob_sums"):
        assert np.array_equal(kernel[name], reference[name])
    frame = Roi(0, 0, size_hw[1], size_hw[0])
    measured = measure_objects(labels, merged, IDS.tolist(), [frame] * 3)
    expected = tracks_from_measured(measured, IDS.tolist(), ["propagation"] * 3)
    found = boxes_from_rows(kernel["boxes"])
    for k, track in enumerate(expected):
        assert kernel["areas"][k] == track.area_px
        assert (None if found[k] is None else found[k].box_xyxy) == track.box_xyxy
        confidence = int(kernel["prob_sums"][k]) / 2**24 / max(track.area_px, 1)
        assert abs(confidence - track.confidence) <= KERNEL_CONFIDENCE
    assert [track.area_px > 0 for track in expected] == [True, False, True]
    # Control: each object has its own confidence.
    assert abs(expected[0].confidence - expected[2].confidence) > 1000 * KERNEL_CONFIDENCE
