"""Compute J and F by their definitions, per object on whole frames.

This is the reference of ``mpn.evaluation``. Tests compare both, and a benchmark times them.
As in davis2017-evaluation, masks of any type become bool, object masks come from label maps, and
void is an array of the frame's size. There are no crops and no shortcuts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint8]


def region(gt_mask: Mask, pred_mask: Mask, void_mask: Mask | None = None) -> float:
    gt_mask, pred_mask = gt_mask.astype(bool), pred_mask.astype(bool)
    void = np.zeros_like(gt_mask) if void_mask is None else void_mask.astype(bool)
    intersection = np.sum((gt_mask & pred_mask) & np.logical_not(void))
    union = np.sum((gt_mask | pred_mask) & np.logical_not(void))
    return 1.0 if np.isclose(union, 0) else float(intersection / union)


def contour(mask: Mask) -> Mask:
    """Compute pixels that differ from the right, lower or lower right neighbour."""
    right, below, diagonal = np.zeros((3, *mask.shape), bool)
    right[:, :-1] = mask[:, 1:]
    below[:-1] = mask[1:]
    diagonal[:-1, :-1] = mask[1:, 1:]
    drawn = (mask ^ right) | (mask ^ below) | (mask ^ diagonal)
    drawn[-1] = mask[-1] ^ right[-1]
    drawn[:, -1] = mask[:, -1] ^ below[:, -1]
    drawn[-1, -1] = False
    return drawn


def contour_against_nothing(mask: Mask) -> Mask:
    """Compute contours with background outside the frame, a wrong rule for controls."""
    padded = np.pad(mask, ((0, 1), (0, 1)))
    here = padded[:-1, :-1]
    return (here ^ padded[:-1, 1:]) | (here ^ padded[1:, :-1]) | (here ^ padded[1:, 1:])


def disc(radius_px: int) -> Labels:
    axis = np.arange(-radius_px, radius_px + 1)
    return (axis[:, None] ** 2 + axis[None] ** 2 <= radius_px**2).astype(np.uint8)


def boundary(
    gt_mask: Mask,
    pred_mask: Mask,
    tolerance: float = 0.008,
    void_mask: Mask | None = None,
) -> float:
    valid = np.logical_not(np.zeros_like(gt_mask) if void_mask is None else void_mask)
    diagonal = math.sqrt(gt_mask.shape[0] ** 2 + gt_mask.shape[1] ** 2)
    radius_px = int(tolerance) if tolerance >= 1 else math.ceil(tolerance * diagonal)
    gt_contour, pred_contour = contour(gt_mask & valid), contour(pred_mask & valid)
    kernel = disc(radius_px)
    gt_wide = cv2.dilate(gt_contour.astype(np.uint8), kernel).astype(bool)
    pred_wide = cv2.dilate(pred_contour.astype(np.uint8), kernel).astype(bool)
    gt_px, pred_px = np.sum(gt_contour), np.sum(pred_contour)
    if gt_px == 0 and pred_px == 0:
        precision, recall = 1.0, 1.0
    elif gt_px == 0:
        precision, recall = 0.0, 1.0
    elif pred_px == 0:
        precision, recall = 1.0, 0.0
    else:
        precision = float(np.sum(pred_contour & gt_wide) / pred_px)
        recall = float(np.sum(gt_contour & pred_wide) / gt_px)
    total = precision + recall
    return 0.0 if total == 0 else 2 * precision * recall / total


def region_of_labels(gt_labels: Labels, pred_labels: Labels, num_objects: int) -> list[float]:
    return [region(gt_labels == k, pred_labels == k) for k in range(1, num_objects + 1)]


def boundary_of_labels(gt_labels: Labels, pred_labels: Labels, num_objects: int) -> list[float]:
    return [boundary(gt_labels == k, pred_labels == k) for k in range(1, num_objects + 1)]


def region_of_sequence(gt_masks: Mask, pred_masks: Mask) -> npt.NDArray[np.float64]:
    """Compute J of (T, H, W) masks as the official tool does."""
    gt_masks, pred_masks = gt_masks.astype(bool), pred_masks.astype(bool)
    void = np.zeros_like(gt_masks)
    intersection = np.sum((gt_masks & pred_masks) & np.logical_not(void), axis=(-2, -1))
    union = np.sum((gt_masks | pred_masks) & np.logical_not(void), axis=(-2, -1))
    empty = np.isclose(union, 0)
    return np.where(empty, 1.0, intersection / np.where(empty, 1, union))


def masks_of_sequence(labels: npt.NDArray[Any], num_objects: int) -> Mask:
    """Convert (T, H, W) ids to masks (N, T, H, W) of all objects."""
    ids = np.ones((num_objects, *labels.shape)) * np.arange(1, num_objects + 1)[:, None, None, None]
    masks: Mask = ids == labels[None]
    return masks


def measures_of_sequence(
    gt_labels: Sequence[Labels], pred_labels: Sequence[Labels], num_objects: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Compute J and F of every object in every frame of a sequence.

    Memory layout is that of the official tool: float64 frames, masks of the whole sequence.
    """
    gt, pred = (np.stack(frames).astype(np.float64) for frames in (gt_labels, pred_labels))
    gt[gt == 255] = 0
    gt_masks, pred_masks = (masks_of_sequence(labels, num_objects) for labels in (gt, pred))
    region_values, boundary_values = [], []
    for k in range(num_objects):
        region_values.append(region_of_sequence(gt_masks[k], pred_masks[k]).tolist())
        frames = zip(gt_masks[k], pred_masks[k], strict=True)
        boundary_values.append([boundary(gt_mask, pred_mask) for gt_mask, pred_mask in frames])
    return region_values, boundary_values
