"""Measure what one correction is worth at the frame that the review names first.

    python -m benchmarks.accuracy.corrections --davis-root DAVIS [--set val] [--worst 3]
        [--seeds 5] [--sequences A,B] [--engine-dir DIR] [--held-out] [--threads 2] [-o FILE.json]

Each sequence of the set runs from its first true mask. The worst, by mean J, run again with a
second true mask: at the frame that the review names first, and at random frames, one per seed,
uniform over the frames with all objects. Both masks have direction ``both``, as by default. J is
the mean over objects and frames without the frames of both masks.

Of ``train`` the twelve sequences run that the options of the package were chosen on. The networks
of the package are trained on them; ``--held-out`` states that those of DIR are not.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.sequences import (
    MAX_IDS,
    add_data_arguments,
    data_facts,
    dataset_from_arguments,
    load_truth,
)
from benchmarks.report.schema import cpu_backend, measured, result_header
from mpn import Pipeline, propagate
from mpn.engines.open import default_engine_dir
from mpn.evaluation import DavisSequence, region_similarity
from mpn.masks import load_labels
from mpn.runtime.bench.result import engine_facts, load_average
from mpn.runtime.review.series import frame_reliability
from mpn.runtime.review.worst import worst_positions
from mpn.types import UInt8Array

CHOSEN_ON = (
    "breakdance-flare,car-turn,dance-jump,flamingo,hike,horsejump-low,mallard-water,motorbike,"
    "scooter-gray,soccerball,stroller,surf"
)


@dataclass(frozen=True)
class Scored:
    """One run of a sequence.

    Attributes:
        j: Mean J per frame, over all objects.
        worst: Frames that the review names, the first one first.
    """

    j: tuple[float, ...]
    worst: tuple[int, ...]

    def mean_without(self, frames: set[int]) -> float:
        """Return the mean J of all other frames."""
        return float(np.mean([j for at, j in enumerate(self.j) if at not in frames]))


class TrueSequence:
    """A sequence with its true masks.

    Args:
        sequence: The sequence.
        images: Folder with one folder of JPEGs per sequence.
    """

    def __init__(self, sequence: DavisSequence, images: Path) -> None:
        self.name, self._video = sequence.name, str(images / sequence.name)
        first, *later = sequence.annotation_paths
        self.truth: list[UInt8Array] = [
            load_labels(first, max_objects=MAX_IDS),
            *(load_truth(path) for path in later),
        ]
        self.object_ids = [int(k) for k in np.unique(self.truth[0]) if k]

    @property
    def whole_frames(self) -> list[int]:
        """Frames after the first that have all objects."""
        return [
            at
            for at, labels in enumerate(self.truth)
            if at and all((labels == object_id).any() for object_id in self.object_ids)
        ]

    def run(self, pipeline: Pipeline, masks: Mapping[int, UInt8Array]) -> Scored:
        """Segment the sequence from some masks."""
        j, reliability = [], []
        for truth, result in zip(
            self.truth, propagate(self._video, masks, pipeline=pipeline), strict=True
        ):
            reliability.append(frame_reliability(result.tracks))
            scores = [
                region_similarity(truth == object_id, result.labels == object_id)
                for object_id in self.object_ids
            ]
            j.append(float(np.mean(scores)))
        return Scored(tuple(j), tuple(worst_positions(reliability)))


def corrected(
    pipeline: Pipeline, sequence: TrueSequence, base: Scored, seeds: int
) -> dict[str, Any]:
    """Run a sequence with one correction at each of the chosen frames."""
    whole = sequence.whole_frames
    named = next(at for at in base.worst if at in whole)
    # The name is part of the seed: otherwise the same places of all sequences are drawn.
    name = zlib.crc32(sequence.name.encode())
    chosen = [int(np.random.default_rng([name, seed]).choice(whole)) for seed in range(seeds)]
    gains: dict[int, dict[str, float]] = {}
    for at in {named, *chosen}:
        run = sequence.run(pipeline, {0: sequence.truth[0], at: sequence.truth[at]})
        gains[at] = {
            "frame": at,
            "j_before": round(base.mean_without({0, at}), 4),
            "j_after": round(run.mean_without({0, at}), 4),
        }
    random = [gains[at] for at in chosen]
    return {
        "frames": len(sequence.truth),
        "j": round(base.mean_without({0}), 4),
        "named": gains[named],
        "random": random,
        "named_gain": round(_gain(gains[named]), 4),
        "random_gain": round(float(np.mean([_gain(one) for one in random])), 4),
    }


def _gain(run: Mapping[str, float]) -> float:
    return run["j_after"] - run["j_before"]


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return the body of the result."""
    load_before = load_average()
    if given.set == "train" and given.sequences is None:
        given.sequences = CHOSEN_ON
    dataset, images = dataset_from_arguments(given)
    found: dict[str, Any] = {}
    with Pipeline.from_engines(
        given.engine_dir or default_engine_dir(), backend="cpu", threads=given.threads
    ) as pipeline:
        bases: dict[str, tuple[TrueSequence, Scored]] = {}
        for each in dataset.sequences:
            sequence = TrueSequence(each, images)
            bases[each.name] = sequence, sequence.run(pipeline, {0: sequence.truth[0]})
            print(f"{each.name:20} J {np.mean(bases[each.name][1].j[1:]):.3f}", flush=True)
        worst = sorted(bases, key=lambda name: np.mean(bases[name][1].j[1:]))[: given.worst]
        for name in worst:
            found[name] = corrected(pipeline, *bases[name], seeds=given.seeds)
            print(
                f"{name:20} J {found[name]['j']:.3f}, frame {found[name]['named']['frame']} named "
                f"{found[name]['named_gain']:+.3f}, random {found[name]['random_gain']:+.3f}",
                flush=True,
            )
        engine, options = engine_facts(pipeline.engines), pipeline.options.as_json()
    facts = data_facts(dataset)
    facts["data"]["is_held_out"] = given.held_out or given.set == "val"
    return {
        **result_header(
            backend=cpu_backend(given.threads),
            engine=engine,
            frame_size_hw=facts["frame_size_hw"],
            objects=facts["objects"],
            frames=None,
            warmup=None,
            load_average_before=load_before,
            not_measured=[],
        ),
        "data": facts["data"],
        "options": options,
        "seeds": given.seeds,
        "sequences": found,
    }


def main() -> int:
    """Parse the arguments, run, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_arguments(parser, default_set="val")
    parser.add_argument("--worst", type=int, default=3, help="corrected sequences [%(default)s]")
    parser.add_argument("--seeds", type=int, default=5, help="random frames [%(default)s]")
    parser.add_argument("--engine-dir", type=Path, help="engine directory [the shipped one]")
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="state that the networks of --engine-dir were not trained on the sequences",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=Path("corrections.json"))
    given = parser.parse_args()
    if given.held_out and given.engine_dir is None:
        parser.error("--held-out needs --engine-dir: the shipped networks are trained on `train`")
    if measured("corrections", benchmark, given) is None:
        return 1
    print(f"written: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
