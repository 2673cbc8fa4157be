"""Measure J and F against the number of fine-tuning steps.

    python -m benchmarks.accuracy.finetuning --davis-root DAVIS [--set train] [--sequences A,B]
        [--engine-dir DIR] [--roles propagation] [--steps 0,20,40,80,160] [--frames 40]
        [--option colour_weight=0.5] [--size 161] [--batch 4] [--learning-rate 1e-4]
        [--scope head] [--seeds 0,1,2] [--threads 2] [-o FILE.json]

Each number of steps is a separate run with its own learning-rate schedule, on the same sequences;
the runs are interleaved, sequence by sequence. Fine-tuning is random, so each number of steps runs
with each seed; figures are means over the seeds, and the result also has the spread. No weights are
cached. ``worst`` is the object with the smallest gain (or the largest loss).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks.accuracy.ablations import option_from_text
from benchmarks.accuracy.sequences import (
    add_data_arguments,
    data_facts,
    dataset_from_arguments,
    feed,
    segment_frames,
)
from benchmarks.report.schema import cpu_backend, measured, result_header
from mpn import Pipeline, PipelineOptions
from mpn.engines.open import default_engine_dir, open_engines
from mpn.errors import InputError
from mpn.evaluation import DavisSequence, SequenceEvaluator
from mpn.runtime.bench.result import (
    check_result_path,
    engine_facts,
    load_average,
    summary_ms,
)
from mpn.runtime.finetune.plan import FinetuneOptions
from mpn.runtime.options import FINETUNABLE_ROLES, FinetuneScope


@dataclass(frozen=True)
class ObjectRun:
    """Hold the scores and times of one object with one number of steps.

    Attributes:
        name: ``<sequence>_<id>``.
        seed: Seed of the fine-tuning.
        region: Mean J.
        boundary: Mean F.
        finetune_s: Seconds of fine-tuning of all networks.
        start_cpu_s: Processor seconds of the first frame with all its objects, including opening
            the step graph. With one thread this is ``finetune_s`` of an idle machine.
        losses: First and last loss by network.
        notes: Notes of the fine-tuning reports.
    """

    name: str
    seed: int
    region: float
    boundary: float
    finetune_s: float
    start_cpu_s: float
    losses: Mapping[str, tuple[float, float]]
    notes: tuple[str, ...]


def run_sequence(
    sequence: DavisSequence, images: Path, steps: int, seed: int, given: argparse.Namespace
) -> list[ObjectRun]:
    """Segment and score one sequence with one number of steps and one seed."""
    finetune = finetune_options(given, steps=max(steps, 1), seed=seed)
    evaluator, start_cpu_s = SequenceEvaluator(sequence.name), 0.0
    with Pipeline.from_engines(
        given.engine_dir,
        backend="cpu",
        threads=given.threads,
        options=PipelineOptions(finetune=finetune if steps else None).with_values(
            dict(map(option_from_text, given.option))
        ),
    ) as pipeline:
        for frame in segment_frames(pipeline, sequence, images, frames=given.frames or None):
            if not frame.index:
                start_cpu_s = frame.cpu_s
            feed(evaluator, frame)
        reports = pipeline.finetune_report()
    runs = []
    for score in evaluator.conclude().objects:
        object_id = int(score.name.rpartition("_")[2])
        own = [report for report in reports if report["object_id"] == object_id]
        runs.append(
            ObjectRun(
                score.name,
                seed,
                score.region.mean,
                score.boundary.mean,
                sum(report["seconds"] for report in own),
                start_cpu_s,
                {
                    report["role"]: (report["first_loss"], report["last_loss"])
                    for report in own
                    if report["last_loss"] is not None
                },
                tuple(report["note"] for report in own if report["note"]),
            )
        )
    return runs


def finetune_options(given: argparse.Namespace, *, steps: int, seed: int) -> FinetuneOptions:
    """Return the options of fine-tuning, without a cache."""
    return FinetuneOptions(
        roles=tuple(given.roles.split(",")),
        steps=steps,
        size=given.size,
        batch=given.batch,
        learning_rate=given.learning_rate,
        scope=given.scope,
        seed=seed,
        cache_dir=None,
    )


def run_as_json(
    steps: int, runs: Sequence[ObjectRun], without: Sequence[ObjectRun]
) -> dict[str, Any]:
    """Return the figures of one number of steps; ``without`` are the runs at 0."""
    names, seeds = sorted({k.name for k in runs}), sorted({k.seed for k in runs})
    own = {name: [k for k in runs if k.name == name] for name in names}
    j, f = (float(np.mean([getattr(k, key) for k in runs])) for key in ("region", "boundary"))
    body: dict[str, Any] = {
        "steps": steps,
        "J-Mean": j,
        "F-Mean": f,
        "J&F-Mean": (j + f) / 2,
        "J-Mean_of_seeds": {
            str(seed): float(np.mean([k.region for k in runs if k.seed == seed])) for seed in seeds
        },
        "finetune": summary_ms([k.finetune_s for k in runs]) if steps else None,
        "start_cpu": summary_ms([k.start_cpu_s for k in runs]) if steps else None,
        "objects": {name: _object_as_json(own[name]) for name in names},
        "worst": None,
    }
    if steps and without:
        before = {k.name: k.region for k in without}
        gains = {name: float(body["objects"][name]["J-Mean"] - before[name]) for name in names}
        name = min(gains, key=gains.__getitem__)
        body["worst"] = {"object": name, "J_gain": round(gains[name], 4)}
        body["hurt_over_2_percent"] = [name for name in names if gains[name] < -0.02]
    return body


def _object_as_json(runs: Sequence[ObjectRun]) -> dict[str, Any]:
    regions = [k.region for k in runs]
    return {
        "J-Mean": float(np.mean(regions)),
        "F-Mean": float(np.mean([k.boundary for k in runs])),
        "J_least": min(regions),
        "J_most": max(regions),
        "finetune_s": [round(k.finetune_s, 3) for k in runs],
        "start_cpu_s": [round(k.start_cpu_s, 3) for k in runs],
        "losses": [{role: list(pair) for role, pair in k.losses.items()} for k in runs],
        "notes": sorted({note for k in runs for note in k.notes}),
    }


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return the body of the result."""
    check_result_path(given.out)
    steps = [int(part) for part in given.steps.split(",")]
    seeds = [int(part) for part in given.seeds.split(",")]
    for name, numbers in (("steps", steps), ("seeds", seeds)):
        if min(numbers) < 0 or len(set(numbers)) < len(numbers):
            raise InputError(f"--{name} must be different numbers of at least 0, got {numbers}")
    unknown = set(given.roles.split(",")) - set(FINETUNABLE_ROLES)
    if unknown:
        raise InputError(
            f"--roles must be of {', '.join(FINETUNABLE_ROLES)}, got {', '.join(unknown)}"
        )
    dataset, images = dataset_from_arguments(given)
    before = load_average()
    with open_engines(given.engine_dir, backend="cpu", threads=given.threads) as engines:
        engine = engine_facts(engines)
        role_names = given.roles.split(",")
        recipes = {
            role: vars(finetune_options(given, steps=1, seed=0).recipe(role, entry.adapt.optimizer))
            for role, entry in engines.manifest.roles.items()
            if role in role_names and entry.adapt is not None
        }
    done: dict[int, list[ObjectRun]] = {count: [] for count in steps}
    for sequence in dataset.sequences:
        for count, seed in product(steps, seeds):
            if not count and seed != seeds[0]:
                continue  # only fine-tuning is random
            objects = run_sequence(sequence, images, count, seed, given)
            done[count] += objects
            for k in objects:
                print(
                    f"  {k.name:24} {count:4} steps  seed {seed}  J {k.region:.3f}"
                    f"  F {k.boundary:.3f}  {k.finetune_s:.1f} s",
                    flush=True,
                )
    return {
        **result_header(
            backend=cpu_backend(given.threads),
            engine=engine,
            frame_size_hw=data_facts(dataset)["frame_size_hw"],
            objects=None,
            frames=given.frames,
            warmup=None,
            load_average_before=before,
            not_measured=["opening the step graph and the fine-tuned engines, 1 to 3 s per object"],
        ),
        "data": {
            "set": given.set,
            "sequences": {
                s.name: min(len(s.annotation_paths), given.frames or len(s.annotation_paths))
                for s in dataset.sequences
            },
        },
        "roles": role_names,
        "recipes": {
            role: {key: value for key, value in recipe.items() if key != "steps"}
            for role, recipe in recipes.items()
        },
        "options": dict(map(option_from_text, given.option)),
        "seeds": seeds,
        "runs": [run_as_json(count, done[count], done.get(0, [])) for count in steps],
    }


def main() -> int:
    """Parse the arguments, run, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_arguments(parser, default_set="train")
    parser.add_argument("--engine-dir", type=Path, default=default_engine_dir())
    parser.add_argument("--roles", default="propagation")
    parser.add_argument("--steps", default="0,20,40,80,160")
    parser.add_argument("--frames", type=int, default=40, help="per sequence; 0 for all")
    parser.add_argument("--option", action="append", default=[], help="NAME=VALUE of the pipeline")
    parser.add_argument("--size", type=int, help="side of the crops in pixels [by recipe]")
    parser.add_argument("--batch", type=int, help="crops per step [by recipe]")
    parser.add_argument("--learning-rate", type=float, help="[by recipe]")
    parser.add_argument("--scope", choices=get_args(FinetuneScope), help="[by recipe]")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=Path("finetuning.json"))
    given = parser.parse_args()
    body = measured("finetuning", benchmark, given)
    if body is None:
        return 1
    for run in body["runs"]:
        seconds = "" if run["finetune"] is None else f"  {run['finetune']['median_ms'] / 1e3:.1f} s"
        print(f"{run['steps']:4} steps  J {run['J-Mean']:.4f}  F {run['F-Mean']:.4f}{seconds}")
    print(f"written: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
