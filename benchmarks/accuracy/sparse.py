"""Score a sequence of which only some frames are annotated."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mpn.errors import EvaluationError
from mpn.evaluation.boundary import BOUNDARY_TOLERANCE, radius_px_from_tolerance
from mpn.evaluation.scores import ObjectScore, SequenceScore
from mpn.evaluation.sequence import (
    VOID_ID,
    check_prediction,
    measures_from_labels,
    object_count,
)
from mpn.types import UInt8Array


class SparseEvaluator:
    """Score of the annotated frames of one sequence.

    Objects are 1..N, with N the largest id of the first annotation. All annotated frames after the
    first are scored, the last one too. Void pixels (255) are cleared in the ground truth and in the
    prediction before J and F are computed, as ``void_mask`` of :mod:`mpn.evaluation` does.

    Args:
        name: Name of the sequence, for scores and messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._num_objects: int | None = None
        self._frames: list[str] = []
        self._values: list[tuple[list[float], list[float]]] = []

    def feed(
        self, gt_labels: UInt8Array, pred_labels: UInt8Array | None, *, source: Path | None = None
    ) -> None:
        """Add the next annotated frame; the first one gives the objects.

        Args:
            gt_labels: (H, W) uint8 ids of the ground truth, 0 background, 255 void.
            pred_labels: (H, W) uint8 predicted ids.
            source: File of the annotation, for messages; its stem is the frame's name in the score.

        Raises:
            EvaluationError: If the first annotation has no object, or a prediction is missing, has
                another size, void or an unknown id.
        """
        source = source or Path(self._name, f"{len(self._frames):05d}")
        if self._num_objects is None:
            self._num_objects = object_count(gt_labels)
            if not self._num_objects:
                raise EvaluationError(f"{source}: the first annotation has no object (ids 1..254)")
            return
        if pred_labels is None:
            raise EvaluationError(f"{source}: there is no prediction, but the frame is scored")
        height, width = gt_labels.shape
        check_prediction(
            pred_labels,
            size_hw=(height, width),
            num_objects=self._num_objects,
            source=source,
        )
        is_void = gt_labels == VOID_ID
        cleared = (np.where(is_void, np.uint8(0), part) for part in (gt_labels, pred_labels))
        radius_px = radius_px_from_tolerance(BOUNDARY_TOLERANCE, (height, width))
        self._values.append(measures_from_labels(*cleared, self._num_objects, radius_px))
        self._frames.append(source.stem)

    def conclude(self) -> SequenceScore:
        """Summarise all scored frames.

        Raises:
            EvaluationError: If no frame is annotated after the first.
        """
        if not self._values:
            raise EvaluationError(f"{self._name} has no annotated frame after the first to score")
        region, boundary = (
            np.array(values).T.tolist() for values in zip(*self._values, strict=True)
        )
        return SequenceScore(
            name=self._name,
            frames=tuple(self._frames),
            objects=tuple(
                ObjectScore.from_values(self._name, k, of_region, of_boundary)
                for k, (of_region, of_boundary) in enumerate(
                    zip(region, boundary, strict=True), start=1
                )
            ),
        )
