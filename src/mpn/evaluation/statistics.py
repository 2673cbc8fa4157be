"""Mean, recall and decay of a measure over the frames of one object."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpn.errors import EvaluationError

RECALL_THRESHOLD = 0.5
"""Value above which a frame is recalled (strictly)."""
DECAY_BINS = 4


@dataclass(frozen=True)
class Statistics:
    """Mean, recall and decay, as fractions.

    Attributes:
        mean: Mean value, 0..1.
        recall: Share of the frames above :data:`RECALL_THRESHOLD`, 0..1.
        decay: Mean of the first quarter minus mean of the last, -1..1; positive if quality
            decreases.
    """

    mean: float
    recall: float
    decay: float


def statistics_from_values(values: Sequence[float]) -> Statistics:
    """Summarise one object's values as davis2017-evaluation does.

    NaN is ignored in mean and decay, and is not recalled. Adjacent quarters share one frame, as in
    the official code. That code has uint8 indices, which overflow from 256 frames on and make the
    decay meaningless; here it is correct for any length.

    Args:
        values: One value per scored frame, in order.

    Raises:
        EvaluationError: If there is no value.
    """
    if len(values) == 0:
        raise EvaluationError("no frame was scored: statistics need at least one value")
    array = np.asarray(values, np.float64)
    edges = np.round(np.linspace(1, len(array), DECAY_BINS + 1) + 1e-10).astype(np.int64) - 1
    first = array[edges[0] : edges[1] + 1]
    last = array[edges[-2] : edges[-1] + 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of only NaN is NaN
        return Statistics(
            mean=float(np.nanmean(array)),
            recall=float(np.mean(array > RECALL_THRESHOLD)),
            decay=float(np.nanmean(first) - np.nanmean(last)),
        )
