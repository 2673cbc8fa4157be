"""J&F and FPS from the same run over a folder in DAVIS layout.

    python benchmarks/davis.py --davis-root DAVIS [--set val] [--engine-dir DIR]
        [--ablation warp,propagation,adapted,osvos,crf] [--variant NAME=SET:OPTION=VALUE,...]
        [--sequences A,B] [--adapt-roles osvos] [--adapt-steps N] [--seed 0] [--threads 2]
        [--masks FOLDER] [-o benchmarks/results/davis.json]

Every sequence is decoded, segmented from its first annotation and saved as palette PNGs, frame by
frame in one thread; ``wall_fps`` counts all of that from the second frame on, ``pipeline_fps`` the
stages alone. Fine-tuning on the first frame is told apart, and ``wall_fps_with_adaptation`` has it
in; sets that need the same weights learn them once, and each is told what they cost. The sets
of stages take turns, sequence by sequence. Scores are those of ``mpn eval``: the first and the last
frame do not count.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from davis_ablations import DEFAULT, Ablation, ablations_of, with_variants
from davis_adaptation import LearningCosts, kept_in, reports_of
from facts import head, summary_ms, write_result
from mpn import Pipeline
from mpn._common.concurrency import OpenCvThreads
from mpn.engines.open import EngineSet, default_engine_dir, open_engines
from mpn.errors import InputError, MpnError
from mpn.evaluation import DavisDataset, DavisSequence, SequenceEvaluator, load_davis
from mpn.evaluation import load_annotation as load_truth
from mpn.evaluation.scores import DatasetScore, SequenceScore, json_from_score
from mpn.masks import load_labels, save_labels
from mpn.runtime.bench.result import check_result_path, engine_facts, load_average
from mpn.runtime.bench.variants import pipeline_on_shared_engines
from mpn.runtime.finetune.options import FinetuneOptions
from mpn.runtime.media.video_images import load_rgb
from mpn.runtime.options import FINETUNABLE_ROLES, FinetuneOptions

MAX_IDS = 254


@dataclass
class Collected:
    """What a set of stages has done so far; seconds of each frame but the first."""

    scores: list[SequenceScore] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    pipeline_s: list[float] = field(default_factory=list)
    adapt_s: float = 0.0


def run_sequence(
    pipeline: Pipeline, sequence: DavisSequence, images: Path, out: Path, into: Collected
) -> None:
    """Segment one sequence and score it."""
    evaluator = SequenceEvaluator(sequence.name)
    for index, annotation in enumerate(sequence.annotation_paths):
        truth = load_truth(annotation)
        given = None if index else load_labels(annotation, max_objects=MAX_IDS)
        start = perf_counter()
        rgb = load_rgb(images / sequence.name / f"{annotation.stem}.jpg")
        result = pipeline.step(rgb) if given is None else pipeline.start(rgb, given)
        save_labels(out / f"{annotation.stem}.png", result.labels)
        if index:
            into.wall_s.append(perf_counter() - start)
            into.pipeline_s.append(sum(result.timings.values()))
        evaluator.feed(truth, result.labels, source=annotation)
    into.scores.append(evaluator.conclude())


def warm_up(pipeline: Pipeline, sequence: DavisSequence, images: Path, frames: int) -> None:
    """The first frames of a sequence, without fine-tuning: they do not count."""
    paths = sequence.annotation_paths[: frames + 1]
    rgb = [load_rgb(images / sequence.name / f"{path.stem}.jpg") for path in paths]
    pipeline.start(rgb[0], load_labels(paths[0], max_objects=MAX_IDS))
    for frame in rgb[1:]:
        pipeline.step(frame)


def run(
    engine_dir: Path,
    engines: EngineSet,
    dataset: DavisDataset,
    ablations: list[Ablation],
    *,
    images: Path,
    threads: int,
    warmup: int,
    adapt_cache: Path | None,
    keep_masks: Path | None,
) -> dict[str, Any]:
    """All sequences with every set of stages; ``ablations`` of the result."""
    collected = {ablation.name: Collected() for ablation in ablations}
    costs = LearningCosts()
    with tempfile.TemporaryDirectory(prefix="mpn-davis-") as folder, ExitStack() as stack:
        masks, kept = keep_masks or Path(folder, "masks"), adapt_cache or Path(folder, "weights")
        for ablation in ablations:  # without fine-tuning: nothing is learnt to be thrown away
            with pipeline_on_shared_engines(engine_dir, engines, ablation.options) as pipeline:
                warm_up(pipeline, dataset.sequences[0], images, warmup)
        pipelines = {
            ablation.name: stack.enter_context(
                pipeline_on_shared_engines(
                    engine_dir, engines, ablation.options, kept_in(ablation.adapt, kept), threads
                )
            )
            for ablation in ablations
        }
        order = list(ablations)
        for sequence in dataset.sequences:
            for ablation in order:
                pipeline, into = pipelines[ablation.name], collected[ablation.name]
                out = masks / ablation.name / sequence.name
                out.mkdir(parents=True, exist_ok=True)
                run_sequence(pipeline, sequence, images, out, into)
                into.adapt_s += costs.of(ablation, sequence.name, reports_of(pipeline, ablation))
                tell(ablation, into.scores[-1])
            order.append(order.pop(0))
    told = {
        ablation.name: figures(ablation, collected[ablation.name], dataset.set_name)
        for ablation in ablations
    }
    if adapt_cache is not None:  # nobody knows what another run paid
        for done in told.values():
            done["adapt"] = None
            done.pop("wall_fps_with_adaptation", None)
    return told


def tell(ablation: Ablation, score: SequenceScore) -> None:
    """One sequence is done."""
    for k in score.objects:
        print(
            f"{ablation.name:18} {k.name:24} J {k.region.mean:.3f}  F {k.boundary.mean:.3f}",
            file=sys.stderr,
            flush=True,
        )


def figures(ablation: Ablation, done: Collected, set_name: str) -> dict[str, Any]:
    """One set of stages in the result."""
    score = DatasetScore(set_name, tuple(done.scores))
    told = json_from_score(score)
    adapt_s = done.adapt_s
    body: dict[str, Any] = {
        "stages": list(ablation.stages),
        "options": ablation.options.as_json(),
        **told["global"],
        "objects": told["objects"],
        "wall": summary_ms(done.wall_s),
        "pipeline": summary_ms(done.pipeline_s),
        "wall_fps": round(len(done.wall_s) / sum(done.wall_s), 2),
        "pipeline_fps": round(len(done.pipeline_s) / sum(done.pipeline_s), 2),
        "adapt": None,
    }
    if ablation.adapt is not None:
        body["adapt"] = {
            "roles": list(ablation.adapt.roles),
            "steps": {role: ablation.adapt.recipe(role).steps for role in ablation.adapt.roles},
            "seconds": round(adapt_s, 2),
            "seconds_per_object": round(adapt_s / len(score.objects), 2),
        }
        body["wall_fps_with_adaptation"] = round(len(done.wall_s) / (sum(done.wall_s) + adapt_s), 2)
    return body


def only(dataset: DavisDataset, names: Sequence[str]) -> DavisDataset:
    """Some sequences of a set.

    Raises:
        InputError: If the set has not all of them.
    """
    missing = set(names) - {sequence.name for sequence in dataset.sequences}
    if missing:
        raise InputError(f"set '{dataset.set_name}' has no {', '.join(sorted(missing))}")
    return replace(dataset, sequences=tuple(s for s in dataset.sequences if s.name in names))


def facts_of_data(dataset: DavisDataset) -> tuple[dict[str, Any], list[int], list[int]]:
    """``data`` of the result, the commonest frame size (height, width), the numbers of objects."""
    sequences = {}
    for sequence in dataset.sequences:
        first = load_labels(sequence.annotation_paths[0], max_objects=MAX_IDS)
        sequences[sequence.name] = {
            "frames": len(sequence.annotation_paths),
            "objects": int(first.max()),
            "size_hw": list(first.shape),
        }
    sizes = Counter(tuple(facts["size_hw"]) for facts in sequences.values())
    objects = sorted({facts["objects"] for facts in sequences.values()})
    return (
        {"set": dataset.set_name, "sequences": sequences},
        list(sizes.most_common(1)[0][0]),
        objects,
    )


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """The body of the result."""
    check_result_path(given.out)
    load_before = load_average()
    dataset = load_davis(given.davis_root, given.set, resolution=given.resolution)
    if given.sequences is not None:
        dataset = only(dataset, given.sequences.split(","))
    images = given.davis_root / "JPEGImages" / given.resolution
    engine_dir = default_engine_dir() if given.engine_dir is None else given.engine_dir
    with (
        open_engines(engine_dir, backend=given.backend, threads=given.threads) as engines,
        OpenCvThreads(given.threads),
    ):
        ablations, left_out = ablations_of(
            engines.manifest,
            given.ablation.split(","),
            FinetuneOptions(
                roles=tuple(given.adapt_roles.split(",")), steps=given.adapt_steps, seed=given.seed
            ),
        )
        ablations = with_variants(ablations, given.variant)
        if not ablations:
            raise InputError(f"nothing is left to run: {'; '.join(left_out)}")
        runs = run(
            engine_dir,
            engines,
            dataset,
            ablations,
            images=images,
            threads=given.threads,
            warmup=given.warmup,
            adapt_cache=given.adapt_cache,
            keep_masks=given.masks,
        )
        backend = {
            "asked": given.backend,
            "used": engines.backend,
            "note": engines.backend_note,
            "threads": given.threads,
        }
        engine = engine_facts(engines)
    data, frame_size_hw, objects = facts_of_data(dataset)
    not_on_gpu = (
        ["GPU (CUDA, TensorRT): the networks ran on the CPU"] if backend["used"] == "cpu" else []
    )
    if given.adapt_cache is not None:
        left_out.append("what fine-tuning costs: weights were kept from other runs")
    return {
        **head(
            backend=backend,
            engine=engine,
            frame_size_hw=frame_size_hw,
            objects=objects,
            frames=sum(len(sequence.annotation_paths) - 1 for sequence in dataset.sequences),
            warmup=given.warmup,
            load_average_before=load_before,
            not_measured=[*not_on_gpu, *left_out],
        ),
        "data": data,
        "seed": given.seed,
        "ablations": runs,
    }


def main() -> int:
    """Parse, run, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--davis-root", type=Path, required=True)
    parser.add_argument("--set", default="val", help="list in ImageSets/2017")
    parser.add_argument("--resolution", default="480p")
    parser.add_argument("--engine-dir", type=Path, help="default: the shipped engines")
    parser.add_argument(
        "--ablation", default=",".join(DEFAULT), help="default: %(default)s; see davis_ablations.py"
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME=SET:OPTION=VALUE,...",
        help="another set: one of those that run, with other options; may be repeated",
    )
    parser.add_argument("--sequences", help="names with commas; default: all of the set")
    parser.add_argument("--seed", type=int, default=0, help="of fine-tuning")
    parser.add_argument(
        "--adapt-cache",
        type=Path,
        help="keep fine-tuned weights there for other runs; what they cost is not told then",
    )
    parser.add_argument(
        "--adapt-roles",
        default=",".join(FINETUNABLE_ROLES),
        help="networks to fine-tune: %(default)s",
    )
    parser.add_argument("--adapt-steps", type=int, help="default: the recipe of each network")
    parser.add_argument(
        "--masks", type=Path, help="keep the masks there, <set of stages>/<sequence>"
    )
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=5, help="frames that do not count, a set")
    parser.add_argument("-o", "--out", type=Path, default=Path("davis.json"))
    given = parser.parse_args()
    try:
        body = benchmark(given)
        write_result(given.out, "davis", body)
    except MpnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, done in body["ablations"].items():
        print(
            f"{name:18} J {done['J-Mean']:.4f}  F {done['F-Mean']:.4f}  J&F {done['J&F-Mean']:.4f}"
            f"  wall {done['wall_fps']} FPS"
        )
    print(f"written: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
