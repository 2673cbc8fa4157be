"""F, the boundary measure: precision and recall of contours within a tolerance.

The definition dilates each contour by a disc and counts the pixels of the other contour inside it.
Here the contours of up to four objects are the bits of one byte image (low half ground truth, high
half prediction), so that one sequence of shifts and ORs dilates all eight contours at once. The
result is the same integer counts, hence the same value to the last bit.
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
"""Rows that are searched for objects at once: contiguous memory, and still a tight window."""


def radius_px_from_tolerance(tolerance: float, size_hw: tuple[int, int]) -> int:
    """Convert the tolerance to pixels.

    Args:
        tolerance: Below 1 a fraction of the diagonal, rounded up; otherwise whole pixels.
        size_hw: (height, width) of the whole frame.

    Raises:
        EvaluationError: If it is not positive, or at least 1 and not whole.
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
    """Compute the contour of a mask, one pixel wide.

    A pixel belongs to it if it differs from its neighbour to the right, below, or below right. The
    last row and column are repeated at the border.

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
    """Compute F of one pair of masks.

    Source: Perazzi et al., CVPR 2016, section 5.1, with the contour, disc and empty cases of
    davis2017-evaluation.

    Args:
        gt_mask: (H, W) bool, ground truth, the whole frame.
        pred_mask: (H, W) bool, prediction.
        tolerance: See :func:`radius_px_from_tolerance`.
        void_mask: (H, W) bool, pixels cleared in both masks before contours are computed.

    Returns:
        0..1; 1 if neither mask has a contour.

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
    """Compute F of several pairs of masks of one size.

    Args:
        pairs: (ground truth, prediction), each (H, W) bool; the whole frame, or its part in
            :func:`union_window`, which gives the same values.
        radius_px: Radius of the disc in pixels.

    Returns:
        One value per pair, 0..1.
    """
    values: list[float] = []
    for start in range(0, len(pairs), _PAIRS_PER_BYTE):
        planes = _planes(pairs[start : start + _PAIRS_PER_BYTE])
        if len(pairs) > _PAIRS_PER_BYTE:  # these objects may need a smaller window than all
            planes = planes[_window(planes)]
        num_pairs = min(len(pairs) - start, _PAIRS_PER_BYTE)
        values.extend(_measures_from_planes(planes, num_pairs, radius_px))
    return values


def union_window(gt_labels: UInt8Array, pred_labels: UInt8Array) -> tuple[slice, slice]:
    """Find the rows and columns of all nonzero pixels, with a margin of one pixel.

    The margin has the contours above and to the left, and gives an empty last row and column inside
    the frame. So the border rule of :func:`boundary_map` applies at the frame's border only. Rows
    are found in bands, which is faster than the exact box and gives the same values.
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
    """Compute the largest value of every band of :data:`_BAND_ROWS` rows.

    The last band may have fewer.
    """
    height, width = labels.shape
    whole = height // _BAND_ROWS
    maxima: UInt8Array = (
        labels[: whole * _BAND_ROWS].reshape(whole, _BAND_ROWS * width).max(axis=1, initial=0)
    )
    rest = labels[whole * _BAND_ROWS :]
    return np.append(maxima, rest.max()) if rest.size else maxima


def _planes(pairs: Sequence[tuple[BoolArray, BoolArray]]) -> UInt8Array:
    """Pack up to four pairs of masks into the bits of one image; see the module."""
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
    # Swap the halves, to compare each prediction bit with the dilated ground truth and vice versa.
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
        # If one contour is empty, precision and recall are (1, 0) or (0, 1), and F is 0.
        return float(gt_px == pred_px)
    precision, recall = pred_matched_px / pred_px, gt_matched_px / gt_px
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


def _replicated(planes: UInt8Array) -> UInt8Array:
    """Repeat the last row and column: (H, W) -> (H+1, W+1)."""
    return cv2.copyMakeBorder(planes, 0, 1, 0, 1, cv2.BORDER_REPLICATE)  # type: ignore[no-any-return]


def _contours(replicated: UInt8Array) -> UInt8Array:
    """Compute contour bits from mask bits: (H+1, W+1) -> (H, W)."""
    here = replicated[:-1, :-1]
    contours = here ^ replicated[:-1, 1:]
    contours |= here ^ replicated[1:, :-1]
    contours |= here ^ replicated[1:, 1:]
    return contours


def _dilated_by_disc(planes: UInt8Array, radius_px: int) -> UInt8Array:
    """Dilate every bit by the disc dx^2 + dy^2 <= r^2, with zeros outside the image.

    The disc is a stack of horizontal runs. Rows are widened step by step, and each width is ORed
    into the rows at the two distances where the disc has that width. Padding prevents a shift of
    the flat array from reaching the adjacent row, so that all operations run over contiguous
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
