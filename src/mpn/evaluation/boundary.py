"""F, the boundary measure: precision and recall of contours within a tolerance.

The definition dilates each contour by a disc and counts which pixels of the other contour it
covers. Here the contours of up to four objects are the bits of one byte image (low half ground
truth, high half prediction), so that one run of shifts and ORs dilates all eight contours at once.
The result is the same integer counts, hence the same value to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from mpn.errors import EvaluationError
from mpn.evaluation.region import check_masks
from mpn.types import BoolArray, UInt8Array

BOUNDARY_TOLERANCE = 0.008
"""Tolerance of DAVIS as a fraction of the image diagonal (davis2017-evaluation, f_measure)."""

_PAIRS_PER_BYTE = 4
_BAND_ROWS = 16
"""Rows that are searched for objects at once: long runs of memory, and still a close window."""


def radius_px_from_tolerance(tolerance: float, size_hw: tuple[int, int]) -> int:
    """The tolerance in pixels.

    Args:
        tolerance: Under 1 a fraction of the diagonal, rounded up; from 1 on whole pixels.
        size_hw: (height, width) of the whole frame.

    Raises:
        EvaluationError: If it is not positive, or 1 or more and not whole.
    """
    if not 0 < tolerance < math.inf or (tolerance >= 1 and tolerance != int(tolerance)):
        raise EvaluationError(
            f"the boundary tolerance must be a fraction of the diagonal between 0 and 1 or a whole "
            f"number of pixels, got {tolerance}"
        )
    if tolerance >= 1:
        return int(tolerance)
    return math.ceil(tolerance * math.sqrt(size_hw[0] ** 2 + size_hw[1] ** 2))


def boundary_map(mask: BoolArray) -> BoolArray:
    """The contour of a mask, one pixel wide.

    A pixel belongs to it if it differs from its neighbour to the right, below, or below right; past
    the last row and column the image goes on as it ends there.

    Args:
        mask: (H, W) bool.

    Returns:
        (H, W) bool.
    """
    return _contours(_replicated(mask.view(np.uint8))).view(np.bool_)


def boundary_measure(
    gt_mask: BoolArray,
    pred_mask: BoolArray,
    *,
    tolerance: float = BOUNDARY_TOLERANCE,
    void_mask: BoolArray | None = None,
) -> float:
    """F of one pair of masks.

    Source: Perazzi et al., CVPR 2016, section 5.1, with the contour, disc and empty cases of
    davis2017-evaluation.

    Args:
        gt_mask: (H, W) bool, ground truth, the whole frame.
        pred_mask: (H, W) bool, prediction.
        tolerance: As in :func:`radius_px_from_tolerance`.
        void_mask: (H, W) bool, pixels emptied in both masks before contours are drawn.

    Returns:
        0..1; 1 where neither mask has a contour.

    Raises:
        EvaluationError: If the masks are not bool arrays of one size, or the tolerance is invalid.
    """
    check_masks(gt_mask, pred_mask, void_mask)
    radius_px = radius_px_from_tolerance(tolerance, (gt_mask.shape[0], gt_mask.shape[1]))
    if void_mask is not None:
        gt_mask, pred_mask = gt_mask & ~void_mask, pred_mask & ~void_mask
    window = union_window(gt_mask.view(np.uint8), pred_mask.view(np.uint8))
    return boundary_measures([(gt_mask[window], pred_mask[window])], radius_px)[0]


def boundary_measures(pairs: Sequence[tuple[BoolArray, BoolArray]], radius_px: int) -> list[float]:
    """F of several pairs of masks of one size.

    Args:
        pairs: (ground truth, prediction), each (H, W) bool; the whole frame, or the part of it in
            :func:`union_window`, which gives the same values.
        radius_px: Radius of the disc in pixels.

    Returns:
        One value a pair, 0..1.
    """
    values: list[float] = []
    for start in range(0, len(pairs), _PAIRS_PER_BYTE):
        planes = _planes(pairs[start : start + _PAIRS_PER_BYTE])
        if len(pairs) > _PAIRS_PER_BYTE:  # these few objects may cover less than all of them
            planes = planes[_window(planes)]
        num_pairs = min(len(pairs) - start, _PAIRS_PER_BYTE)
        values.extend(_measures_from_planes(planes, num_pairs, radius_px))
    return values


def union_window(gt_labels: UInt8Array, pred_labels: UInt8Array) -> tuple[slice, slice]:
    """Rows and columns that hold every nonzero pixel of both, and at least one more to each side.

    The extra pixel is where contours above and to the left lie, and an empty last row and column
    inside the frame, so that the border rule of :func:`boundary_map` acts at the frame's border
    only. Rows are found by the band, which is faster than the exact box and gives the same values.
    """
    return _window(cv2.bitwise_or(gt_labels, pred_labels))


def _window(labels: UInt8Array) -> tuple[slice, slice]:
    bands = np.flatnonzero(_band_maxima(labels))
    if not bands.size:
        return slice(0, 1), slice(0, 1)
    top, bottom = int(bands[0]) * _BAND_ROWS, int(bands[-1] + 1) * _BAND_ROWS
    columns = np.flatnonzero(labels[top:bottom].max(axis=0))
    return (
        slice(max(top - 1, 0), bottom + 1),
        slice(max(int(columns[0]) - 1, 0), int(columns[-1]) + 2),
    )


def _band_maxima(labels: UInt8Array) -> UInt8Array:
    """Largest value of every band of :data:`_BAND_ROWS` rows; the last band may have fewer."""
    height, width = labels.shape
    whole = height // _BAND_ROWS
    maxima: UInt8Array = (
        labels[: whole * _BAND_ROWS].reshape(whole, _BAND_ROWS * width).max(axis=1, initial=0)
    )
    rest = labels[whole * _BAND_ROWS :]
    return np.append(maxima, rest.max()) if rest.size else maxima


def _planes(pairs: Sequence[tuple[BoolArray, BoolArray]]) -> UInt8Array:
    """Up to four pairs of masks as the bits of one image, see the module."""
    planes: UInt8Array = np.zeros(pairs[0][0].shape, np.uint8)
    for k, (gt_mask, pred_mask) in enumerate(pairs):
        planes |= gt_mask.view(np.uint8) << np.uint8(k)
        planes |= pred_mask.view(np.uint8) << np.uint8(k + _PAIRS_PER_BYTE)
    return planes


def _measures_from_planes(planes: UInt8Array, num_pairs: int, radius_px: int) -> list[float]:
    contours = _contours(_replicated(planes))
    dilated = _dilated_by_disc(contours, radius_px)
    at = np.flatnonzero(contours != 0)
    on_contour, near = contours.ravel()[at], dilated.ravel()[at]
    # Swapped halves: each prediction bit meets the dilated ground truth, and the other way round.
    matched = on_contour & ((near << np.uint8(4)) | (near >> np.uint8(4)))
    return [
        _f_from_counts(
            gt_px=_count_bit(on_contour, k),
            pred_px=_count_bit(on_contour, k + _PAIRS_PER_BYTE),
            gt_matched_px=_count_bit(matched, k),
            pred_matched_px=_count_bit(matched, k + _PAIRS_PER_BYTE),
        )
        for k in range(num_pairs)
    ]


def _f_from_counts(*, gt_px: int, pred_px: int, gt_matched_px: int, pred_matched_px: int) -> float:
    if gt_px == 0 or pred_px == 0:
        # One contour missing: precision and recall are (1, 0) or (0, 1), F is 0 either way.
        return float(gt_px == pred_px)
    precision, recall = pred_matched_px / pred_px, gt_matched_px / gt_px
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


def _replicated(planes: UInt8Array) -> UInt8Array:
    """(H, W) -> (H+1, W+1), the last row and column repeated."""
    return cv2.copyMakeBorder(planes, 0, 1, 0, 1, cv2.BORDER_REPLICATE)  # type: ignore[no-any-return]


def _contours(replicated: UInt8Array) -> UInt8Array:
    """(H+1, W+1) bits of masks -> (H, W) bits of their contours."""
    here = replicated[:-1, :-1]
    contours = here ^ replicated[:-1, 1:]
    contours |= here ^ replicated[1:, :-1]
    contours |= here ^ replicated[1:, 1:]
    return contours


def _dilated_by_disc(planes: UInt8Array, radius_px: int) -> UInt8Array:
    """Dilate every bit by the disc dx^2 + dy^2 <= r^2; outside the image there is nothing.

    The disc is a pile of horizontal runs: rows are widened step by step, and each width is ORed
    into the rows at the two distances where the disc is that wide. Padding keeps a shift of the
    flat array from reaching the neighbouring row, so that all operations run over contiguous
    memory.
    """
    height, width = planes.shape
    stride = width + 2 * radius_px
    padded = np.zeros((height + 2 * radius_px, stride), np.uint8)
    padded[radius_px : radius_px + height, radius_px : radius_px + width] = planes
    flat = padded.ravel()
    widened = flat.copy()
    dilated = np.zeros(height * stride, np.uint8)
    reached_px = 0
    for dy in range(radius_px, -1, -1):
        half_width_px = math.isqrt(radius_px**2 - dy**2)
        while reached_px < half_width_px:
            reached_px += 1
            widened[reached_px:] |= flat[:-reached_px]
            widened[:-reached_px] |= flat[reached_px:]
        for row in {radius_px + dy, radius_px - dy}:
            dilated |= widened[row * stride : (row + height) * stride]
    return dilated.reshape(height, stride)[:, radius_px : radius_px + width]


def _count_bit(values: UInt8Array, bit: int) -> int:
    return int(np.count_nonzero(values & np.uint8(1 << bit)))
