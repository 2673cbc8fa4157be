from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from mpn.errors import InputError
from mpn.runtime.crf.dense import dense_crf
from mpn.runtime.crf.options import ResolvedCrf
from mpn.runtime.host.crf import refine
from mpn.runtime.host.merge import labels_from_merged, merge
from mpn.types import Roi
from tests.tolerances import PROBS_SUM

SIZE_HW = (90, 140)


def scene(boxes: list[Roi], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one-coloured rectangles on grey; return frame, ids and a shifted guess.

    The soft guess of each object is 3 px off, and 0 further than 8 px from its rectangle.
    """
    rng = np.random.default_rng(seed)
    rgb = np.full((*SIZE_HW, 3), 128.0)
    truth = np.zeros(SIZE_HW, np.uint8)
    prob = np.zeros((len(boxes), *SIZE_HW), np.float32)
    for k, box in enumerate(boxes):
        rgb[box.y0 : box.y1, box.x0 : box.x1] = rng.integers(0, 256, 3)
        truth[box.y0 : box.y1, box.x0 : box.x1] = k + 1
        aside = np.roll(truth == k + 1, (-3, 3), axis=(0, 1)).astype(np.float32)
        window = grown(box, 8)
        rows, columns = slice(window.y0, window.y1), slice(window.x0, window.x1)
        prob[k, rows, columns] = cv2.GaussianBlur(aside, (0, 0), 4)[rows, columns]
    noisy = np.clip(rgb + rng.normal(0, 3, rgb.shape), 0, 255).astype(np.uint8)
    return noisy, truth, merge(prob)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def grown(box: Roi, px: int) -> Roi:
    return Roi(
        max(box.x0 - px, 0),
        max(box.y0 - px, 0),
        min(box.x1 + px, SIZE_HW[1]),
        min(box.y1 + px, SIZE_HW[0]),
    )


NEAR = [Roi(20, 20, 50, 60), Roi(50, 25, 80, 70)]
APART = [Roi(10, 10, 30, 40), Roi(100, 40, 130, 80)]


@pytest.mark.parametrize("boxes", [NEAR[:1], NEAR, APART])
@pytest.mark.parametrize("whole_frame", [False, True])
def test_objects_end_where_their_colour_ends(boxes: list[Roi], whole_frame: bool) -> None:
    rgb, truth, merged = scene(boxes)
    refined, _ = refine(
        merged,
        rgb,
        boxes=[grown(box, 8) for box in boxes],
        options=ResolvedCrf(whole_frame=whole_frame),
    )
    ids = range(1, len(boxes) + 1)
    before, after = labels_from_merged(merged, ids), labels_from_merged(refined, ids)
    for k in ids:
        assert iou(before == k, truth == k) < 0.85
        assert iou(after == k, truth == k) > 0.97


def test_a_smaller_picture_decides_nearly_the_same() -> None:
    """At half scale the CRF still improves the guess, differently than at full scale."""
    rgb, truth, merged = scene(NEAR)
    whole, _ = refine(merged, rgb)
    half, boxes = refine(merged, rgb, options=ResolvedCrf(working_scale=0.5))
    found = labels_from_merged(half, (1, 2))
    for k in (1, 2):
        assert iou(labels_from_merged(merged, (1, 2)) == k, truth == k) < 0.85
        assert iou(found == k, truth == k) > 0.93
    assert boxes == (Roi(0, 0, *SIZE_HW[::-1]),) * 2
    assert (half >= 0).all()
    assert float(half.sum(axis=0).max()) <= 1 + PROBS_SUM
    assert not np.array_equal(half, whole)


def test_crf_scale_rounding_to_one_is_identity() -> None:
    rgb, _, merged = scene(NEAR[:1])
    same = refine(merged, rgb, options=ResolvedCrf(working_scale=0.999))[0]
    assert iou(same[0] > 0.5, refine(merged, rgb)[0][0] > 0.5) > 0.99


def test_a_region_of_one_pixel_can_be_halved() -> None:
    prob = np.full((1, 1, 1), 0.75, np.float32)
    rgb = np.zeros((1, 1, 3), np.uint8)
    kept, _ = refine(prob, rgb, options=ResolvedCrf(working_scale=0.4))
    assert kept.shape == (1, 1, 1)
    assert 0.5 < kept[0, 0, 0] <= 1


def test_the_result_is_merged_again_and_its_boxes_hold_it() -> None:
    rgb, _, merged = scene(NEAR)
    given = merged.copy()
    refined, boxes = refine(merged, rgb, boxes=[grown(box, 8) for box in NEAR])
    assert refined.dtype == np.float32
    assert refined.min() >= 0
    assert refined.sum(axis=0).max() <= 1 + PROBS_SUM
    assert np.array_equal(merged, given)
    for plane, box in zip(refined, boxes, strict=True):
        assert box == Roi(0, 0, 104, 90)  # around both, with 16 px and 8 px, clipped
        outside = plane.copy()
        outside[box.y0 : box.y1, box.x0 : box.x1] = 0
        assert not outside.any()


def test_outside_the_regions_nothing_changes() -> None:
    rgb, _, merged = scene(APART)
    options = ResolvedCrf(margin_px=5)
    refined, boxes = refine(merged, rgb, boxes=[grown(box, 8) for box in APART], options=options)
    assert boxes == tuple(grown(box, 13) for box in APART)
    changed = (refined != merged).any(axis=0)
    inside = np.zeros(SIZE_HW, bool)
    for box in boxes:
        assert box is not None
        inside[box.y0 : box.y1, box.x0 : box.x1] = True
    assert changed.any()
    assert not changed[~inside].any()


def test_distant_objects_are_refined_separately() -> None:
    rgb, _, merged = scene(APART)
    boxes = [grown(box, 8) for box in APART]
    both, _ = refine(merged, rgb, boxes=boxes)
    for k in range(2):
        alone, _ = refine(merged[k : k + 1], rgb, boxes=boxes[k : k + 1])
        assert np.array_equal(both[k], alone[0])


def test_objects_that_touch_share_one_crf() -> None:
    rgb, _, merged = scene(NEAR)
    refined, _ = refine(merged, rgb, boxes=None)
    prob = np.concatenate([1 - merged.sum(axis=0, keepdims=True), merged])
    options = ResolvedCrf()
    q = dense_crf(
        -np.log(np.clip(prob, 1e-5, 1)),
        rgb,
        sxy_gaussian=options.sxy_gaussian,
        compat_gaussian=options.compat_gaussian,
        sxy_bilateral=options.sxy_bilateral,
        srgb_bilateral=options.srgb_bilateral,
        compat_bilateral=options.compat_bilateral,
        iterations=options.iterations,
    )
    assert np.abs(refined - q[1:]).max() <= 1e-5
    alone = np.concatenate([refine(merged[k : k + 1], rgb)[0] for k in range(2)])
    assert np.abs(refined - alone).max() > 1e-3  # not K binary CRFs


def test_a_chain_of_overlaps_is_one_region() -> None:
    chain = [Roi(70, 40, 90, 60), Roi(20, 20, 40, 40), Roi(35, 30, 75, 50)]
    rgb, _, merged = scene(chain)
    _, boxes = refine(merged, rgb, boxes=chain, options=ResolvedCrf(margin_px=0))
    assert boxes == (Roi(20, 20, 90, 60),) * 3


def test_an_object_that_is_nowhere_stays_so() -> None:
    rgb, _, merged = scene(NEAR)
    merged[1] = 0
    refined, boxes = refine(merged, rgb, boxes=[grown(NEAR[0], 8), None])
    assert boxes[1] is None
    assert not refined[1].any()
    assert refined[0].any()


def test_no_object_is_no_work() -> None:
    rgb, _, _ = scene(NEAR)
    refined, boxes = refine(np.zeros((0, *SIZE_HW), np.float32), rgb, boxes=[])
    assert refined.shape == (0, *SIZE_HW)
    assert boxes == ()


def test_a_broken_probability_is_refused() -> None:
    rgb, _, merged = scene(NEAR)
    merged[0, 30, 30] = np.nan
    with pytest.raises(InputError, match="not finite"):
        refine(merged, rgb)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sxy_gaussian": 0},
        {"sxy_bilateral": float("nan")},
        {"srgb_bilateral": -1},
        {"compat_gaussian": -1},
        {"compat_bilateral": "9"},
        {"iterations": 0},
        {"margin_px": -1},
        {"margin_px": 1.5},
        {"whole_frame": 1},
        {"working_scale": 0},
        {"working_scale": 1.5},
    ],
    ids=str,
)
def test_an_option_out_of_range_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"option crf\.{next(iter(wrong))} must be"):
        ResolvedCrf(**wrong)
