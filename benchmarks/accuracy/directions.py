"""Measure masks in the middle, and weights to blend both directions with.

    python -m benchmarks.accuracy.directions --davis-root DAVIS [--set train] [--sequences A,B]
        [--engine-dir DIR] [--every 3] [--threads 2] [-o FILE.json]

Each sequence is segmented forward from its first frame, backward from its last one, and both ways
from the one in the middle. ``anchors`` blends the frames between two true masks, with both ends of
the sequence as masks, and with the middle one as well. ``halves`` compares the mask of the first
frame with the mask in the middle. Every third frame between the masks is scored. Sequences whose
middle or last frame lacks an object of the first are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.sequences import (
    MAX_IDS,
    add_data_arguments,
    data_facts,
    dataset_from_arguments,
    image_path,
    load_rgb,
    select_sequences,
)
from benchmarks.report.schema import cpu_backend, measured, result_header
from mpn import Pipeline
from mpn.errors import InputError
from mpn.evaluation import DavisSequence, load_annotation, region_similarity
from mpn.masks import load_labels
from mpn.runtime.bench.result import check_result_path, engine_facts, load_average
from mpn.runtime.host.roi import box_from_prob
from mpn.runtime.session.blend import backward_weight, blended, weight_of
from mpn.runtime.session.spool import SpooledFrame
from mpn.types import StepResult, Track, UInt8Array

Pass = Mapping[int, SpooledFrame]
Weight = Callable[[float, Track, Track], float]

PRODUCT = "distance x reliability^2, 0 if lost"
WEIGHTS: Mapping[str, Weight] = {
    "forward": lambda progress, forward, backward: 0.0,
    "backward": lambda progress, forward, backward: 1.0,
    "nearest": lambda progress, forward, backward: float(progress > 0.5),
    "distance": lambda progress, forward, backward: progress,
    "distance x confidence": lambda progress, forward, backward: weight_of(
        progress, forward.confidence, backward.confidence
    ),
    "distance x reliability": lambda progress, forward, backward: weight_of(
        progress, _reliability(forward), _reliability(backward)
    ),
    "distance x reliability^2": lambda progress, forward, backward: weight_of(
        progress, _reliability(forward) ** 2, _reliability(backward) ** 2
    ),
    "distance x reliability, 0 if lost": lambda progress, forward, backward: weight_of(
        progress, *(_reliability(track) if track.area_px else 0.0 for track in (forward, backward))
    ),
    PRODUCT: backward_weight,
}
"""Share of the backward pass, by the place between the masks and the object in both passes."""


SHOWN = ("forward", "backward", PRODUCT)


def _reliability(track: Track) -> float:
    return track.confidence if track.reliability is None else track.reliability


def run_pass(
    pipeline: Pipeline, sequence: DavisSequence, images: Path, order: Iterable[int]
) -> dict[int, SpooledFrame]:
    """Segment frames in an order, from the annotation of the first of them."""
    found: dict[int, SpooledFrame] = {}
    for index in order:
        annotation = sequence.annotation_paths[index]
        rgb = load_rgb(image_path(images, sequence, annotation))
        if found:
            result = pipeline.step(rgb)
        else:
            result = pipeline.start(rgb, load_labels(annotation, max_objects=MAX_IDS))
        probs = {}
        for object_id, plane in zip(result.object_ids, result.probs, strict=True):
            box = box_from_prob(plane, 0.0)
            if box is not None:
                probs[object_id] = box, plane[box.y0 : box.y1, box.x0 : box.x1].copy()
        found[index] = SpooledFrame(result.labels, result.object_ids, result.tracks, probs)
    return found


def j_between(
    forward: Pass,
    backward: Pass,
    truths: Mapping[int, UInt8Array],
    first: int,
    last: int,
    *,
    every: int,
) -> dict[str, float]:
    """Return the mean J of the frames between two masks, by the name of the weight.

    Args:
        forward: Pass from ``first``.
        backward: Pass from ``last``.
        truths: Frame index -> (H, W) uint8 ids.
        first: Frame of the mask before.
        last: Frame of the mask after.
        every: Distance of the scored frames. An odd one: the target model runs on every second
            frame, and an even distance would score only frames with, or only frames without it.
    """
    ids = forward[first].object_ids
    common = [object_id for object_id in ids if object_id in backward[last].object_ids]
    values: dict[str, list[float]] = {name: [] for name in WEIGHTS}
    for index in range(first + 1, last, every):
        ahead = forward[index]
        result = StepResult(index, ahead.labels, ahead.planes(ids), ids, ahead.tracks)
        progress = (index - first) / (last - first)
        for name, weight in WEIGHTS.items():
            found = blended(result, backward[index], common, progress, weight_of_backward=weight)
            values[name].append(j_of(found.labels, truths[index], ids))
    return {name: float(np.mean(of_frames)) for name, of_frames in values.items()}


def j_of(labels: UInt8Array, truth: UInt8Array, object_ids: Iterable[int]) -> float:
    """Return the mean J of the objects in a frame."""
    return float(np.mean([region_similarity(truth == k, labels == k) for k in object_ids]))


def has_masks(sequence: DavisSequence) -> bool:
    """Return whether the middle and the last frame have all objects of the first."""
    paths = sequence.annotation_paths
    first, middle, last = (
        set(np.unique(load_annotation(paths[k])).tolist()) for k in (0, len(paths) // 2, -1)
    )
    return first <= middle and first <= last


def measure(
    pipeline: Pipeline, sequence: DavisSequence, images: Path, *, every: int
) -> dict[str, Any]:
    """Return the figures of a sequence.

    Raises:
        InputError: If it is too short.
    """
    count = len(sequence.annotation_paths)
    last, middle = count - 1, count // 2
    if last - middle < 2:
        raise InputError(f"'{sequence.name}' has {count} frames: at least 5 are needed")
    truths = {k: load_annotation(path) for k, path in enumerate(sequence.annotation_paths)}
    orders = {
        "first": range(count),
        "last": range(last, -1, -1),
        "middle_forward": range(middle, count),
        "middle_backward": range(middle, -1, -1),
    }
    passes = {name: run_pass(pipeline, sequence, images, order) for name, order in orders.items()}
    two = j_between(passes["first"], passes["last"], truths, 0, last, every=every)
    before = j_between(passes["first"], passes["middle_backward"], truths, 0, middle, every=every)
    after = j_between(passes["middle_forward"], passes["last"], truths, middle, last, every=every)
    ids = passes["first"][0].object_ids

    def j_mean(one: Pass, indices: range) -> float:
        return float(np.mean([j_of(one[k].labels, truths[k], ids) for k in indices]))

    halves = {
        "first": (range(1, middle, every), "middle_backward"),
        "second": (range(middle + 1, last, every), "middle_forward"),
    }
    return {
        "anchors": {
            "two": {name: _figure(two[name]) for name in WEIGHTS},
            "three": {name: _figure((before[name] + after[name]) / 2) for name in WEIGHTS},
        },
        "halves": {
            half: {
                "first_mask": _figure(j_mean(passes["first"], indices)),
                "middle_mask": _figure(j_mean(passes[name], indices)),
            }
            for half, (indices, name) in halves.items()
        },
    }


def _figure(value: float) -> dict[str, float]:
    return {"J-Mean": value}


def mean_of(figures: Iterable[Any]) -> Any:
    """Return the means of nested figures of the same keys."""
    values = list(figures)
    if isinstance(values[0], Mapping):
        return {key: mean_of(value[key] for value in values) for key in values[0]}
    return round(float(np.mean(values)), 4)


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return the body of the result."""
    check_result_path(given.out)
    dataset, images = dataset_from_arguments(given)
    before = load_average()
    runs: dict[str, Any] = {}
    left_out: list[str] = []
    with Pipeline.from_engines(given.engine_dir, backend="cpu", threads=given.threads) as pipeline:
        engine = engine_facts(pipeline.engines)
        for sequence in dataset.sequences:
            if not has_masks(sequence):
                left_out.append(sequence.name)
                continue
            run = measure(pipeline, sequence, images, every=given.every)
            runs[sequence.name] = mean_of([run])
            two = run["anchors"]["two"]
            print(
                f"{sequence.name:20} J of two masks: "
                + ", ".join(f"{name} {two[name]['J-Mean']:.3f}" for name in SHOWN),
                flush=True,
            )
        options = pipeline.options.as_json()
    if not runs:
        raise InputError("no sequence has all objects in its middle and its last frame")
    facts = data_facts(select_sequences(dataset, list(runs)))
    return {
        **result_header(
            backend=cpu_backend(given.threads),
            engine=engine,
            frame_size_hw=facts["frame_size_hw"],
            objects=facts["objects"],
            frames=None,
            warmup=None,
            load_average_before=before,
            not_measured=["speed: the passes of a sequence run once for all weights (directions)"],
        ),
        "data": facts["data"],
        "options": options,
        "product": PRODUCT,
        "left_out": left_out,
        "every": given.every,
        "sequences": runs,
        "mean": mean_of(runs.values()),
    }


def main() -> int:
    """Parse the arguments, run, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_arguments(parser, default_set="train")
    parser.add_argument("--engine-dir", type=Path, help="engine directory [the shipped one]")
    parser.add_argument("--every", type=int, default=3, help="score every N-th frame [3]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=Path("directions.json"))
    arguments = parser.parse_args()
    body = measured("directions", benchmark, arguments)
    if body is None:
        return 1
    print(f"J: {body['mean']}\nwritten: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
