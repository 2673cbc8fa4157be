"""Suppress unreliable warped probabilities, by the flow check and by colours."""

from __future__ import annotations

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter

from mpn.runtime.host.ops import flow_confidence
from mpn.runtime.host.roi import box_from_prob, with_margin
from mpn.types import BoolArray, Float32Array, Roi, UInt8Array

_BINS = (8, 32, 32)
"""Bins of L, a and b: lightness changes with shadow and exposure, so its bins are coarse."""
_AB_OFFSET, _AB_RANGE, _AB_STEP, _L_STEP = 64, 127, 4, 32
_SMOOTHING = (0.6, 1.2, 1.2)
"""Standard deviations in bins, so that a slight change of a colour changes the ratio little."""
_FLOOR = 1e-5
"""Added to both histograms: a colour in neither has a log ratio of 0."""
_LARGEST = 2.0
"""Bound of the log ratio, so that no single colour decides."""
_SURROUNDINGS_FRAC = 0.5
_SURROUNDINGS_PX_MIN = 30
_BLUR_SIGMA_PX = 2.0
_CERTAIN = 1e-3
"""Probabilities are clipped to this distance from 0 and 1 before their odds."""
_NOTHING = 0.01
"""Probabilities below this become 0, so that an object does not spread over its box."""


def colour_table(rgb: UInt8Array, mask: BoolArray) -> Float32Array:
    """Compute the log ratio of an object's colours to those around it.

    Args:
        rgb: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, the object.

    Returns:
        (8192,) float32: log of P(colour | object) / P(colour | surroundings), within +-2, by
        colour bin; 0 everywhere if the object or its surroundings have no pixel.
    """
    box = box_from_prob(mask.astype(np.float32), 0.5)
    if box is None:
        return np.zeros(int(np.prod(_BINS)), np.float32)
    around = with_margin(box, _SURROUNDINGS_FRAC, _SURROUNDINGS_PX_MIN, mask.shape)
    rows, columns = slice(around.y0, around.y1), slice(around.x0, around.x1)
    inside = mask[rows, columns]
    if inside.all():
        return np.zeros(int(np.prod(_BINS)), np.float32)
    bins = _bins(rgb[rows, columns])
    ratio = np.log((_histogram(bins[inside]) + _FLOOR) / (_histogram(bins[~inside]) + _FLOOR))
    table: Float32Array = np.clip(ratio, -_LARGEST, _LARGEST).astype(np.float32).ravel()
    return table


def weigh_by_colour(
    prob: Float32Array, rgb: UInt8Array, table: Float32Array, *, box: Roi, weight: float
) -> Float32Array:
    """Multiply the odds of a probability by the likelihood ratio of the colours.

    Args:
        prob: (h, w) float32 of the box, 0..1.
        rgb: (H, W, 3) uint8 RGB, the whole frame.
        table: (8192,) float32 from :func:`colour_table`.
        box: Box of ``prob`` in the frame.
        weight: Exponent of the ratio: odds(out) = odds(prob) * exp(weight * ratio(colour)), the
            log ratio blurred with a sigma of 2 px.

    Returns:
        (h, w) float32, 0..1; values under 0.01 are exactly 0.
    """
    ratio = table[_bins(rgb[box.y0 : box.y1, box.x0 : box.x1])]
    ratio = cv2.GaussianBlur(ratio, (0, 0), _BLUR_SIGMA_PX)
    certain = np.clip(prob, np.float32(_CERTAIN), np.float32(1 - _CERTAIN))
    odds = certain / (1 - certain) * np.exp(np.float32(weight) * ratio)
    weighed: Float32Array = odds / (1 + odds)
    weighed[~(weighed >= _NOTHING)] = 0
    return weighed


def mean_ratio(rgb: UInt8Array, table: Float32Array, mask: BoolArray, *, box: Roi) -> float:
    """Compute the mean log-likelihood ratio of the colours of some pixels.

    Args:
        rgb: (H, W, 3) uint8 RGB, the whole frame.
        table: (8192,) float32 from :func:`colour_table`.
        mask: (H, W) bool, the pixels; at least one.
        box: A box around them.

    Returns:
        The mean, within +-2: above 0 the colours are those of the object, below 0 those of its
        surroundings.
    """
    rows, columns = slice(box.y0, box.y1), slice(box.x0, box.x1)
    return float(table[_bins(rgb[rows, columns])][mask[rows, columns]].mean())


def _bins(rgb: UInt8Array) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
    flat: np.ndarray[tuple[int, ...], np.dtype[np.int32]] = _BIN_OF_LEVEL[0][lab[..., 0]]
    flat += _BIN_OF_LEVEL[1][lab[..., 1]]
    flat += _BIN_OF_LEVEL[2][lab[..., 2]]
    return flat


def _bin_of_level() -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.int32]], ...]:
    """Return for L, a and b the part of the flat bin number of each of 256 levels."""
    level = np.arange(256)
    ab = np.clip(level - _AB_OFFSET, 0, _AB_RANGE) // _AB_STEP
    shares = (level // _L_STEP * _BINS[1] * _BINS[2], ab * _BINS[2], ab)
    return tuple(share.astype(np.int32) for share in shares)


_BIN_OF_LEVEL = _bin_of_level()


def _histogram(bins: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> Float32Array:
    counts = np.bincount(bins, minlength=int(np.prod(_BINS))).reshape(_BINS)
    smooth = gaussian_filter(counts.astype(np.float32), _SMOOTHING)
    histogram: Float32Array = smooth / smooth.sum()
    return histogram


FLOW_CHECK_FRAC = 0.5
"""Tolerance of the flow check as a fraction of the flow's length: long flows are less exact."""


def suppress_unreliable(
    plane: Float32Array,
    box: Roi,
    *,
    flow_to_prev_px: Float32Array,
    flow_from_prev_px: Float32Array | None,
    flow_check_px: float,
    rgb: UInt8Array,
    colour_table: Float32Array | None,
    colour_weight: float,
) -> None:
    """Suppress the unreliable part of an object's warped probability, in place.

    The runtime and the rollouts of training both call this function, so that a network is trained
    on the inputs of the runtime.

    Args:
        plane: (H, W) float32, 0..1; changed only inside ``box``.
        box: A box outside which ``plane`` is 0.
        flow_to_prev_px: (2, H, W) float32 on the current frame's grid.
        flow_from_prev_px: (2, H, W) float32 on the previous frame's grid; None omits the check.
        flow_check_px: See :class:`mpn.runtime.options.PipelineOptions`.
        rgb: (H, W, 3) uint8 RGB, the current frame.
        colour_table: From :func:`colour_table`; None omits the colours.
        colour_weight: See :class:`mpn.runtime.options.PipelineOptions`.
    """
    view = plane[box.y0 : box.y1, box.x0 : box.x1]
    if flow_from_prev_px is not None:
        view *= flow_confidence(
            flow_to_prev_px,
            flow_from_prev_px,
            box=box,
            sigma_px=flow_check_px,
            sigma_frac=FLOW_CHECK_FRAC,
        )
    if colour_table is not None:
        view[:] = weigh_by_colour(view, rgb, colour_table, box=box, weight=colour_weight)
