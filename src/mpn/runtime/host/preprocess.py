"""Resize frames and labels to working size, and make the inputs of networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from mpn.runtime.options import NATIVE_SIZE
from mpn.types import Float32Array, UInt8Array


def working_size_hw(size_hw: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Compute the working size of a video.

    Args:
        size_hw: (height, width) of the input.
        short_side: Largest short side; :data:`NATIVE_SIZE` for any.

    Returns:
        (height, width); ``size_hw`` if its short side is not larger, since enlarging costs time
        and adds no detail.
    """
    height, width = size_hw
    shorter = min(height, width)
    if short_side == NATIVE_SIZE or shorter <= short_side:
        return size_hw
    scale = short_side / shorter
    return (max(round(height * scale), 1), max(round(width * scale), 1))


def resize_rgb(rgb: UInt8Array, size_hw: tuple[int, int]) -> UInt8Array:
    """Resize a frame: area average if it shrinks, bilinear if it grows.

    Args:
        rgb: (H, W, 3) uint8.
        size_hw: (height, width) of the result.

    Returns:
        (height, width, 3) uint8; ``rgb`` itself if it has this size.
    """
    return rgb if rgb.shape[:2] == size_hw else _resized(rgb, size_hw)


def own_rgb(rgb: UInt8Array, size_hw: tuple[int, int]) -> UInt8Array:
    """Resize a frame as :func:`resize_rgb`, into a new array.

    The caller may reuse its array for the next frame, as OpenCV's capture does.
    """
    resized = resize_rgb(rgb, size_hw)
    return np.array(resized, order="C") if resized is rgb else resized


def one_hot(labels: UInt8Array, object_ids: Sequence[int]) -> Float32Array:
    """Convert labels to probabilities: (H, W) uint8 -> (K, H, W) float32, 0 or 1."""
    prob = np.empty((len(object_ids), *labels.shape), np.float32)
    for plane, object_id in zip(prob, object_ids, strict=True):
        np.equal(labels, object_id, out=plane)
    return prob


def resize_prob(prob: Float32Array, size_hw: tuple[int, int]) -> Float32Array:
    """Resize probabilities: area average if they shrink, bilinear if they grow.

    Args:
        prob: (K, H, W) float32.
        size_hw: (height, width) of the result.

    Returns:
        (K, height, width) float32; ``prob`` itself if it has this size.
    """
    if prob.shape[1:] == size_hw:
        return prob
    resized = np.empty((len(prob), *size_hw), np.float32)
    for plane, out in zip(prob, resized, strict=True):
        _resized(plane, size_hw, out)
    return resized


def flow_input(rgb: UInt8Array, size_hw: tuple[int, int]) -> Float32Array:
    """Make the input of the flow network from a frame.

    The frame is resized to the network's size, not padded: the authors of FlowNet 2.0 do so for
    sizes that are no multiple of 64 (scripts/run-flownet.py).

    Args:
        rgb: (H, W, 3) uint8.
        size_hw: (height, width) of the network.

    Returns:
        (1, 3, height, width) float32, RGB, 0..255.
    """
    image = np.empty((1, 3, *size_hw), np.float32)
    for plane, out in zip(cv2.split(resize_rgb(rgb, size_hw)), image[0], strict=True):
        out[:] = plane
    return image


def osvos_input(
    rgb: UInt8Array, size_hw: tuple[int, int], *, channel_order: str, mean: Sequence[float]
) -> Float32Array:
    """Make the input of OSVOS from a frame.

    Args:
        rgb: (H, W, 3) uint8.
        size_hw: (height, width) of the network.
        channel_order: Channel order of the network, ``"bgr"`` or ``"rgb"``.
        mean: Three means of 0..255 in the network's channel order, subtracted.

    Returns:
        (1, 3, height, width) float32.
    """
    planes = cv2.split(resize_rgb(rgb, size_hw))
    if channel_order.lower() == "bgr":
        planes = planes[::-1]
    image = np.empty((1, 3, *size_hw), np.float32)
    for plane, shift, out in zip(planes, mean, image[0], strict=True):
        np.subtract(plane, np.float32(shift), out=out)
    return image


def _resized(
    image: npt.NDArray[Any], size_hw: tuple[int, int], out: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    height, width = size_hw
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    # INTER_AREA averages only if both sides shrink; otherwise OpenCV copies the nearest pixel or
    # interpolates.
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized: npt.NDArray[Any] = cv2.resize(
        image, (width, height), dst=out, interpolation=interpolation
    )
    return resized
