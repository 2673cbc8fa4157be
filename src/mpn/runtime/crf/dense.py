"""Infer a fully connected CRF over the pixels of one image, by mean field.

Source: Kraehenbuehl and Koltun, NeurIPS 2011, with the choices of pydensecrf: Potts compatibility,
symmetric normalisation, and a term of each pixel with itself:

    Q <- softmax(-unary + sum_m compat_m K_m Q)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from mpn._common.validation import check_int, check_number
from mpn.errors import InputError
from mpn.runtime.crf.kernels import Kernel, SpatialKernel, bilateral_kernel
from mpn.types import Float32Array, UInt8Array, check_rgb


def dense_crf(
    unary: Float32Array,
    rgb: UInt8Array,
    *,
    sxy_gaussian: float | None,
    compat_gaussian: float,
    sxy_bilateral: float | None,
    srgb_bilateral: float | None,
    compat_bilateral: float,
    iterations: int,
) -> Float32Array:
    """Compute the mean-field marginals of a dense CRF with two Gaussian kernels.

    Args:
        unary: (L, H, W) float32, finite: -log of each label's probability.
        rgb: (H, W, 3) uint8 RGB.
        sxy_gaussian: Standard deviation of the spatial kernel in pixels.
        compat_gaussian: Its weight; 0 omits the kernel, and its deviation may then be None.
        sxy_bilateral: Spatial standard deviation of the bilateral kernel in pixels.
        srgb_bilateral: Its standard deviation in colour, in levels of 0..255.
        compat_bilateral: Its weight; 0 omits the kernel, and its deviations may then be None.
        iterations: Mean-field updates, at least 1.

    Returns:
        (L, H, W) float32: the labels' probabilities, which sum to 1 at each pixel.

    Raises:
        InputError: If an array has another shape or dtype or holds a value that is not finite, a
            parameter is out of range, or the deviations are too small for the size of the image.
    """
    _check_unary(unary, rgb)
    weight_gaussian = check_number("compat_gaussian", _plain(compat_gaussian), least=0)
    weight_bilateral = check_number("compat_bilateral", _plain(compat_bilateral), least=0)
    updates = check_int("iterations", _plain(iterations), least=1)
    sxy_of_places = _checked_sigma("sxy_gaussian", sxy_gaussian, weight_gaussian)
    sxy_of_colours = _checked_sigma("sxy_bilateral", sxy_bilateral, weight_bilateral)
    srgb_of_colours = _checked_sigma("srgb_bilateral", srgb_bilateral, weight_bilateral)
    kernels: list[tuple[Kernel, float]] = []
    if weight_gaussian:
        height, width = rgb.shape[:2]
        kernels.append((SpatialKernel((height, width), sxy=sxy_of_places), weight_gaussian))
    if weight_bilateral:
        kernel = bilateral_kernel(rgb, sxy=sxy_of_colours, srgb=srgb_of_colours)
        kernels.append((kernel, weight_bilateral))
    return _mean_field(unary, kernels, updates)


def _mean_field(
    unary: Float32Array, kernels: list[tuple[Kernel, float]], iterations: int
) -> Float32Array:
    q = _softmax_in_place(np.negative(unary, order="C"))
    # The labels' probabilities sum to 1, and the kernels are linear: the messages of all labels sum
    # to the message of a plane of ones, so label 0 needs no filtering.
    of_ones = np.zeros(unary.shape[1:], np.float32)
    for kernel, weight in kernels:
        of_ones += np.float32(weight) * kernel.of_ones
    for _ in range(iterations):
        q[0] = of_ones
        for label in range(1, len(q)):  # in place: a message depends on one label only
            message = np.zeros_like(of_ones)
            for kernel, weight in kernels:
                message += np.float32(weight) * kernel.apply(q[label])
            q[0] -= message
            np.subtract(message, unary[label], out=q[label])
        q[0] -= unary[0]
        _softmax_in_place(q)
    return q


def _softmax_in_place(logits: Float32Array) -> Float32Array:
    """Compute the softmax over the first axis."""
    logits -= logits.max(axis=0)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=0)
    return logits


def _check_unary(unary: npt.NDArray[Any], rgb: npt.NDArray[Any]) -> None:
    check_rgb(rgb)
    if unary.ndim != 3 or unary.dtype != np.float32:
        raise InputError(f"unary must be (L, H, W) float32, got {unary.shape} {unary.dtype}")
    if unary.shape[1:] != rgb.shape[:2]:
        raise InputError(
            f"unary is {unary.shape[2]}x{unary.shape[1]} but the picture is "
            f"{rgb.shape[1]}x{rgb.shape[0]} (width x height): give both the same size"
        )
    if unary.size == 0:
        raise InputError(f"unary must have at least one label and one pixel, got {unary.shape}")
    if not math.isfinite(float(unary.sum(dtype=np.float64))):
        broken = np.argwhere(~np.isfinite(unary))
        label, row, column = (int(i) for i in broken[0])
        raise InputError(
            f"unary has {len(broken)} values that are not finite of {unary.size}, the first "
            f"({unary[label, row, column]}) at label {label}, row {row}, column {column}: give "
            "-log(p) of probabilities clipped to at least 1e-5"
        )


def _checked_sigma(name: str, value: float | None, weight: float) -> float:
    """Check a standard deviation; an omitted kernel accepts 0 and None too."""
    number = _plain(value)
    if weight == 0:
        return 0.0 if number is None else check_number(name, number, least=0)
    return check_number(name, number, above=0)


def _plain(value: Any) -> Any:
    """Return a NumPy scalar as a Python number, anything else unchanged."""
    return value.item() if isinstance(value, np.generic) else value
