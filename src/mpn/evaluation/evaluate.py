"""Scoring of sequences and sets from files, in several processes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from mpn._common.concurrency import process_pool
from mpn._common.validation import check_int
from mpn.errors import EvaluationError
from mpn.evaluation.boundary import radius_px_from_tolerance
from mpn.evaluation.davis import DavisDataset, DavisSequence, check_results
from mpn.evaluation.scores import DatasetScore, SequenceScore
from mpn.evaluation.sequence import DEFAULT_OPTIONS, EvaluationOptions, SequenceEvaluator
from mpn.masks import load_annotation


def evaluate_sequence(
    sequence: DavisSequence,
    predictions: Path,
    options: EvaluationOptions = DEFAULT_OPTIONS,
    on_frames: Callable[[int], None] | None = None,
) -> SequenceScore:
    """Score one sequence from its files.

    Args:
        sequence: The ground truth.
        predictions: Folder with a PNG per scored annotation, of the same name.
        options: Options of the score; ``workers`` has no effect.
        on_frames: Called with the number of frames done since the last call.

    Raises:
        EvaluationError: If a file is missing or cannot be scored; the message names it.
    """
    evaluator = SequenceEvaluator(sequence.name, options)
    scored = set(sequence.scored_paths())
    for path in sequence.annotation_paths:
        prediction = predictions / path.name if path in scored else None
        evaluator.feed(
            load_annotation(path),
            None if prediction is None else load_annotation(prediction),
            source=prediction or path,
            gt_source=path,
        )
        if on_frames is not None:
            on_frames(1)
    return evaluator.conclude()


def evaluate_dataset(
    dataset: DavisDataset,
    results: Path,
    options: EvaluationOptions = DEFAULT_OPTIONS,
    on_frames: Callable[[int], None] | None = None,
) -> DatasetScore:
    """Score a whole set from its PNG files; older CSV files are not read.

    Args:
        dataset: The ground truth.
        results: Folder with ``<sequence>/<frame>.png``.
        options: Options of the score, and the number of processes.
        on_frames: Called with the number of frames done since the last call.

    Raises:
        EvaluationError: If a file is missing or cannot be scored; the message names it. Missing
            files are found before anything is computed.
    """
    check_results(dataset, results)
    radius_px_from_tolerance(options.boundary_tolerance, (1, 1))
    workers = min(options.workers, len(dataset.sequences))
    check_int("workers", options.workers, least=1, error=EvaluationError)
    if workers == 1:
        scores = [
            evaluate_sequence(sequence, results / sequence.name, options, on_frames)
            for sequence in dataset.sequences
        ]
    else:
        scores = _evaluate_in_processes(dataset, results, options, on_frames, workers)
    return DatasetScore(set_name=dataset.set_name, sequences=tuple(scores))


def _evaluate_in_processes(
    dataset: DavisDataset,
    results: Path,
    options: EvaluationOptions,
    on_frames: Callable[[int], None] | None,
    workers: int,
) -> list[SequenceScore]:
    try:
        with process_pool(workers, opencv_threads=1) as pool:
            futures = [
                pool.submit(evaluate_sequence, sequence, results / sequence.name, options)
                for sequence in dataset.sequences
            ]
            frames = [len(sequence.annotation_paths) for sequence in dataset.sequences]
            frames_of = dict(zip(futures, frames, strict=True))
            for future in as_completed(futures):
                if future.exception() is not None:
                    break
                if on_frames is not None:
                    on_frames(frames_of[future])
            return [future.result() for future in futures]  # raises the first of several errors
    except BrokenProcessPool as error:
        raise EvaluationError(
            f"a scoring process was killed (out of memory?); try with 1 instead of {workers}"
        ) from error
