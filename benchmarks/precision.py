"""What half-precision weights cost in accuracy: two engine directories over the same frames.

    mpn-export CKPT ... -o engines-fp16 --precision fp16
    python benchmarks/precision.py --davis-root DAVIS --other engines-fp16 [--engine-dir DIR]
        [--set val] [--sequences A,B] [--adapt] [--threads 2] [-o benchmarks/results/precision.json]

Both directories segment every sequence from its first annotation, frame by frame in turn, each
carrying its own masks on. Told are J and F of both, and the IoU of their masks with each other.
Without ``--adapt`` networks are used as they were exported: fine-tuning multiplies the smallest
difference of its start, and would measure its own luck.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from davis import facts_of_data, only
from facts import cpu_backend, head, write_result
from mpn import Pipeline
from mpn.engines.open import default_engine_dir, open_engines
from mpn.errors import InputError, MpnError
from mpn.evaluation import DavisDataset, SequenceEvaluator, load_davis, region_similarity
from mpn.evaluation import load_annotation as load_truth
from mpn.evaluation.scores import DatasetScore, SequenceScore, json_from_score
from mpn.masks import load_labels
from mpn.runtime.bench.result import check_result_path, engine_facts, load_average
from mpn.runtime.finetune.options import FinetuneOptions
from mpn.runtime.media.video_images import load_rgb
from mpn.runtime.options import FinetuneOptions, PipelineOptions

MAX_IDS = 254


def compare(
    dataset: DavisDataset, images: Path, pipelines: dict[str, Pipeline]
) -> tuple[dict[str, list[SequenceScore]], dict[str, list[float]]]:
    """Segment all sequences with both.

    Returns:
        Scores of each side; for each object the IoU of the two masks in every frame but the first,
        1 where both are empty.
    """
    scores: dict[str, list[SequenceScore]] = {side: [] for side in pipelines}
    ious: dict[str, list[float]] = defaultdict(list)
    for sequence in dataset.sequences:
        evaluators = {side: SequenceEvaluator(sequence.name) for side in pipelines}
        for index, annotation in enumerate(sequence.annotation_paths):
            truth = load_truth(annotation)
            rgb = load_rgb(images / sequence.name / f"{annotation.stem}.jpg")
            found = {}
            for side, pipeline in pipelines.items():
                if index:
                    result = pipeline.step(rgb)
                else:
                    result = pipeline.start(rgb, load_labels(annotation, max_objects=MAX_IDS))
                evaluators[side].feed(truth, result.labels, source=annotation)
                found[side] = result.labels
            one, other = found.values()
            if index:
                for k in pipelines[next(iter(pipelines))].object_ids:
                    ious[f"{sequence.name}_{k}"].append(
                        float(region_similarity(one == k, other == k))
                    )
        for side, evaluator in evaluators.items():
            scores[side].append(evaluator.conclude())
        told = "  ".join(
            f"{side} J {scores[side][-1].objects[0].region.mean:.4f}" for side in scores
        )
        print(f"{sequence.name:20} {told}", file=sys.stderr, flush=True)
    return scores, ious


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """The body of the result."""
    check_result_path(given.out)
    before = load_average()
    dataset = load_davis(given.davis_root, given.set, resolution=given.resolution)
    if given.sequences is not None:
        dataset = only(dataset, given.sequences.split(","))
    images = given.davis_root / "JPEGImages" / given.resolution
    directories = (given.engine_dir or default_engine_dir(), given.other)
    with ExitStack() as stack:
        pipelines: dict[str, Pipeline] = {}
        engines: dict[str, dict[str, Any]] = {}
        for directory in directories:
            with open_engines(directory, backend="cpu", threads=given.threads) as opened:
                facts = engine_facts(opened)
            if facts["name"] in engines:
                raise InputError(
                    f"both engine directories are called '{facts['name']}': give one another name "
                    "with mpn-export --name"
                )
            engines[facts["name"]] = facts
            pipelines[facts["name"]] = stack.enter_context(
                Pipeline.from_engines(
                    directory,
                    backend="cpu",
                    threads=given.threads,
                    options=PipelineOptions(
                        finetune=FinetuneOptions(seed=given.seed) if given.adapt else None
                    ),
                )
            )
        scores, ious = compare(dataset, images, pipelines)
    data, frame_size_hw, objects = facts_of_data(dataset)
    first, _ = engines
    return {
        **head(
            backend=cpu_backend(given.threads),
            engine=engines[first],
            frame_size_hw=frame_size_hw,
            objects=objects,
            frames=sum(len(sequence.annotation_paths) - 1 for sequence in dataset.sequences),
            warmup=0,
            load_average_before=before,
            not_measured=[
                "speed: on a CPU half-precision weights are turned back into float32",
                *([] if given.adapt else ["fine-tuned networks: --adapt"]),
            ],
        ),
        "data": data,
        "is_fine_tuned": given.adapt,
        "sides": {
            name: {
                "roles": engines[name]["roles"],
                "size_bytes": sum(f.stat().st_size for f in directory.rglob("*") if f.is_file()),
                **figures(DatasetScore(dataset.set_name, tuple(scores[name]))),
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


def figures(score: DatasetScore) -> dict[str, Any]:
    """Means, and J and F of each object."""
    told = json_from_score(score)
    return {**told["global"], "objects": told["objects"]}


def main() -> int:
    """Parse, run, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--davis-root", type=Path, required=True)
    parser.add_argument("--set", default="val", help="list in ImageSets/2017")
    parser.add_argument("--sequences", help="names with commas; default: all of the set")
    parser.add_argument("--resolution", default="480p")
    parser.add_argument("--engine-dir", type=Path, help="default: the shipped engines")
    parser.add_argument("--other", type=Path, required=True, help="engines to compare with them")
    parser.add_argument("--adapt", action="store_true", help="fine-tune each side on its own")
    parser.add_argument("--seed", type=int, default=0, help="of fine-tuning")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=Path("precision.json"))
    given = parser.parse_args()
    try:
        body = benchmark(given)
        write_result(given.out, "precision", body)
    except MpnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, side in body["sides"].items():
        print(f"{name:18} J {side['J-Mean']:.4f}  F {side['F-Mean']:.4f}")
    print(f"IoU of their masks: {body['mask_iou']['mean']:.4f}\nwritten: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
