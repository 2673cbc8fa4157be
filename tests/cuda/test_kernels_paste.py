from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpn.runtime.device.images import box_rows, boxes_from_rows
from mpn.runtime.host import ops as cpu
from mpn.runtime.host.merge import blend, labels_from_merged, merge
from mpn.runtime.host.osvos import blend_osvos
from mpn.runtime.options import ResolvedOptions
from mpn.types import Roi
from tests.emulation.cuda_shim.compare import (
    kernel_and_reference,
    kernel_outputs,
    largest_difference,
)
from tests.emulation.cuda_shim.scene import empty
from tests.emulation.cuda_shim.shim import Shim
from tests.tolerances import KERNEL_RESIZE, KERNEL_VERSUS_REFERENCE

SIZE, SIZE_HW = 33, (41, 150)
IDS = np.array([3, 7, 254], np.uint8)
ROIS = box_rows([Roi(5, 4, 60, 40), None, Roi(40, 0, 150, 41)])
RNG = np.random.default_rng(0)
CROPS = RNG.random((3, 1, SIZE, SIZE), dtype=np.float32)
CANDIDATES = RNG.random((3, *SIZE_HW), dtype=np.float32)
FOREGROUNDS = RNG.random((2, *SIZE_HW), dtype=np.float32)
FOREGROUND_OF = np.array([1, 0, 0], np.int32)


def pasted(crops: np.ndarray, rois: np.ndarray) -> np.ndarray:
    boxes = boxes_from_rows(rois)
    present = [k for k, box in enumerate(boxes) if box is not None]
    return cpu.paste(crops[present], boxes, SIZE_HW)


def merge_arguments(objects: int, **changes: Any) -> dict[str, Any]:
    given = {
        "crops": CROPS[:objects],
        "rois": ROIS[:objects],
        "candidates": CANDIDATES[:objects],
        "foregrounds": None,
        "foreground_of": FOREGROUND_OF[:objects],
        "object_ids": IDS[:objects],
        "objects": objects,
        "height": SIZE_HW[0],
        "width": SIZE_HW[1],
        "size": SIZE,
        "warped_weight": 0.0,
        "foreground_weight": 0.5,
    }
    outputs = {"prob": empty((objects, *SIZE_HW)), "labels": empty(SIZE_HW, np.uint8)}
    return {**given, **changes, **outputs}


def by_the_cpu(objects: int, warped_weight: float, foreground_of: np.ndarray | None) -> np.ndarray:
    """Compute the result with the stages of the host."""
    boxes = boxes_from_rows(ROIS[:objects])
    prob = pasted(CROPS[:objects], ROIS[:objects])
    if warped_weight:
        prob = blend(prob, CANDIDATES[:objects], boxes, other_weight=warped_weight)
    if foreground_of is not None:
        planes = [None if n < 0 else FOREGROUNDS[n] for n in foreground_of]
        prob = blend_osvos(prob, planes, boxes, osvos_weight=ResolvedOptions().osvos.blend_weight)
    return merge(prob, boxes)


@pytest.mark.parametrize("objects", [1, 2, 3])
@pytest.mark.parametrize("warped_weight", [0.0, 0.3])
@pytest.mark.parametrize("has_foreground", [False, True])
def test_paste_and_merge_equal_the_reference_and_the_cpu(
    shim: Shim, objects: int, warped_weight: float, *, has_foreground: bool
) -> None:
    foregrounds = FOREGROUNDS if has_foreground else None
    arguments = merge_arguments(objects, warped_weight=warped_weight, foregrounds=foregrounds)
    kernel, reference = kernel_and_reference(shim, "paste_merge_f32", **arguments)
    assert largest_difference(kernel["prob"], reference["prob"]) <= KERNEL_VERSUS_REFERENCE
    assert np.array_equal(kernel["labels"], reference["labels"])
    expected = by_the_cpu(
        objects, warped_weight, FOREGROUND_OF[:objects] if has_foreground else None
    )
    assert largest_difference(kernel["prob"], expected) <= KERNEL_RESIZE
    ids = IDS[:objects].tolist()
    assert np.array_equal(kernel["labels"], labels_from_merged(kernel["prob"], ids))
    assert set(np.unique(kernel["labels"])) == {0, *np.delete(IDS[:objects], [1][: objects - 1])}
    # Control: leaving a blend out, or adding one, is another result.
    change = {"warped_weight": 0.6, "foregrounds": None if has_foreground else FOREGROUNDS}
    other = kernel_outputs(shim, "paste_merge_f32", **{**arguments, **change})
    assert largest_difference(other["prob"], kernel["prob"]) > 0.1


def test_only_objects_with_a_plane_are_blended(shim: Shim) -> None:
    rois = box_rows([Roi(5, 4, 60, 40), Roi(20, 2, 90, 35), Roi(40, 0, 150, 41)])
    foreground_of = np.array([-1, 1, -1], np.int32)
    arguments = merge_arguments(3, rois=rois, foregrounds=FOREGROUNDS, foreground_of=foreground_of)
    kernel, reference = kernel_and_reference(shim, "paste_merge_f32", **arguments)
    assert largest_difference(kernel["prob"], reference["prob"]) <= KERNEL_VERSUS_REFERENCE
    boxes = boxes_from_rows(rois)
    prob = pasted(CROPS, rois)
    weight = ResolvedOptions().osvos.blend_weight
    blended = blend_osvos(prob, [None, FOREGROUNDS[1], None], boxes, osvos_weight=weight)
    assert largest_difference(kernel["prob"], merge(blended, boxes)) <= KERNEL_RESIZE
    # Control: what the others leave of a pixel counts.
    alone = prob.copy()
    box = boxes[1]
    assert box is not None
    window = (slice(box.y0, box.y1), slice(box.x0, box.x1))
    alone[1][window] = 0.5 * prob[1][window] + 0.5 * FOREGROUNDS[1][window]
    assert largest_difference(kernel["prob"], merge(alone, boxes)) > 0.1


def test_half_precision_crops_are_read_as_they_are(shim: Shim) -> None:
    half = CROPS.astype(np.float16)
    kernel, reference = kernel_and_reference(
        shim, "paste_merge_f16", **merge_arguments(3, crops=half)
    )
    single = kernel_outputs(
        shim, "paste_merge_f32", **merge_arguments(3, crops=half.astype(np.float32))
    )
    assert np.array_equal(kernel["prob"], single["prob"])
    assert largest_difference(kernel["prob"], reference["prob"]) <= KERNEL_VERSUS_REFERENCE
    # Control: half precision is not single precision.
    exact = kernel_outputs(shim, "paste_merge_f32", **merge_arguments(3))
    assert not np.array_equal(kernel["prob"], exact["prob"])


@pytest.mark.parametrize("objects", [1, 3])
def test_without_a_network_the_candidates_are_merged(shim: Shim, objects: int) -> None:
    arguments = merge_arguments(objects, crops=None)
    kernel, reference = kernel_and_reference(shim, "paste_merge_f32", **arguments)
    assert largest_difference(kernel["prob"], reference["prob"]) <= KERNEL_VERSUS_REFERENCE
    expected = merge(CANDIDATES[:objects])
    assert largest_difference(kernel["prob"], expected) <= KERNEL_VERSUS_REFERENCE
    assert np.array_equal(
        kernel["labels"], labels_from_merged(kernel["prob"], IDS[:objects].tolist())
    )


@pytest.mark.parametrize(("size_hw", "objects"), [((37, 53), 3), ((40, 52), 4), ((9, 9), 1)])
def test_labels_are_the_cpus(shim: Shim, size_hw: tuple[int, int], objects: int) -> None:
    rng = np.random.default_rng(1)
    merged = merge(rng.random((objects, *size_hw), dtype=np.float32))
    merged[:, 0, :4] = 0.25  # ties, of objects with each other and with the background
    merged[:, 1, :4] = 1 / (objects + 1)
    merged[:, 2, :4] = 0.5
    ids = np.array([9, 2, 200, 40][:objects], np.uint8)
    kernel, reference = kernel_and_reference(
        shim,
        "labels_from_merged",
        merged=merged,
        object_ids=ids,
        objects=objects,
        pixels=size_hw[0] * size_hw[1],
        labels=empty(size_hw, np.uint8),
    )
    assert np.array_equal(kernel["labels"], labels_from_merged(merged, ids.tolist()))
    assert np.array_equal(kernel["labels"], reference["labels"])
    assert len(np.unique(kernel["labels"])) > 1
