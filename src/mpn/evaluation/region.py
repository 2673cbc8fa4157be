"""J, the region similarity: intersection over union of two masks."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from mpn.errors import EvaluationError
from mpn.types import BoolArray


def region_similarity(
    gt_mask: BoolArray, pred_mask: BoolArray, *, void_mask: BoolArray | None = None
) -> float:
    """Compute the intersection over union of two masks; 1 if both are empty.

    Source: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object
    Segmentation", CVPR 2016, section 5.1, with davis2017-evaluation's rule for empty masks.

    Args:
        gt_mask: (H, W) bool, ground truth.
        pred_mask: (H, W) bool, prediction.
        void_mask: (H, W) bool, pixels to ignore in both masks; None for none.

    Returns:
        0..1.

    Raises:
        EvaluationError: If the masks are not bool arrays of one size.
    """
    check_masks(gt_mask, pred_mask, void_mask)
    if void_mask is not None:
        gt_mask, pred_mask = gt_mask & ~void_mask, pred_mask & ~void_mask
    # Difference and sums need no temporaries; bool is stored as 0 or 1, so all are exact counts.
    # The difference is first: reading both masks from memory together is faster than one after the
    # other, and then the sums read them from the cache.
    gt_bytes, pred_bytes = gt_mask.view(np.uint8), pred_mask.view(np.uint8)
    differing_px = int(cv2.norm(gt_bytes, pred_bytes, cv2.NORM_L1))
    total_px = int(cv2.sumElems(gt_bytes)[0]) + int(cv2.sumElems(pred_bytes)[0])
    union_px = (total_px + differing_px) // 2
    return (union_px - differing_px) / union_px if union_px else 1.0


def check_masks(
    gt_mask: npt.NDArray[Any], pred_mask: npt.NDArray[Any], void_mask: npt.NDArray[Any] | None
) -> None:
    """Raise EvaluationError unless masks are (H, W) bool of one size, not empty."""
    masks = (gt_mask, pred_mask) if void_mask is None else (gt_mask, pred_mask, void_mask)
    for name, mask in zip(("prediction", "void"), masks[1:], strict=False):
        if mask.shape != gt_mask.shape:
            raise EvaluationError(
                f"the {name} mask is {mask.shape} but the ground truth is {gt_mask.shape}"
            )
    if gt_mask.ndim != 2 or not gt_mask.size or any(mask.dtype != np.bool_ for mask in masks):
        kinds = ", ".join(f"{mask.shape} {mask.dtype}" for mask in masks)
        raise EvaluationError(f"masks must be (H, W) bool of at least one pixel, got {kinds}")
