"""Warp, check, crop and paste in NumPy and OpenCV: the reference of the kernels.

Each function is pure: it changes no argument. OpenCV 5 or newer is required: OpenCV 4 rounds the
coordinates of ``remap`` to 1/32 px.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from mpn.errors import InputError
from mpn.types import Float32Array, Roi, UInt8Array, check_rgb


def warp_bilinear(
    prob: Float32Array,
    flow_to_prev_px: Float32Array,
    *,
    boxes: Sequence[Roi | None] | None = None,
) -> Float32Array:
    """Warp probabilities of the previous frame onto the current one.

    It agrees with the definition in float64 to 2e-6. With zero flow it is the identity, bit for
    bit.

    Args:
        prob: (K, H, W) float32 of the previous frame.
        flow_to_prev_px: (2, H, W) float32 on the current frame's grid: axis 0 is (x, y), in
            pixels, from a pixel of the current frame to its position in the previous one.
        boxes: Per object the part of the output to compute; the rest is 0. If a box is None,
            the whole plane is 0. [default: whole planes]

    Returns:
        (K, H, W) float32, ``prob`` sampled bilinearly at (x + flow_x, y + flow_y). Pixel
        centres are at integers; taps outside the image count as 0; a pixel with a non-finite
        coordinate is 0.

    Raises:
        InputError: If the shapes do not fit.
    """
    if prob.ndim != 3 or flow_to_prev_px.shape != (2, *prob.shape[1:]):
        raise InputError(
            f"prob must be (K, H, W) and flow_to_prev_px (2, H, W) of the same size, "
            f"got {prob.shape} and {flow_to_prev_px.shape}"
        )
    source = np.ascontiguousarray(prob, dtype=np.float32)
    warped = np.zeros(source.shape, np.float32)  # zeros_like would write all of it
    if warped.size == 0:
        return warped
    everywhere = Roi(0, 0, prob.shape[2], prob.shape[1])
    wanted = [everywhere] * len(source) if boxes is None else boxes
    _check_count("boxes", wanted, len(source))
    maps: dict[Roi, tuple[Float32Array, Float32Array]] = {}
    for plane, out, box in zip(source, warped, wanted, strict=True):
        if box is None:
            continue
        if box not in maps:
            maps[box] = _sample_positions(flow_to_prev_px, box)
        cv2.remap(
            plane,
            *maps[box],
            interpolation=cv2.INTER_LINEAR,
            dst=out[box.y0 : box.y1, box.x0 : box.x1],
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=0,
        )
    return warped


def flow_confidence(
    flow_to_prev_px: Float32Array,
    flow_from_prev_px: Float32Array,
    *,
    box: Roi,
    sigma_px: float,
    sigma_frac: float,
) -> Float32Array:
    """Compute how well the flow of each pixel and the flow back cancel out.

    A pixel that is hidden in the previous frame has no true flow. Its estimated flow leads to
    another pixel, whose flow does not lead back. Source: the forward-backward check, e.g.
    N. Sundaram et al., "Dense Point Trajectories by GPU-accelerated Large Displacement Optical
    Flow", ECCV 2010; VS-ReID uses it on warped masks.

    Args:
        flow_to_prev_px: (2, H, W) float32 on the current frame's grid, f.
        flow_from_prev_px: (2, H, W) float32 on the previous frame's grid, b.
        box: The part to compute.
        sigma_px: Tolerated round-trip error, in pixels.
        sigma_frac: Tolerated round-trip error, as a fraction of the flow's length.

    Returns:
        (h, w) float32 of the box: exp(-|f(x) + b(x + f(x))|^2 / (2 (sigma_px + sigma_frac
        |f(x)|)^2)), 0..1; 0 at pixels whose flow is not finite.
    """
    if flow_to_prev_px.shape != flow_from_prev_px.shape or flow_to_prev_px.shape[0] != 2:
        raise InputError(
            f"both flows must be (2, H, W) of one size, got {flow_to_prev_px.shape} and "
            f"{flow_from_prev_px.shape}"
        )
    x, y = _sample_positions(flow_to_prev_px, box)
    there = flow_to_prev_px[:, box.y0 : box.y1, box.x0 : box.x1]
    trip_x, trip_y = (
        cv2.remap(plane, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for plane in flow_from_prev_px
    )
    trip_x += there[0]
    trip_y += there[1]
    with np.errstate(invalid="ignore", over="ignore"):  # a flow that is not finite gets 0 below
        sigma = _length(there[0], there[1])
        sigma *= np.float32(sigma_frac)
        sigma += np.float32(sigma_px)
        confidence = _length(trip_x, trip_y)
        confidence /= sigma
        confidence *= confidence
        confidence *= np.float32(-0.5)
        np.exp(confidence, out=confidence)
    confidence[~np.isfinite(confidence)] = 0
    return confidence


def _length(x: Float32Array, y: Float32Array) -> Float32Array:
    """Compute the square root of x^2 + y^2.

    np.hypot takes eight times as long. The last bit of cv2.magnitude depends on the addresses of
    its arrays, but the same input must give the same masks.
    """
    length: Float32Array = x * x
    length += y * y
    return np.sqrt(length, out=length)


def crop_resize_pack(
    rgb: UInt8Array,
    prob: Float32Array,
    rois: Sequence[Roi | None],
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    scores: Float32Array | None = None,
) -> Float32Array:
    """Make the input of the propagation network.

    Each crop is resized to a square, bilinearly and regardless of its aspect ratio, with
    half-pixel centres and no smoothing when it shrinks (``cv2.INTER_LINEAR`` on float32).
    Training crops in the same way: a change here needs new weights.

    Args:
        rgb: (H, W, 3) uint8 RGB, the current frame.
        prob: (K, H, W) float32, the probabilities warped onto it.
        rois: Per object its ROI, or None to omit the object.
        size: Side S of the network's input.
        mean: Three means of RGB in 0..1.
        std: Three standard deviations of RGB in 0..1.
        scores: (N, S, S) float32, the fifth channel. [default: four channels]

    Returns:
        (N, 4 or 5, S, S) float32 for N ROIs: (rgb / 255 - mean) / std, the probability, the score.

    Raises:
        InputError: If the shapes do not fit.
    """
    check_rgb(rgb)
    if prob.ndim != 3 or prob.shape[1:] != rgb.shape[:2]:
        raise InputError(f"prob must be (K, H, W) of the frame {rgb.shape[:2]}, got {prob.shape}")
    _check_count("rois", rois, len(prob))
    present = [(k, roi) for k, roi in enumerate(rois) if roi is not None]
    packed = np.empty((len(present), 4 if scores is None else 5, size, size), np.float32)
    if scores is not None:
        packed[:, 4] = scores
    # (v / 255 - mean) / std as one multiplication and one addition.
    gains = [np.float32(1 / (255 * deviation)) for deviation in std]
    offsets = [np.float32(-m / deviation) for m, deviation in zip(mean, std, strict=True)]
    for crop, (k, roi) in zip(packed, present, strict=True):
        rows, columns = slice(roi.y0, roi.y1), slice(roi.x0, roi.x1)
        # float32 before the resize: uint8 would round every interpolated value.
        colours = cv2.resize(
            rgb[rows, columns].astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR
        )
        planes = list(crop[:3])
        cv2.split(colours, planes)
        for plane, gain, offset in zip(planes, gains, offsets, strict=True):
            plane *= gain
            plane += offset
        cv2.resize(
            prob[k, rows, columns], (size, size), dst=crop[3], interpolation=cv2.INTER_LINEAR
        )
    return packed


def paste(
    crops: Float32Array, rois: Sequence[Roi | None], size_hw: tuple[int, int]
) -> Float32Array:
    """Paste the output of the network into the frame.

    Args:
        crops: (N, 1, S, S) float32, one per ROI that is not None, in their order.
        rois: Per object the ROI of its crop, or None.
        size_hw: (H, W) of the frame.

    Returns:
        (K, H, W) float32: each crop resized to its ROI (bilinear, half-pixel centres), 0
        outside it.

    Raises:
        InputError: If the shapes do not fit.
    """
    present = [(k, roi) for k, roi in enumerate(rois) if roi is not None]
    if crops.ndim != 4 or crops.shape[1] != 1:
        raise InputError(f"crops must be (N, 1, S, S), got {crops.shape}")
    _check_count("rois that are not None", present, len(crops))
    prob = np.zeros((len(rois), *size_hw), np.float32)
    for crop, (k, roi) in zip(crops, present, strict=True):
        height, width = roi.size_hw
        cv2.resize(
            crop[0],
            (width, height),
            dst=prob[k, roi.y0 : roi.y1, roi.x0 : roi.x1],
            interpolation=cv2.INTER_LINEAR,
        )
    return prob


def _sample_positions(flow_to_prev_px: Float32Array, box: Roi) -> tuple[Float32Array, Float32Array]:
    """Compute the (x, y) to sample for each pixel of ``box``, safe for ``cv2.remap``."""
    height, width = flow_to_prev_px.shape[1:]
    flow = flow_to_prev_px[:, box.y0 : box.y1, box.x0 : box.x1]
    x = flow[0] + np.arange(box.x0, box.x1, dtype=np.float32)
    y = flow[1] + np.arange(box.y0, box.y1, dtype=np.float32)[:, None]
    bad = ~(np.isfinite(x) & np.isfinite(y))
    if bad.any():
        x[bad] = -1
        y[bad] = -1
    # One pixel outside samples 0; further out, remap's conversion to int overflows.
    np.clip(x, -1, width, out=x)
    np.clip(y, -1, height, out=y)
    return x, y


def _check_count(what: str, given: Sequence[object], expected: int) -> None:
    if len(given) != expected:
        raise InputError(f"expected {expected} {what}, got {len(given)}")
