"""Results of an evaluation: per frame, per object, over a set."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpn._common.files import write_text_atomically
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


@dataclass(frozen=True)
class ObjectScore:
    """J and F of one object of one sequence.

    Attributes:
        sequence: Name of the sequence.
        object_id: The value in the labels, from 1.
        region_values: J of each scored frame, 0..1.
        boundary_values: F of each scored frame, 0..1.
        region: Statistics of J.
        boundary: Statistics of F.
    """

    sequence: str
    object_id: int
    region_values: tuple[float, ...]
    boundary_values: tuple[float, ...]
    region: Statistics
    boundary: Statistics

    @property
    def name(self) -> str:
        """Name ``<sequence>_<id>``, as in the official tool."""
        return f"{self.sequence}_{self.object_id}"

    @property
    def j_and_f(self) -> float:
        """Mean of mean J and mean F, 0..1."""
        return (self.region.mean + self.boundary.mean) / 2

    @classmethod
    def from_values(
        cls,
        sequence: str,
        object_id: int,
        region_values: Sequence[float],
        boundary_values: Sequence[float],
    ) -> ObjectScore:
        """Compute the statistics of the given values."""
        return cls(
            sequence=sequence,
            object_id=object_id,
            region_values=tuple(region_values),
            boundary_values=tuple(boundary_values),
            region=statistics_from_values(region_values),
            boundary=statistics_from_values(boundary_values),
        )


@dataclass(frozen=True)
class SequenceScore:
    """Scores of one sequence.

    Attributes:
        name: Name of the sequence.
        frames: Names of the scored frames, in the order of the per-frame values.
        objects: In the order of their ids.
    """

    name: str
    frames: tuple[str, ...]
    objects: tuple[ObjectScore, ...]


@dataclass(frozen=True)
class DatasetScore:
    """Scores of one set; its figures are means over objects, not over sequences.

    Attributes:
        set_name: For example ``"val"``.
        sequences: In the order of the set list.
    """

    set_name: str
    sequences: tuple[SequenceScore, ...]

    @property
    def objects(self) -> tuple[ObjectScore, ...]:
        """Every object of every sequence."""
        return tuple(score for sequence in self.sequences for score in sequence.objects)

    @property
    def region(self) -> Statistics:
        """Means over objects of the statistics of J."""
        return _mean_statistics(score.region for score in self.objects)

    @property
    def boundary(self) -> Statistics:
        """Means over objects of the statistics of F."""
        return _mean_statistics(score.boundary for score in self.objects)

    @property
    def j_and_f(self) -> float:
        """Mean of mean J and mean F, 0..1: the DAVIS ranking figure."""
        return (self.region.mean + self.boundary.mean) / 2


def _mean_statistics(statistics: Iterable[Statistics]) -> Statistics:
    rows = [(value.mean, value.recall, value.decay) for value in statistics]
    mean, recall, decay = np.mean(np.array(rows), axis=0).tolist()
    return Statistics(mean=mean, recall=recall, decay=decay)


GLOBAL_COLUMNS = (
    "J&F-Mean",
    "J-Mean",
    "J-Recall",
    "J-Decay",
    "F-Mean",
    "F-Recall",
    "F-Decay",
)
PER_SEQUENCE_COLUMNS = ("Sequence", "J-Mean", "F-Mean")


def global_csv_name(set_name: str) -> str:
    """Return the official tool's file name for the figures of a set."""
    return f"global_results-{set_name}.csv"


def per_sequence_csv_name(set_name: str) -> str:
    """Return the official tool's file name for the figures of each object."""
    return f"per-sequence_results-{set_name}.csv"


def global_csv_from_score(score: DatasetScore) -> str:
    """Format the official table of a set: fractions with three decimals."""
    row = ",".join(f"{value:.3f}" for value in _global_values(score))
    return f"{','.join(GLOBAL_COLUMNS)}\n{row}\n"


def per_sequence_csv_from_score(score: DatasetScore) -> str:
    """Format the official table of objects, one row each.

    Rows are named ``<sequence>_<id>``.
    """
    rows = [
        f"{scored.name},{scored.region.mean:.3f},{scored.boundary.mean:.3f}"
        for scored in score.objects
    ]
    return "\n".join([",".join(PER_SEQUENCE_COLUMNS), *rows]) + "\n"


def json_from_score(score: DatasetScore, *, per_frame: bool = False) -> dict[str, Any]:
    """Convert the figures to JSON types, fractions at full precision.

    Args:
        score: The score.
        per_frame: Add ``"frames"``, the frame names of each sequence, and ``"J"`` and ``"F"`` of
            each object in every frame.

    Returns:
        ``{"global": {"J&F-Mean": ...}, "objects": {"<sequence>_<id>": {"J-Mean": ...}}}``, with
        every column of the global CSV that applies.
    """
    objects: dict[str, dict[str, Any]] = {}
    for scored in score.objects:
        objects[scored.name] = {
            **_columns("J", scored.region),
            **_columns("F", scored.boundary),
        }
        if per_frame:
            objects[scored.name]["J"] = list(scored.region_values)
            objects[scored.name]["F"] = list(scored.boundary_values)
    figures: dict[str, Any] = {
        "global": dict(zip(GLOBAL_COLUMNS, _global_values(score), strict=True)),
        "objects": objects,
    }
    if per_frame:
        figures["frames"] = {sequence.name: list(sequence.frames) for sequence in score.sequences}
    return figures


def paper_line_from_score(score: DatasetScore) -> str:
    """Format one line of percentages in the order of the DAVIS tables."""
    region, boundary = score.region, score.boundary
    return (
        f"J&F {100 * score.j_and_f:.1f} | "
        f"J mean {100 * region.mean:.1f} recall {100 * region.recall:.1f} "
        f"decay {100 * region.decay:.1f} | "
        f"F mean {100 * boundary.mean:.1f} recall {100 * boundary.recall:.1f} "
        f"decay {100 * boundary.decay:.1f}"
    )


def save_csvs(score: DatasetScore, directory: Path) -> tuple[Path, Path]:
    """Write both official CSV files atomically, replacing older ones.

    Args:
        score: The score.
        directory: An existing folder; the official tool uses the results folder.

    Returns:
        Paths of the global and the per-sequence file.

    Raises:
        OutputError: If they cannot be written.
    """
    texts = (
        (directory / global_csv_name(score.set_name), global_csv_from_score(score)),
        (directory / per_sequence_csv_name(score.set_name), per_sequence_csv_from_score(score)),
    )
    for path, text in texts:
        write_text_atomically(path, text, durable=True)
    return texts[0][0], texts[1][0]


def _global_values(score: DatasetScore) -> tuple[float, ...]:
    region, boundary = score.region, score.boundary
    return (
        score.j_and_f,
        region.mean,
        region.recall,
        region.decay,
        boundary.mean,
        boundary.recall,
        boundary.decay,
    )


def _columns(measure: str, statistics: Statistics) -> dict[str, float]:
    return {
        f"{measure}-Mean": statistics.mean,
        f"{measure}-Recall": statistics.recall,
        f"{measure}-Decay": statistics.decay,
    }
