"""The last stage of a frame: one dense CRF over background and objects, where objects are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mpn._common.validation import check_bool, check_int, check_number
from mpn.runtime.crf import dense_crf
from mpn.runtime.ensemble import Boxes
from mpn.runtime.roi import expand_box
from mpn.types import Float32Array, Roi, UInt8Array

_SMALLEST_PROB = 1e-5
"""What a probability of 0 counts as, in -log p."""


@dataclass(frozen=True, kw_only=True)
class CrfOptions:
    """What the CRF believes in, and where it works.

    The defaults are those of a public script for DAVIS at 480p (COSNet's author); docs/crf.md tells
    what others did on its training sequences.

    Attributes:
        sxy_gaussian: Standard deviation of the spatial kernel in pixels of the working size.
        compat_gaussian: Its weight; 0 leaves it out.
        sxy_bilateral: Spatial standard deviation of the bilateral kernel, in pixels of the working
            size.
        srgb_bilateral: Its standard deviation in colour, in levels of 0..255.
        compat_bilateral: Its weight; 0 leaves it out.
        iterations: Mean-field updates.
        margin_px: Added on each side to the box of an object: the background around it has a say.
        whole_frame: True works on the whole frame instead, at several times the cost.
        working_scale: Of the picture that the CRF sees, above 0 and at most 1. Below 1 it decides
            on a smaller one what is to change, and the change is carried over to the whole: a half
            costs a quarter. The other numbers stay in pixels of the working size.

    Raises:
        InputError: If a value is out of range.
    """

    sxy_gaussian: float = 1.0
    compat_gaussian: float = 5.0
    sxy_bilateral: float = 15.0
    srgb_bilateral: float = 7.0
    compat_bilateral: float = 9.0
    iterations: int = 5
    margin_px: int = 16
    whole_frame: bool = False
    working_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("sxy_gaussian", "sxy_bilateral", "srgb_bilateral"):
            check_number(f"CRF option {name}", getattr(self, name), above=0)
        for name in ("compat_gaussian", "compat_bilateral"):
            check_number(f"CRF option {name}", getattr(self, name), least=0)
        for name, least in (("iterations", 1), ("margin_px", 0)):
            check_int(f"CRF option {name}", getattr(self, name), least=least)
        check_number("CRF option working_scale", self.working_scale, above=0, most=1)
        check_bool("CRF option whole_frame", self.whole_frame)


def refine(
    merged: Float32Array,
    rgb: UInt8Array,
    *,
    boxes: Boxes | None = None,
    options: CrfOptions | None = None,
) -> tuple[Float32Array, tuple[Roi | None, ...]]:
    """Let each frame's colours decide where the objects end.

    Boxes with their margin that touch are worked on together, in the rectangle around them, with
    background and all their objects as labels. Elsewhere the probabilities stay as they are.

    Args:
        merged: (K, H, W) float32 from :func:`mpn.runtime.ensemble.merge`: they and the background
            (1 - their sum) sum to 1.
        rgb: (H, W, 3) uint8 RGB, the frame of that size.
        boxes: For each object a box outside which it is exactly 0, None where it is 0 everywhere;
            default: it may be anywhere.
        options: Default: the defaults.

    Returns:
        (K, H, W) float32 of the same kind, a new array; for each object a box outside which it is
        exactly 0, or None.

    Raises:
        InputError: If an array has another shape or dtype, or a probability is not finite.
    """
    options = options or CrfOptions()
    size_hw = (merged.shape[1], merged.shape[2])
    frame = Roi(0, 0, size_hw[1], size_hw[0])
    where = [frame] * len(merged) if boxes is None else list(boxes)
    refined = merged.copy()
    refined_boxes = list(where)
    for region, members in _regions(where, options, size_hw):
        window = (slice(region.y0, region.y1), slice(region.x0, region.x1))
        prob = np.empty((len(members) + 1, *region.size_hw), np.float32)
        prob[0] = 1
        for label, k in enumerate(members, start=1):
            prob[label] = merged[k][window]
            prob[0] -= prob[label]
        q = _decided(prob, rgb[window], options)
        for label, k in enumerate(members, start=1):
            refined[k][window] = q[label]
            refined_boxes[k] = region
    return refined, tuple(refined_boxes)


def _decided(prob: Float32Array, rgb: UInt8Array, options: CrfOptions) -> Float32Array:
    """What the CRF makes of the labels' probabilities, (L, h, w), overwritten."""
    np.clip(prob, _SMALLEST_PROB, 1, out=prob)
    scale, (height, width) = options.working_scale, rgb.shape[:2]
    small_wh = (max(round(width * scale), 1), max(round(height * scale), 1))
    if small_wh == (width, height):
        return _mean_field(-np.log(prob), rgb, options)
    small = np.stack([cv2.resize(p, small_wh, interpolation=cv2.INTER_AREA) for p in prob])
    unary = -np.log(small)
    picture = cv2.resize(rgb, small_wh, interpolation=cv2.INTER_AREA)
    q = _mean_field(unary, np.asarray(picture, np.uint8).reshape(*small_wh[::-1], 3), options)
    gain = np.log(np.maximum(q, _SMALLEST_PROB)) + unary
    odds = np.log(prob)
    for plane, change in zip(odds, gain, strict=True):
        plane += cv2.resize(change, (width, height), interpolation=cv2.INTER_LINEAR)
    odds -= odds.max(axis=0)
    np.exp(odds, out=odds)
    odds /= odds.sum(axis=0)
    return odds


def _mean_field(unary: Float32Array, rgb: UInt8Array, options: CrfOptions) -> Float32Array:
    scale = options.working_scale
    return dense_crf(
        unary,
        rgb,
        sxy_gaussian=options.sxy_gaussian * scale,
        compat_gaussian=options.compat_gaussian,
        sxy_bilateral=options.sxy_bilateral * scale,
        srgb_bilateral=options.srgb_bilateral,
        compat_bilateral=options.compat_bilateral,
        iterations=options.iterations,
    )


def _regions(
    boxes: Sequence[Roi | None], options: CrfOptions, size_hw: tuple[int, int]
) -> list[tuple[Roi, list[int]]]:
    """Rectangles that do not overlap, and the objects in each, ascending."""
    regions: list[tuple[Roi, list[int]]] = []
    for k, box in enumerate(boxes):
        if box is None:
            continue
        region, members = expand_box(box, 0, options.margin_px, size_hw), [k]
        if options.whole_frame:
            region = Roi(0, 0, size_hw[1], size_hw[0])
        # A rectangle around two may reach a third, so start over after each union.
        while others := [other for other in regions if _overlap(region, other[0])]:
            for other in others:
                regions.remove(other)
                region = _around(region, other[0])
                members += other[1]
        regions.append((region, sorted(members)))
    return regions


def _overlap(one: Roi, other: Roi) -> bool:
    return one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1


def _around(one: Roi, other: Roi) -> Roi:
    return Roi(
        min(one.x0, other.x0),
        min(one.y0, other.y0),
        max(one.x1, other.x1),
        max(one.y1, other.y1),
    )
