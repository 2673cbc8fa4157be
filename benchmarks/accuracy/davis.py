"""Measure J, F and FPS in one run over a folder in DAVIS layout.

    python -m benchmarks.accuracy.davis --davis-root DAVIS [--set val] [--engine-dir DIR]
        [--ablation warp,propagation,updates,finetuned] [--sparse-truth]
        [--variant NAME=SET:OPTION=VALUE,...] [--sequences A,B] [--finetune-roles osvos]
        [--finetune-steps N] [--seed 0] [--threads 2] [--masks FOLDER] [-o FILE.json]

One thread decodes each frame and the one after it, segments it from the first annotation and saves
a palette PNG.
``wall_fps`` counts all of that from the second frame on, ``pipeline_fps`` only the stages.
``first_mask_s`` is the time to the first saved mask of each sequence, with fine-tuning and with
open engines. ``wall_fps_with_finetuning`` includes fine-tuning. Sets of stages that need the same
weights train them once; the cost counts for each set. The sets are interleaved, sequence by
sequence. Scores are those of ``mpn eval``: the first and the last frame are not counted. With
``--sparse-truth`` all images from the first annotation on are segmented, and the scores are those
of all annotated frames after the first, without void pixels (255).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.accuracy.ablations import (
    DEFAULT,
    Ablation,
    FinetuneCosts,
    ablations_from_names,
    finetune_reports,
    with_cache,
    with_variants,
)
from benchmarks.accuracy.sequences import (
    Evaluator,
    add_data_arguments,
    add_sparse_argument,
    data_facts,
    dataset_from_arguments,
    feed,
    segment_frames,
)
from benchmarks.accuracy.sparse import SparseEvaluator
from benchmarks.report.schema import measured, result_header
from mpn import Pipeline
from mpn._common.concurrency import OpenCvThreads
from mpn.engines.open import EngineSet, default_engine_dir, open_engines
from mpn.errors import InputError
from mpn.evaluation import DavisDataset, DavisSequence, SequenceEvaluator
from mpn.evaluation.scores import DatasetScore, SequenceScore, json_from_score
from mpn.runtime.bench.result import (
    check_result_path,
    engine_facts,
    load_average,
    summary_ms,
)
from mpn.runtime.bench.variants import pipeline_on_shared_engines
from mpn.runtime.finetune.plan import FinetuneOptions
from mpn.runtime.options import FINETUNABLE_ROLES


@dataclass
class Measured:
    """Collect scores and times of one set of stages.

    Attributes:
        scores: Scores per sequence.
        first_mask_s: Seconds to the first mask by sequence.
        wall_s: Seconds per frame, without first frames.
        stages_s: Seconds of the stages per frame, without first frames.
        finetuning_s: Seconds of fine-tuning of all objects.
    """

    scores: list[SequenceScore] = field(default_factory=list)
    first_mask_s: dict[str, float] = field(default_factory=dict)
    wall_s: list[float] = field(default_factory=list)
    stages_s: list[float] = field(default_factory=list)
    finetuning_s: float = 0.0


def run_sequence(
    pipeline: Pipeline,
    sequence: DavisSequence,
    images: Path,
    out: Path | None,
    into: Measured,
    *,
    is_sparse: bool = False,
) -> None:
    """Segment and score one sequence, and save its masks in ``out``."""
    evaluator: Evaluator = (SparseEvaluator if is_sparse else SequenceEvaluator)(sequence.name)
    for frame in segment_frames(pipeline, sequence, images, save_in=out, is_sparse=is_sparse):
        if frame.index:
            into.wall_s.append(frame.wall_s)
            into.stages_s.append(frame.stages_s)
        else:
            into.first_mask_s[sequence.name] = frame.wall_s
        feed(evaluator, frame)
    into.scores.append(evaluator.conclude())


def run(
    engine_dir: Path,
    engines: EngineSet,
    dataset: DavisDataset,
    ablations: list[Ablation],
    *,
    images: Path,
    is_sparse: bool,
    threads: int,
    warmup: int,
    finetune_cache: Path | None,
    keep_masks: Path | None,
) -> dict[str, Any]:
    """Segment all sequences with every set of stages; return ``ablations``."""
    measured = {ablation.name: Measured() for ablation in ablations}
    costs = FinetuneCosts()
    with tempfile.TemporaryDirectory(prefix="mpn-davis-") as folder, ExitStack() as stack:
        masks, cache = (
            keep_masks or Path(folder, "masks"),
            finetune_cache or Path(folder, "weights"),
        )
        for ablation in ablations:  # without fine-tuning, which needs no warm-up
            with pipeline_on_shared_engines(
                engine_dir, ablation.engines(engines), ablation.options
            ) as pipeline:
                first = dataset.sequences[0]
                for _ in segment_frames(
                    pipeline, first, images, frames=warmup + 1, is_sparse=is_sparse
                ):
                    pass
        pipelines = {
            ablation.name: stack.enter_context(
                pipeline_on_shared_engines(
                    engine_dir,
                    ablation.engines(engines),
                    ablation.options,
                    with_cache(ablation.finetune, cache),
                    threads,
                )
            )
            for ablation in ablations
        }
        order = list(ablations)
        for sequence in dataset.sequences:
            for ablation in order:
                pipeline, into = pipelines[ablation.name], measured[ablation.name]
                out = masks / ablation.name / sequence.name
                out.mkdir(parents=True, exist_ok=True)
                run_sequence(pipeline, sequence, images, out, into, is_sparse=is_sparse)
                reports = finetune_reports(pipeline, ablation)
                cost_s = costs.cost_s(ablation, sequence.name, reports)
                into.finetuning_s += cost_s
                # Cached weights of another set count as if this set had trained them.
                spent_s = sum(report["seconds"] for report in reports if not report["cached"])
                into.first_mask_s[sequence.name] += cost_s - spent_s
                log_score(ablation, into.scores[-1])
            order.append(order.pop(0))
    figures = {
        ablation.name: ablation_figures(ablation, measured[ablation.name], dataset.set_name)
        for ablation in ablations
    }
    if finetune_cache is not None:  # the cost of weights from another run is unknown
        for ablation in ablations:
            body = figures[ablation.name]
            body["finetune"] = None
            body.pop("wall_fps_with_finetuning", None)
            if ablation.finetune is not None:
                del body["first_mask_s"]
    return figures


def log_score(ablation: Ablation, score: SequenceScore) -> None:
    """Print the scores of one sequence to stderr."""
    for k in score.objects:
        print(
            f"{ablation.name:18} {k.name:24} J {k.region.mean:.3f}  F {k.boundary.mean:.3f}",
            file=sys.stderr,
            flush=True,
        )


def ablation_figures(ablation: Ablation, measured: Measured, set_name: str) -> dict[str, Any]:
    """Return the figures of one set of stages."""
    score = DatasetScore(set_name, tuple(measured.scores))
    scores = json_from_score(score)
    wall_s, stages_s, finetuning_s = measured.wall_s, measured.stages_s, measured.finetuning_s
    body: dict[str, Any] = {
        "stages": list(ablation.stages),
        "options": ablation.options.as_json(),
        **scores["global"],
        "objects": scores["objects"],
        "wall": summary_ms(wall_s),
        "pipeline": summary_ms(stages_s),
        "wall_fps": round(len(wall_s) / sum(wall_s), 2),
        "pipeline_fps": round(len(stages_s) / sum(stages_s), 2),
        "first_mask_s": {name: round(s, 3) for name, s in measured.first_mask_s.items()},
        "finetune": None,
    }
    if ablation.finetune is not None:
        body["finetune"] = {
            "roles": list(ablation.finetune.roles),
            "steps": {
                role: ablation.finetune.recipe(role).steps for role in ablation.finetune.roles
            },
            "seconds": round(finetuning_s, 2),
            "seconds_per_object": round(finetuning_s / len(score.objects), 2),
        }
        body["wall_fps_with_finetuning"] = round(len(wall_s) / (sum(wall_s) + finetuning_s), 2)
    return body


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return the body of the result."""
    check_result_path(given.out)
    load_before = load_average()
    dataset, images = dataset_from_arguments(given)
    engine_dir = default_engine_dir() if given.engine_dir is None else given.engine_dir
    with (
        open_engines(engine_dir, backend=given.backend, threads=given.threads) as engines,
        OpenCvThreads(given.threads),
    ):
        ablations, left_out = ablations_from_names(
            engines.manifest,
            given.ablation.split(","),
            FinetuneOptions(
                roles=tuple(given.finetune_roles.split(",")),
                steps=given.finetune_steps,
                seed=given.seed,
            ),
        )
        ablations = with_variants(ablations, given.variant)
        if not ablations:
            raise InputError(f"nothing is left to run: {'; '.join(left_out)}")
        figures = run(
            engine_dir,
            engines,
            dataset,
            ablations,
            images=images,
            is_sparse=given.sparse_truth,
            threads=given.threads,
            warmup=given.warmup,
            finetune_cache=given.finetune_cache,
            keep_masks=given.masks,
        )
        backend = {
            "asked": given.backend,
            "used": engines.backend,
            "note": engines.backend_note,
            "threads": given.threads,
        }
        engine = engine_facts(engines)
    facts = data_facts(dataset, images, is_sparse=given.sparse_truth)
    not_on_gpu = (
        ["GPU (CUDA, TensorRT): the networks ran on the CPU"] if backend["used"] == "cpu" else []
    )
    if given.finetune_cache is not None:
        left_out.append("cost of fine-tuning: the weights are from other runs")
    return {
        **result_header(
            backend=backend,
            engine=engine,
            frame_size_hw=facts["frame_size_hw"],
            objects=facts["objects"],
            frames=sum(of["frames"] - 1 for of in facts["data"]["sequences"].values()),
            warmup=given.warmup,
            load_average_before=load_before,
            not_measured=[*not_on_gpu, *left_out],
        ),
        "data": facts["data"],
        "seed": given.seed,
        "ablations": figures,
    }


def main() -> int:
    """Parse the arguments, run, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_arguments(parser, default_set="val")
    add_sparse_argument(parser)
    parser.add_argument("--engine-dir", type=Path, help="engine directory [the shipped one]")
    parser.add_argument(
        "--ablation",
        default=",".join(DEFAULT),
        help="sets of stages [%(default)s]; see ablations.py",
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME=SET:OPTION=VALUE,...",
        help="add a set like SET with other options; may be repeated",
    )
    parser.add_argument("--seed", type=int, default=0, help="of fine-tuning [%(default)s]")
    parser.add_argument(
        "--finetune-cache",
        type=Path,
        help="folder of fine-tuned weights for other runs; the cost is left out of the result",
    )
    parser.add_argument(
        "--finetune-roles",
        default=",".join(FINETUNABLE_ROLES),
        help="networks to fine-tune [%(default)s]",
    )
    parser.add_argument("--finetune-steps", type=int, help="steps [the recipe of each network]")
    parser.add_argument("--masks", type=Path, help="save masks in MASKS/<set>/<sequence>")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=5, help="uncounted frames per set")
    parser.add_argument("-o", "--out", type=Path, default=Path("davis.json"))
    given = parser.parse_args()
    body = measured("davis", benchmark, given)
    if body is None:
        return 1
    for name, figures in body["ablations"].items():
        print(
            f"{name:18} J {figures['J-Mean']:.4f}  F {figures['F-Mean']:.4f}  "
            f"J&F {figures['J&F-Mean']:.4f}  wall {figures['wall_fps']} FPS"
        )
    print(f"written: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
