"""Reference of kernels/crf_filter.cu: see :mod:`tests.reference.kernels`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpn.types import Float32Array
from tests.reference.kernels.boxes import Int32Array
from tests.reference.kernels.regions import total_pixels

UInt64Array = npt.NDArray[np.uint64]

_FIXED_ONE = np.float32(2**40)


def crf_splat(
    starts: Int32Array,
    objects: int,
    corners: Int32Array,
    weights: Float32Array,
    planes: Float32Array | None,
    norm: Float32Array | None,
    channels: int,
    capacity: int,
    sums: UInt64Array,
) -> None:
    """Add values to their vertices, in units of 2^-40."""
    pixels = np.flatnonzero(corners[: total_pixels(starts, objects), 0] >= 0)
    by_channel = sums.reshape(-1)[: sums.size // channels * channels].reshape(-1, channels)
    for c in range(channels):
        value = np.ones(len(pixels), np.float32)
        if planes is not None:
            value = planes[c, pixels]
        if norm is not None:
            value = value * norm[pixels]
        spread = np.rint(weights[pixels] * value[:, None] * _FIXED_ONE).astype(np.uint64)
        np.add.at(by_channel[:, c], corners[pixels], spread)


def crf_blur_sums(
    vertices: Int32Array,
    neighbours: Int32Array,
    sums: UInt64Array,
    channels: int,
    blocks: int,
    blurred: Float32Array,
) -> None:
    """Blur fixed-point sums along the first direction."""
    values = sums.astype(np.float32) * (1 / _FIXED_ONE)
    crf_blur(vertices, neighbours, 0, values, channels, blocks, blurred, None)


def crf_blur(
    vertices: Int32Array,
    neighbours: Int32Array,
    axis: int,
    values: Float32Array,
    channels: int,
    blocks: int,
    blurred: Float32Array,
    sums: UInt64Array | None,
) -> None:
    """Blur with [1/2, 1, 1/2] along one direction."""
    count = int(vertices[0])
    here = values.reshape(-1)[: count * channels].reshape(count, channels)
    sides = np.zeros_like(here)
    for near in neighbours[:count, axis].T:
        sides += np.where(near[:, None] >= 0, here[near], np.float32(0))
    blurred.reshape(-1)[: count * channels] = (here + np.float32(0.5) * sides).ravel()
    if sums is not None:
        sums.reshape(-1)[: count * channels] = 0


def crf_slice(
    starts: Int32Array,
    objects: int,
    corners: Int32Array,
    weights: Float32Array,
    values: Float32Array,
    channels: int,
    capacity: int,
    planes: Float32Array,
) -> None:
    """Interpolate blurred values at the pixels."""
    pixels = np.flatnonzero(corners[: total_pixels(starts, objects), 0] >= 0)
    by_channel = values.reshape(-1)[: values.size // channels * channels].reshape(-1, channels)
    for c in range(channels):
        planes[c, pixels] = (weights[pixels] * by_channel[corners[pixels], c]).sum(axis=1)
