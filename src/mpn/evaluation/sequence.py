"""Scoring of one sequence frame by frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpn.errors import EvaluationError
from mpn.evaluation.boundary import (
    BOUNDARY_TOLERANCE,
    boundary_measures,
    radius_px_from_tolerance,
    union_window,
)
from mpn.evaluation.region import region_similarity
from mpn.evaluation.scores import ObjectScore, SequenceScore
from mpn.types import UInt8Array

VOID_ID = 255


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of the score.

    Attributes:
        boundary_tolerance: Tolerance of F: below 1 a fraction of the diagonal, otherwise pixels.
        workers: Processes that score sequences in parallel; 1 scores in this process.
    """

    boundary_tolerance: float = BOUNDARY_TOLERANCE
    workers: int = 1


DEFAULT_OPTIONS = EvaluationOptions()


@dataclass(frozen=True)
class _Pending:
    """Frame to score when the next one shows that it is not the last."""

    gt_labels: UInt8Array
    pred_labels: UInt8Array | None
    source: Path


class SequenceEvaluator:
    """Score of one sequence, computed frame by frame, with two frames in memory.

    The rules are those of the official semi-supervised evaluation. Objects are 1..N, with N the
    largest id of the first annotation. The first and the last frame are not scored. Void (255) is
    background, because only the unsupervised task ignores it.

    Args:
        name: Name of the sequence, for scores and messages.
        options: Options of the score.
    """

    def __init__(self, name: str, options: EvaluationOptions = DEFAULT_OPTIONS) -> None:
        self._name = name
        self._options = options
        self._num_objects = 0
        self._fed = 0
        self._size_hw: tuple[int, int] | None = None
        self._pending: _Pending | None = None
        self._frames: list[str] = []
        self._region_values: list[list[float]] = []
        self._boundary_values: list[list[float]] = []

    def feed(
        self,
        gt_labels: UInt8Array,
        pred_labels: UInt8Array | None,
        *,
        source: Path | None = None,
        gt_source: Path | None = None,
    ) -> None:
        """Add the next frame.

        Args:
            gt_labels: (H, W) uint8 ids of the ground truth, 0 background, 255 void.
            pred_labels: (H, W) uint8 predicted ids. Ignored for the first and the last frame, for
                which it may be None.
            source: File of the prediction, for messages; its stem is the frame's name in the score.
                Default is the frame's number.
            gt_source: File of the ground truth, for messages.

        Raises:
            EvaluationError: If the ground truth has no object or another size, or a scored
                prediction is missing, has another size, void, or an unknown id. A prediction is
                checked with the next frame.
        """
        if self._size_hw is None:
            self._start(gt_labels, gt_source or self._name)
            return
        if gt_labels.shape != self._size_hw or gt_labels.dtype != np.uint8:
            raise EvaluationError(
                f"{gt_source or f'{self._name}, frame {self._fed}'}: the annotation is "
                f"{_kind(gt_labels)} but the first one of the sequence is "
                f"{self._size_hw[1]}x{self._size_hw[0]} (width x height) uint8"
            )
        self._score_pending()
        self._fed += 1
        self._pending = _Pending(
            gt_labels=gt_labels.copy(),
            pred_labels=None if pred_labels is None else pred_labels.copy(),
            source=source or Path(self._name, f"{self._fed - 1:05d}"),
        )

    def conclude(self) -> SequenceScore:
        """Ignore the last frame and summarise the others.

        Raises:
            EvaluationError: If there are fewer than three frames.
        """
        if not self._frames:
            raise EvaluationError(
                f"{self._name} has no frame to score: at least three are needed, since "
                f"the first and the last do not count"
            )
        return SequenceScore(
            name=self._name,
            frames=tuple(self._frames),
            objects=tuple(
                ObjectScore.from_values(
                    self._name, k + 1, self._region_values[k], self._boundary_values[k]
                )
                for k in range(self._num_objects)
            ),
        )

    def _start(self, gt_labels: UInt8Array, source: Path | str) -> None:
        if gt_labels.ndim != 2 or gt_labels.dtype != np.uint8:
            raise EvaluationError(
                f"{source}: annotations must be (H, W) uint8 ids, got {_kind(gt_labels)}"
            )
        self._num_objects = object_count(gt_labels)
        if self._num_objects == 0:
            raise EvaluationError(
                f"{source}: the first annotation has no object (ids 1..254); a 0/255 "
                f"mask has to be saved with ids 0 and 1"
            )
        self._size_hw = (gt_labels.shape[0], gt_labels.shape[1])
        self._fed = 1
        self._region_values = [[] for _ in range(self._num_objects)]
        self._boundary_values = [[] for _ in range(self._num_objects)]

    def _score_pending(self) -> None:
        pending = self._pending
        if pending is None or self._size_hw is None:
            return
        pred_labels = pending.pred_labels
        if pred_labels is None:
            raise EvaluationError(
                f"{pending.source}: there is no prediction, but the frame is scored"
            )
        check_prediction(
            pred_labels,
            size_hw=self._size_hw,
            num_objects=self._num_objects,
            source=pending.source,
        )
        region, boundary = measures_from_labels(
            pending.gt_labels,
            pred_labels,
            self._num_objects,
            radius_px_from_tolerance(self._options.boundary_tolerance, self._size_hw),
        )
        for k in range(self._num_objects):
            self._region_values[k].append(region[k])
            self._boundary_values[k].append(boundary[k])
        self._frames.append(pending.source.stem)


def measures_from_labels(
    gt_labels: UInt8Array, pred_labels: UInt8Array, num_objects: int, radius_px: int
) -> tuple[list[float], list[float]]:
    """Compute J and F of every object of one frame.

    Args:
        gt_labels: (H, W) uint8 ids of the ground truth; ids above ``num_objects``, including void,
            count as background.
        pred_labels: (H, W) uint8 predicted ids.
        num_objects: N; the objects are 1..N.
        radius_px: Tolerance of F, see :func:`mpn.evaluation.boundary.radius_px_from_tolerance`.

    Returns:
        N values of J and N of F, each 0..1.
    """
    window = union_window(gt_labels, pred_labels)  # shared by J and F of all objects
    gt_part, pred_part = gt_labels[window], pred_labels[window]
    pairs = [(gt_part == k, pred_part == k) for k in range(1, num_objects + 1)]
    return [region_similarity(*pair) for pair in pairs], boundary_measures(pairs, radius_px)


def object_count(first_gt_labels: UInt8Array) -> int:
    """Return the largest id of the first annotation without void.

    Skipped ids count as objects too.
    """
    return int(first_gt_labels.max(where=first_gt_labels != VOID_ID, initial=0))


def check_prediction(
    pred_labels: UInt8Array, *, size_hw: tuple[int, int], num_objects: int, source: Path
) -> None:
    """Raise EvaluationError unless these are ids 0..N of the right size."""
    if pred_labels.shape != size_hw or pred_labels.dtype != np.uint8:
        raise EvaluationError(
            f"{source}: the prediction is {_kind(pred_labels)} but the annotation is "
            f"{size_hw[1]}x{size_hw[0]} (width x height) uint8; predictions are scored at the size "
            f"of the annotations"
        )
    largest = int(pred_labels.max())
    if largest == VOID_ID:
        raise EvaluationError(
            f"{source}: the prediction has the value 255, which is void in DAVIS and no object; "
            f"save ids 0..{num_objects}, not a 0/255 mask"
        )
    if largest > num_objects:
        surplus = sorted(set(np.unique(pred_labels).tolist()) - set(range(num_objects + 1)))
        raise EvaluationError(
            f"{source}: the prediction has id {', '.join(map(str, surplus))}, but the first "
            f"annotation has the objects 1..{num_objects}"
        )


def _kind(labels: UInt8Array) -> str:
    if labels.ndim != 2:
        return f"{labels.dtype} of shape {labels.shape}"
    return f"{labels.shape[1]}x{labels.shape[0]} {labels.dtype}"
