"""J&F and FPS from the same run over a folder in DAVIS layout.

    python benchmarks/davis.py --davis-root DAVIS [--set val] [--engine-dir DIR]
        [--ablation propagation,warp] [--threads 2] [-o benchmarks/results/davis.json]

Every sequence is decoded, segmented from its first annotation and saved as palette PNGs, frame by
frame in one thread; ``wall_fps`` counts all of that, ``pipeline_fps`` the stages alone. Scores are
those of ``mpn eval``: the first and the last frame do not count.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2

from facts import summary_ms, write_result
from mpn import Pipeline, PipelineOptions
from mpn.evaluation import DavisDataset, SequenceEvaluator, load_davis
from mpn.evaluation.scores import DatasetScore, SequenceScore
from mpn.runtime.labels import load_labels, save_labels

ABLATIONS: dict[str, dict[str, Any]] = {
    "warp": {"use_propagation": False, "osvos": "off"},
    "propagation": {"osvos": "off"},
    "osvos": {},
    "paper-warp": {
        "use_propagation": False,
        "osvos": "off",
        "flow_check_px": 0.0,
        "colour_weight": 0.0,
    },
    "paper-propagation": {"osvos": "off", "flow_check_px": 0.0, "colour_weight": 0.0},
}
"""Stages by name; what a set does not say is the manifest's advice. The last two leave out the
stages that the paper does not have."""


def run_sequence(
    pipeline: Pipeline, dataset: DavisDataset, number: int, images: Path, out: Path
) -> tuple[SequenceScore, list[float], list[float]]:
    """Segment one sequence; its score, and the wall and pipeline seconds of each frame."""
    sequence = dataset.sequences[number]
    evaluator = SequenceEvaluator(sequence.name)
    wall_s, pipeline_s = [], []
    for index, annotation in enumerate(sequence.annotation_paths):
        truth = load_labels(annotation, max_objects=254)
        start = perf_counter()
        bgr = cv2.imread(str(images / sequence.name / f"{annotation.stem}.jpg"), cv2.IMREAD_COLOR)
        rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        result = pipeline.step(rgb) if index else pipeline.start(rgb, truth)
        save_labels(out / f"{annotation.stem}.png", result.labels)
        if index:
            wall_s.append(perf_counter() - start)
            pipeline_s.append(sum(result.timings.values()))
        evaluator.feed(truth, result.labels, source=annotation)
    return evaluator.conclude(), wall_s, pipeline_s


def run_ablation(name: str, dataset: DavisDataset, arguments: argparse.Namespace) -> dict[str, Any]:
    """All sequences with one set of stages."""
    images = arguments.davis_root / "JPEGImages" / arguments.resolution
    options = PipelineOptions(**ABLATIONS[name])
    scores, wall_s, pipeline_s = [], [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        Pipeline.from_engines(
            arguments.engine_dir, backend="cpu", threads=arguments.threads, options=options
        ) as pipeline,
    ):
        for number in range(len(dataset.sequences)):
            score, wall, inside = run_sequence(pipeline, dataset, number, images, Path(folder))
            scores.append(score)
            wall_s += wall
            pipeline_s += inside
            for k in score.objects:
                print(f"  {name:12} {k.name:24} J {k.region.mean:.3f}  F {k.boundary.mean:.3f}")
        facts = {
            "backend": pipeline.backend,
            "engine_dir": pipeline.engines.manifest.name,
            "digests": dict(pipeline.engines.digests),
        }
    total = DatasetScore(arguments.set, tuple(scores))
    print(
        f"{name}: J {total.region.mean:.4f}  F {total.boundary.mean:.4f}  J&F {total.j_and_f:.4f}"
    )
    return {
        **facts,
        "J-Mean": total.region.mean,
        "F-Mean": total.boundary.mean,
        "J&F-Mean": total.j_and_f,
        "objects": {
            k.name: {"J-Mean": k.region.mean, "F-Mean": k.boundary.mean} for k in total.objects
        },
        "wall": summary_ms(wall_s),
        "pipeline": summary_ms(pipeline_s),
        "wall_fps": round(len(wall_s) / sum(wall_s), 2),
        "pipeline_fps": round(len(pipeline_s) / sum(pipeline_s), 2),
    }


def main() -> None:
    """Run the ablations asked for and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--davis-root", type=Path, required=True)
    parser.add_argument("--set", default="val")
    parser.add_argument("--resolution", default="480p")
    parser.add_argument("--engine-dir", type=Path, help="default: the shipped engines")
    parser.add_argument(
        "--ablation",
        default="propagation,warp,paper-propagation,paper-warp",
        help="of " + ",".join(ABLATIONS),
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=Path("davis.json"))
    arguments = parser.parse_args()
    dataset = load_davis(arguments.davis_root, arguments.set)
    runs = {name: run_ablation(name, dataset, arguments) for name in arguments.ablation.split(",")}
    write_result(
        arguments.out,
        "davis",
        {
            "data": {
                "set": arguments.set,
                "sequences": {s.name: len(s.annotation_paths) for s in dataset.sequences},
            },
            "threads": arguments.threads,
            "ablations": runs,
        },
    )
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
