"""Polygons, drawn and traced as pycocotools, Pillow and OpenCV draw them."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from pycocotools import mask as coco

from benchmarks.round_trips.clips import drawn_clips
from mpn.formats.polygons import (
    draw_on_centres,
    draw_on_edges,
    one_ring,
    rings_on_centres,
    rings_on_edges,
)
from mpn.types import BoolArray

SQUARE = [(2, 1), (5, 1), (5, 4), (2, 4)]


def masks() -> Iterator[BoolArray]:
    for clip in drawn_clips():
        labels = clip.labels[0][:40, :40] if clip.name == "noise" else clip.labels[0]
        for object_id in np.unique(labels[labels > 0]):
            yield labels == object_id


def drawn_by_coco(rings: list[list[tuple[float, float]]], size_hw: tuple[int, int]) -> BoolArray:
    polygons = [np.asarray(ring, np.float64).ravel().tolist() for ring in rings]
    return coco.decode(coco.merge(coco.frPyObjects(polygons, *size_hw))) > 0


def test_edges_and_centres_differ_by_the_outline() -> None:
    assert draw_on_edges(SQUARE, (6, 8)).sum() == 3 * 3
    assert draw_on_centres(SQUARE, (6, 8)).sum() == 4 * 4


def test_drawing_on_edges_equals_pycocotools() -> None:
    rng = np.random.default_rng(0)
    areas = 0
    for number in range(300):
        height, width = (int(side) for side in rng.integers(1, 40, 2))
        points = rng.uniform(-6, 46, (int(rng.integers(3, 9)), 2))
        points = np.round(points, number % 3) if number % 4 else points
        ring = [(float(x), float(y)) for x, y in points]
        expected = drawn_by_coco([ring], (height, width))
        np.testing.assert_array_equal(draw_on_edges(ring, (height, width)), expected)
        areas += int(expected.sum())
    assert areas > 10_000  # control: the polygons cover pixels


def test_traced_masks_are_drawn_exactly() -> None:
    count = 0
    for mask in masks():
        centres, edges = rings_on_centres(mask), rings_on_edges(mask)
        by_pillow, by_opencv = np.zeros_like(mask), np.zeros(mask.shape, np.uint8)
        for ring in centres:
            by_pillow |= draw_on_centres(ring * 3 if len(ring) < 3 else ring, mask.shape)
            part = np.zeros(mask.shape, np.uint8)
            by_opencv |= cv2.fillPoly(part, [np.array(ring, np.int32)], 1)
        np.testing.assert_array_equal(by_pillow, mask)
        np.testing.assert_array_equal(by_opencv > 0, mask)
        np.testing.assert_array_equal(drawn_by_coco(edges, mask.shape), mask)
        np.testing.assert_array_equal(drawn_by_coco([one_ring(edges)], mask.shape), mask)
        count += len(centres)
    assert count > 100  # control: with parts, not one each


def test_empty_mask_has_no_ring() -> None:
    assert rings_on_centres(np.zeros((3, 4), bool)) == []
    assert rings_on_edges(np.zeros((3, 4), bool)) == []
