"""Reference of kernels/crf_meanfield.cu: see :mod:`tests.reference.kernels`."""

from __future__ import annotations

import numpy as np

from mpn.types import Float32Array, UInt8Array
from tests.reference.kernels.boxes import Int32Array
from tests.reference.kernels.regions import regions_of, total_pixels

_SMALLEST_PROB = np.float32(1e-5)
_NARROWEST_SIGMA = np.float32(0.2)


def crf_regions(
    boxes: Int32Array,
    objects: int,
    margin_px: int,
    is_whole_frame: int,
    height: int,
    width: int,
    regions: Int32Array,
    starts: Int32Array,
    region_of_object: Int32Array,
    refined_boxes: Int32Array,
) -> None:
    """Add the margin to each box and merge boxes until none overlap."""
    groups: list[tuple[list[int], set[int]]] = []
    for k, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        if x1 <= x0 or y1 <= y0:
            continue
        box = [
            max(x0 - margin_px, 0),
            max(y0 - margin_px, 0),
            min(x1 + margin_px, width),
            min(y1 + margin_px, height),
        ]
        members = {k}
        if is_whole_frame:
            box = [0, 0, width, height]
        while touching := [group for group in groups if _touch(box, group[0])]:
            for other, theirs in touching:
                box = [*map(min, box[:2], other[:2]), *map(max, box[2:], other[2:])]
                members |= theirs
                groups.remove((other, theirs))
        groups.append((box, members))
    regions[:] = 0
    region_of_object[:] = -1
    refined_boxes[:] = 0
    starts[:] = 0
    for region, (box, members) in enumerate(groups):
        regions[region] = box
        starts[region + 1 :] += (box[2] - box[0]) * (box[3] - box[1])
        region_of_object[sorted(members)] = region
        refined_boxes[sorted(members)] = box


def crf_unary(
    merged: Float32Array,
    regions: Int32Array,
    starts: Int32Array,
    region_of_object: Int32Array,
    objects: int,
    height: int,
    width: int,
    capacity: int,
    unary: Float32Array,
) -> None:
    """Compute -log of all probabilities; infinite for objects of other regions."""
    for region, pixels, window, _ in regions_of(regions, starts, objects):
        background = np.ones(pixels.stop - pixels.start, np.float32)
        for k in range(objects):
            if region_of_object[k] == region:
                prob = merged[k][window].ravel()
                background -= prob
                unary[k + 1, pixels] = _negative_log(prob)
            else:
                unary[k + 1, pixels] = np.inf
        unary[0, pixels] = _negative_log(background)


def crf_start(
    unary: Float32Array,
    starts: Int32Array,
    objects: int,
    labels: int,
    capacity: int,
    q: Float32Array,
) -> None:
    """Compute Q before the first update."""
    here = slice(total_pixels(starts, objects))
    q[:, here] = _softmax(-unary.reshape(labels, capacity)[:, here])


def crf_rows(
    regions: Int32Array,
    starts: Int32Array,
    objects: int,
    width: int,
    planes: Float32Array | None,
    norm: Float32Array | None,
    taps: Float32Array,
    reach: int,
    channels: int,
    capacity: int,
    filtered: Float32Array,
) -> None:
    """Apply the spatial kernel along rows."""
    for _, pixels, _, size_hw in regions_of(regions, starts, objects):
        for c in range(channels):
            values = _values(planes, norm, c, pixels).reshape(size_hw)
            filtered[c, pixels] = _convolved(values, taps, reach).ravel()


def crf_columns(
    regions: Int32Array,
    starts: Int32Array,
    objects: int,
    width: int,
    planes: Float32Array,
    taps: Float32Array,
    reach: int,
    channels: int,
    capacity: int,
    filtered: Float32Array,
) -> None:
    """Apply the spatial kernel along columns."""
    for _, pixels, _, size_hw in regions_of(regions, starts, objects):
        for c in range(channels):
            values = planes[c, pixels].reshape(size_hw)
            filtered[c, pixels] = _convolved(values.T, taps, reach).T.ravel()


def crf_all_pairs(
    rgb: UInt8Array,
    regions: Int32Array,
    starts: Int32Array,
    objects: int,
    width: int,
    planes: Float32Array | None,
    norm: Float32Array | None,
    sxy: float,
    srgb: float,
    exact_pixels: int,
    channels: int,
    capacity: int,
    filtered: Float32Array,
) -> None:
    """Apply the bilateral kernel to all pixel pairs of small regions."""
    per_px, per_level = (
        np.float32(-0.5) / max(np.float32(sigma), _NARROWEST_SIGMA) ** 2 for sigma in (sxy, srgb)
    )
    for _, pixels, window, size_hw in regions_of(regions, starts, objects):
        if size_hw[0] * size_hw[1] > exact_pixels:
            continue
        places = np.indices(size_hw).reshape(2, -1)
        colours = rgb[window].reshape(-1, 3).T.astype(np.int64)
        squared_px, squared_levels = (
            ((values[:, :, None] - values[:, None, :]) ** 2).sum(axis=0).astype(np.float32)
            for values in (places, colours)
        )
        exponent = squared_px * per_px + squared_levels * per_level
        kernel = np.exp(np.maximum(exponent, np.float32(-80)))
        for c in range(channels):
            filtered[c, pixels] = kernel @ _values(planes, norm, c, pixels)


def crf_norm(
    degree: Float32Array, starts: Int32Array, objects: int, capacity: int, norm: Float32Array
) -> None:
    """Compute D^-1/2."""
    here = slice(total_pixels(starts, objects))
    norm[here] = 1 / np.sqrt(degree.reshape(-1)[here])


def crf_of_ones(
    filtered: Float32Array,
    norm: Float32Array,
    starts: Int32Array,
    objects: int,
    capacity: int,
    compat: float,
    is_first: int,
    of_ones: Float32Array,
) -> None:
    """Compute the message of a plane of ones, summed over the kernels."""
    here = slice(total_pixels(starts, objects))
    message = np.float32(compat) * (filtered.reshape(-1)[here] * norm[here])
    of_ones[here] = message if is_first else of_ones[here] + message


def crf_update(
    unary: Float32Array,
    of_ones: Float32Array | None,
    spatial: Float32Array | None,
    spatial_norm: Float32Array | None,
    bilateral: Float32Array | None,
    bilateral_norm: Float32Array | None,
    starts: Int32Array,
    objects: int,
    labels: int,
    capacity: int,
    spatial_compat: float,
    bilateral_compat: float,
    q: Float32Array,
) -> None:
    """Compute one mean-field update."""
    here = slice(total_pixels(starts, objects))
    logits = np.zeros((labels, here.stop), np.float32)
    for filtered, norm, compat in (
        (spatial, spatial_norm, spatial_compat),
        (bilateral, bilateral_norm, bilateral_compat),
    ):
        if filtered is not None and norm is not None:
            logits[1:] += np.float32(compat) * (filtered[: labels - 1, here] * norm[here])
    if of_ones is not None:
        logits[0] = of_ones[here]
    logits[0] -= logits[1:].sum(axis=0)
    q[:, here] = _softmax(logits - unary.reshape(labels, capacity)[:, here])


def crf_store(
    q: Float32Array,
    regions: Int32Array,
    starts: Int32Array,
    region_of_object: Int32Array,
    objects: int,
    height: int,
    width: int,
    capacity: int,
    refined: Float32Array,
) -> None:
    """Write the marginals of the objects into the frame."""
    for region, pixels, window, size_hw in regions_of(regions, starts, objects):
        for k in np.flatnonzero(region_of_object == region):
            refined[k][window] = q[k + 1, pixels].reshape(size_hw)


def _touch(one: list[int], other: list[int]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _negative_log(prob: Float32Array) -> Float32Array:
    known = np.nan_to_num(prob, nan=0.0)
    cost: Float32Array = -np.log(np.clip(known, _SMALLEST_PROB, np.float32(1)))
    return cost


def _softmax(logits: Float32Array) -> Float32Array:
    weight = np.exp(logits - logits.max(axis=0))
    share: Float32Array = weight / weight.sum(axis=0)
    return share


def _values(
    planes: Float32Array | None, norm: Float32Array | None, channel: int, pixels: slice
) -> Float32Array:
    values = np.ones(pixels.stop - pixels.start, np.float32)
    if planes is not None:
        values = planes[channel, pixels]
    return values if norm is None else values * norm[pixels]


def _convolved(values: Float32Array, taps: Float32Array, reach: int) -> Float32Array:
    """Convolve rows; values outside are 0."""
    padded = np.pad(values, ((0, 0), (reach, reach)))
    convolved = np.zeros_like(values)
    for i in range(-reach, reach + 1):
        convolved += taps[abs(i)] * padded[:, reach + i : reach + i + values.shape[1]]
    return convolved
