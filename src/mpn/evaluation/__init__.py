"""J and F, identical to the official DAVIS-2017 semi-supervised evaluation."""

from mpn.evaluation.boundary import boundary_map, boundary_measure, boundary_measures
from mpn.evaluation.davis import DavisDataset, DavisSequence, load_davis
from mpn.evaluation.evaluate import evaluate_dataset, evaluate_sequence
from mpn.evaluation.region import region_similarity
from mpn.evaluation.scores import (
    DatasetScore,
    ObjectScore,
    SequenceScore,
    Statistics,
    statistics_from_values,
)
from mpn.evaluation.sequence import (
    EvaluationOptions,
    SequenceEvaluator,
    measures_from_labels,
)
from mpn.masks import load_annotation

__all__ = [
    "DatasetScore",
    "DavisDataset",
    "DavisSequence",
    "EvaluationOptions",
    "ObjectScore",
    "SequenceEvaluator",
    "SequenceScore",
    "Statistics",
    "boundary_map",
    "boundary_measure",
    "boundary_measures",
    "evaluate_dataset",
    "evaluate_sequence",
    "load_annotation",
    "load_davis",
    "measures_from_labels",
    "region_similarity",
    "statistics_from_values",
]
