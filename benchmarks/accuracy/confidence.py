"""Measure how well the figures of a track find wrong masks.

    python -m benchmarks.accuracy.confidence --davis-root DAVIS [--sets val,train,made]
        [--sequences A,B] [--engine-dir DIR] [--threads 2] [-o FILE.json]

Each sequence runs with the options of ``mpn run``, without fine-tuning. A mask is *wrong* if its J
with the true mask is below 0.5. An empty mask is right if the object is absent, and wrong if it is
present. AUROC is the probability that a wrong mask has a lower figure than a right one; ties count
half. The masks of the user are not counted. ``val`` and ``train`` are sets of DAVIS; ``made`` are
the clips of lookalikes.py and reappearance.py, which have crossing and absent objects. The power of
the confidence in the reliability was chosen on ``train`` and ``made``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.accuracy import lookalikes, reappearance
from benchmarks.accuracy.lookalikes import CrossingClip
from benchmarks.accuracy.reappearance import ReappearanceClip
from benchmarks.accuracy.sequences import (
    MAX_IDS,
    frame_paths,
    image_path,
    load_rgb,
    load_truth,
    select_sequences,
)
from benchmarks.report.schema import cpu_backend, measured, result_header
from mpn import Pipeline
from mpn.engines.open import default_engine_dir
from mpn.evaluation import load_davis, region_similarity
from mpn.masks import load_labels
from mpn.runtime.bench.result import engine_facts, load_average
from mpn.runtime.review.worst import CHECK_BELOW
from mpn.types import UInt8Array

WRONG_BELOW_J = 0.5
FIGURES = ("confidence", "reliability")


@dataclass(frozen=True)
class Judged:
    """One mask of a run with its truth.

    Attributes:
        j: Region similarity with the true mask, 0..1.
        is_empty: Whether the mask is empty.
        figures: Confidence and reliability.
    """

    j: float
    is_empty: bool
    figures: tuple[float, float]


def judged_masks(
    pipeline: Pipeline, frames: Iterable[tuple[UInt8Array, UInt8Array]]
) -> Iterator[Judged]:
    """Segment frames from their first true labels, and yield each later mask.

    Args:
        pipeline: Open.
        frames: (H, W, 3) uint8 RGB and (H, W) uint8 true labels.
    """
    for index, (rgb, truth) in enumerate(frames):
        if index == 0:
            pipeline.start(rgb, truth)
            continue
        result = pipeline.step(rgb)
        for track in result.tracks:
            object_id, reliability = track.object_id, track.reliability
            assert reliability is not None
            j = region_similarity(truth == object_id, result.labels == object_id)
            yield Judged(j, track.area_px == 0, (track.confidence, reliability))


def auroc(figures: Sequence[float], is_right: npt.NDArray[np.bool_]) -> float | None:
    """Return the probability that a right mask has a higher figure than a wrong one.

    Args:
        figures: Per mask its figure.
        is_right: (N,) bool.

    Returns:
        None if all masks are right, or all are wrong.
    """
    values = np.asarray(figures, np.float64)
    right, wrong = np.sort(values[is_right]), values[~is_right]
    if not right.size or not wrong.size:
        return None
    below = np.searchsorted(right, wrong, "left")
    equal = np.searchsorted(right, wrong, "right") - below
    higher = right.size - below - equal
    return float((higher + 0.5 * equal).sum() / (right.size * wrong.size))


def figures_of(masks: Sequence[Judged]) -> dict[str, Any]:
    """Return the figures of some masks for the result."""
    is_right = np.array([mask.j >= WRONG_BELOW_J for mask in masks])
    marked = np.array([mask.figures[1] < CHECK_BELOW for mask in masks])
    found = {
        name: auroc([mask.figures[column] for mask in masks], is_right)
        for column, name in enumerate(FIGURES)
    }
    return {
        "masks": len(masks),
        "wrong": int((~is_right).sum()),
        "empty": sum(mask.is_empty for mask in masks),
        "empty_wrong": sum(mask.is_empty and mask.j < WRONG_BELOW_J for mask in masks),
        "auroc": {
            name: None if value is None else round(value, 4) for name, value in found.items()
        },
        "marked": int(marked.sum()),
        "marked_wrong": int((marked & ~is_right).sum()),
    }


def davis_frames(
    given: argparse.Namespace, set_name: str
) -> Iterator[tuple[str, Iterator[tuple[UInt8Array, UInt8Array]]]]:
    """Yield name and frames of each sequence of a set of DAVIS."""
    dataset = load_davis(given.davis_root, set_name, resolution=given.resolution)
    if given.sequences is not None:
        names = {sequence.name for sequence in dataset.sequences}
        dataset = select_sequences(dataset, sorted(names & set(given.sequences.split(","))))
    images = given.davis_root / "JPEGImages" / given.resolution
    for sequence in dataset.sequences:
        paths = frame_paths(sequence, images, is_sparse=False)

        def frames(
            sequence: Any = sequence, paths: Sequence[Path] = paths
        ) -> Iterator[tuple[UInt8Array, UInt8Array]]:
            for index, path in enumerate(paths):
                truth = load_truth(path) if index else load_labels(path, max_objects=MAX_IDS)
                yield load_rgb(image_path(images, sequence, path)), truth

        yield sequence.name, frames()


def made_frames(
    given: argparse.Namespace,
) -> Iterator[tuple[str, Iterator[tuple[UInt8Array, UInt8Array]]]]:
    """Yield name and frames of each made clip."""
    root, chosen = given.davis_root, given.sequences and set(given.sequences.split(","))
    clips: list[CrossingClip | ReappearanceClip] = []
    for pair in lookalikes.PAIRS.split(","):
        subject, _, scene = pair.partition(":")
        clips += [
            CrossingClip(davis_root=root, subject=subject, scene=scene, is_mirrored=mirrored)
            for mirrored in (True, False)
        ]
    for pair in reappearance.PAIRS.split(","):
        subject, _, scene = pair.partition(":")
        clips += [
            ReappearanceClip(davis_root=root, subject=subject, scene=scene, leaves=leaves)
            for leaves in (False, True)
        ]
    for clip in clips:
        if chosen is None or clip.name in chosen:
            yield clip.name, clip.pictures()


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return the body of the result."""
    load_before = load_average()
    directory = given.engine_dir or default_engine_dir()
    sets: dict[str, Any] = {}
    with Pipeline.from_engines(directory, backend="cpu", threads=given.threads) as pipeline:
        engine, options = engine_facts(pipeline.engines), pipeline.options.as_json()
        for set_name in given.sets.split(","):
            source = made_frames(given) if set_name == "made" else davis_frames(given, set_name)
            everything: list[Judged] = []
            sequences: dict[str, Any] = {}
            for name, frames in source:
                masks = list(judged_masks(pipeline, frames))
                everything += masks
                sequences[name] = figures_of(masks)
                print(f"{set_name:6} {name:40} {_line(sequences[name])}", flush=True)
            sets[set_name] = {**figures_of(everything), "sequences": sequences}
            print(f"{set_name:6} {'all':40} {_line(sets[set_name])}", flush=True)
    return {
        **result_header(
            backend=cpu_backend(given.threads),
            engine=engine,
            frame_size_hw=(480, 854),
            objects=None,
            frames=None,
            warmup=None,
            load_average_before=load_before,
            not_measured=[],
        ),
        "options": options,
        "wrong_below_j": WRONG_BELOW_J,
        "marked_below": CHECK_BELOW,
        "sets": sets,
    }


def _line(figures: dict[str, Any]) -> str:
    found = ", ".join(f"{name} {value}" for name, value in figures["auroc"].items())
    return f"{figures['wrong']:4} of {figures['masks']:5} wrong, AUROC {found}"


def main() -> int:
    """Parse the arguments, run, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--davis-root", type=Path, required=True, help="folder in DAVIS layout")
    parser.add_argument("--sets", default="val,train,made", help="[%(default)s]")
    parser.add_argument("--resolution", default="480p")
    parser.add_argument("--sequences", help="names separated by commas [all]")
    parser.add_argument("--engine-dir", type=Path, help="engine directory [the shipped one]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=Path("confidence.json"))
    given = parser.parse_args()
    if measured("confidence", benchmark, given) is None:
        return 1
    print(f"written: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
