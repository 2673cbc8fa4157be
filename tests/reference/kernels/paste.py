"""Reference of kernels/paste.cu: see :mod:`tests.reference.kernels`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mpn.types import Float32Array, UInt8Array
from tests.reference.kernels.boxes import Int32Array
from tests.reference.kernels.sampling import inside
from tests.reference.kernels.taps import linear


def paste_merge_f32(
    crops: npt.NDArray[Any] | None,
    rois: Int32Array,
    candidates: Float32Array | None,
    foregrounds: Float32Array | None,
    foreground_of: Int32Array | None,
    object_ids: UInt8Array,
    objects: int,
    height: int,
    width: int,
    size: int,
    warped_weight: float,
    foreground_weight: float,
    prob: Float32Array,
    labels: UInt8Array,
) -> None:
    """Paste and blend crops, merge the objects, and write the labels."""
    warped_share = np.float32(warped_weight)
    carried = np.zeros_like(prob) if candidates is None else candidates
    for k in range(objects):
        held = inside(rois[k], height, width)
        if crops is None:
            prob[k] = carried[k]
        else:
            prob[k] = _pasted(crops.reshape(-1, size, size)[k], rois[k], height, width)
            if warped_share:
                blended = (1 - warped_share) * prob[k] + warped_share * carried[k]
                prob[k] = np.where(held, blended, prob[k])
        if foregrounds is not None:
            prob[k] = np.where(held, prob[k], 0)
    if foregrounds is not None and foreground_of is not None:
        _blend_foregrounds(prob, rois, foregrounds, foreground_of, np.float32(foreground_weight))
    if objects > 1:
        prob /= (1 - prob).prod(axis=0) + prob.sum(axis=0)
    labels_from_merged(prob, object_ids, objects, height * width, labels)


paste_merge_f16 = paste_merge_f32


def labels_from_merged(
    merged: Float32Array, object_ids: UInt8Array, objects: int, pixels: int, labels: UInt8Array
) -> None:
    """Select the most probable label; the first one wins a tie."""
    planes = merged.reshape(objects, pixels)
    best = np.full(pixels, 0.5, np.float32)
    if objects > 1:
        best = np.ones(pixels, np.float32)
        for plane in planes:
            best -= plane
    found = np.zeros(pixels, np.uint8)
    for plane, object_id in zip(planes, object_ids, strict=True):
        found[plane > best] = object_id
        best = np.maximum(best, plane)
    labels.reshape(pixels)[:] = found


def _blend_foregrounds(
    prob: Float32Array,
    rois: Int32Array,
    foregrounds: Float32Array,
    foreground_of: Int32Array,
    share: np.float32,
) -> None:
    """Blend objects with their OSVOS planes, excluding the other objects."""
    own, planes = prob.copy(), foregrounds.reshape(-1, *prob.shape[1:])
    for k, plane in enumerate(foreground_of):
        if plane >= 0:
            theirs = planes[plane] * np.delete(1 - own, k, axis=0).prod(axis=0)
            held = inside(rois[k], *prob.shape[1:])
            prob[k] = np.where(held, (1 - share) * own[k] + share * theirs, own[k])


def _pasted(
    crop: npt.NDArray[Any] | None, roi: Int32Array, height: int, width: int
) -> Float32Array:
    plane = np.zeros((height, width), np.float32)
    x0, y0, x1, y1 = (int(side) for side in roi)
    if crop is not None and x1 > x0 and y1 > y0:
        plane[y0:y1, x0:x1] = linear(crop, (y1 - y0, x1 - x0))
    return plane
