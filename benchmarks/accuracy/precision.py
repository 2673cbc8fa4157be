"""Compare the accuracy of two engine directories, for example fp32 and fp16.

    mpn export CKPT ... -o engines-fp16 --precision fp16
    python -m benchmarks.accuracy.precision --davis-root DAVIS --other engines-fp16
        [--engine-dir DIR] [--set val] [--sequences A,B] [--finetune] [--threads 2] [-o FILE.json]

Both directories segment each sequence from its first annotation, interleaved frame by frame; each
propagates its own masks. The result has J and F of both, and the IoU between their masks. Without
``--finetune`` the networks are not fine-tuned: fine-tuning amplifies the smallest difference, and
the result would measure that noise.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.sequences import (
    add_data_arguments,
    data_facts,
    dataset_from_arguments,
    feed,
    segment_frames,
)
from benchmarks.report.schema import cpu_backend, measured, result_header
from mpn import Pipeline
from mpn.engines.open import local_engine_dir, open_engines
from mpn.errors import InputError
from mpn.evaluation import DavisDataset, SequenceEvaluator, region_similarity
from mpn.evaluation.scores import DatasetScore, SequenceScore, json_from_score
from mpn.runtime.bench.result import check_result_path, engine_facts, load_average
from mpn.runtime.finetune.plan import FinetuneOptions
from mpn.runtime.options import PipelineOptions


def compare(
    dataset: DavisDataset, images: Path, pipelines: dict[str, Pipeline]
) -> tuple[dict[str, list[SequenceScore]], dict[str, list[float]]]:
    """Segment all sequences with both pipelines.

    Returns:
        Scores of each side; for each object the IoU of the two masks in every frame but the first
        (1 if both are empty).
    """
    scores: dict[str, list[SequenceScore]] = {side: [] for side in pipelines}
    ious: dict[str, list[float]] = defaultdict(list)
    for sequence in dataset.sequences:
        evaluators = {side: SequenceEvaluator(sequence.name) for side in pipelines}
        runs = [segment_frames(p, sequence, images) for p in pipelines.values()]
        for one, other in zip(*runs, strict=True):
            for frame, evaluator in zip((one, other), evaluators.values(), strict=True):
                feed(evaluator, frame)
            if one.index:
                for k in pipelines[next(iter(pipelines))].object_ids:
                    iou = region_similarity(one.labels == k, other.labels == k)
                    ious[f"{sequence.name}_{k}"].append(float(iou))
        for side, evaluator in evaluators.items():
            scores[side].append(evaluator.conclude())
        text = "  ".join(
            f"{side} J {scores[side][-1].objects[0].region.mean:.4f}" for side in scores
        )
        print(f"{sequence.name:20} {text}", file=sys.stderr, flush=True)
    return scores, ious


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return the body of the result."""
    check_result_path(given.out)
    before = load_average()
    dataset, images = dataset_from_arguments(given)
    directories = [local_engine_dir(path) for path in (given.engine_dir, given.other)]
    with ExitStack() as stack:
        pipelines: dict[str, Pipeline] = {}
        engines: dict[str, dict[str, Any]] = {}
        for directory in directories:
            with open_engines(directory, backend="cpu", threads=given.threads) as opened:
                facts = engine_facts(opened)
            if facts["name"] in engines:
                raise InputError(
                    f"both engine directories have the name '{facts['name']}': export one with "
                    "another --name"
                )
            engines[facts["name"]] = facts
            pipelines[facts["name"]] = stack.enter_context(
                Pipeline.from_engines(
                    directory,
                    backend="cpu",
                    threads=given.threads,
                    options=PipelineOptions(
                        finetune=FinetuneOptions(seed=given.seed) if given.finetune else None
                    ),
                )
            )
        scores, ious = compare(dataset, images, pipelines)
    data = data_facts(dataset)
    first, _ = engines
    return {
        **result_header(
            backend=cpu_backend(given.threads),
            engine=engines[first],
            frame_size_hw=data["frame_size_hw"],
            objects=data["objects"],
            frames=sum(len(sequence.annotation_paths) - 1 for sequence in dataset.sequences),
            warmup=0,
            load_average_before=before,
            not_measured=[
                "speed",
                *([] if given.finetune else ["fine-tuned networks: --finetune"]),
            ],
        ),
        "data": data["data"],
        "is_fine_tuned": given.finetune,
        "sides": {
            name: {
                "roles": engines[name]["roles"],
                "size_bytes": sum(f.stat().st_size for f in directory.rglob("*") if f.is_file()),
                **score_figures(DatasetScore(dataset.set_name, tuple(scores[name]))),
            }
            for name, directory in zip(engines, directories, strict=True)
        },
        "mask_iou": {
            "mean": float(np.mean([v for values in ious.values() for v in values])),
            "objects": {
                name: {"mean": float(np.mean(values)), "min": float(np.min(values))}
                for name, values in ious.items()
            },
        },
    }


def score_figures(score: DatasetScore) -> dict[str, Any]:
    """Return the mean scores, and J and F of each object."""
    scores = json_from_score(score)
    return {**scores["global"], "objects": scores["objects"]}


def main() -> int:
    """Parse the arguments, run, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_arguments(parser, default_set="val")
    parser.add_argument("--engine-dir", type=Path, help="engine directory [the shipped one]")
    parser.add_argument("--other", type=Path, required=True, help="engine directory to compare")
    parser.add_argument(
        "--finetune", action="store_true", help="fine-tune the networks of each side"
    )
    parser.add_argument("--seed", type=int, default=0, help="of fine-tuning [%(default)s]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=Path("precision.json"))
    given = parser.parse_args()
    body = measured("precision", benchmark, given)
    if body is None:
        return 1
    for name, side in body["sides"].items():
        print(f"{name:18} J {side['J-Mean']:.4f}  F {side['F-Mean']:.4f}")
    print(f"IoU of their masks: {body['mask_iou']['mean']:.4f}\nwritten: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
