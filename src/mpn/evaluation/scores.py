"""Results of an evaluation: per frame, per object, over a set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mpn.evaluation.statistics import Statistics, statistics_from_values


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
