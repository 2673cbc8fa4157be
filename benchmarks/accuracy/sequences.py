"""Read DAVIS sequences and segment them: the one loop of all accuracy benchmarks.

The truth of a sequence is *dense* if each image has an annotation, as in DAVIS, and *sparse* if
only some have one. With sparse truth all images from the first annotation on are segmented.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Protocol

import cv2
import numpy as np

from mpn import Pipeline
from mpn.errors import InputError
from mpn.evaluation import DavisDataset, DavisSequence, SequenceScore, load_davis
from mpn.evaluation import load_annotation as load_truth
from mpn.masks import load_labels, save_labels
from mpn.types import UInt8Array

MAX_IDS = 254


@dataclass(frozen=True)
class SegmentedFrame:
    """Hold one segmented frame and its times.

    Attributes:
        index: Number of the frame from 0.
        annotation: Path of the ground truth; of a frame without one, where it would be.
        truth: (H, W) uint8 labels of the ground truth; None for a frame without.
        labels: (H, W) uint8 labels of the pipeline.
        wall_s: Seconds to decode, segment and save the frame.
        stages_s: Seconds of all stages.
        cpu_s: Processor seconds of the pipeline call.
    """

    index: int
    annotation: Path
    truth: UInt8Array | None
    labels: UInt8Array
    wall_s: float
    stages_s: float
    cpu_s: float


class Evaluator(Protocol):
    """The part of :class:`mpn.evaluation.SequenceEvaluator` that the benchmarks use."""

    def feed(
        self, gt_labels: UInt8Array, pred_labels: UInt8Array | None, *, source: Path | None = None
    ) -> None:
        """Add the next frame."""

    def conclude(self) -> SequenceScore:
        """Return the scores of all frames."""


def segment_frames(
    pipeline: Pipeline,
    sequence: DavisSequence,
    images: Path,
    *,
    frames: int | None = None,
    save_in: Path | None = None,
    is_sparse: bool = False,
) -> Iterator[SegmentedFrame]:
    """Segment a sequence from its first annotation.

    Args:
        pipeline: An open pipeline.
        sequence: The sequence.
        images: Folder with one folder of JPEGs per sequence.
        frames: Number of frames; None for all.
        save_in: Folder for the palette PNGs; None to save none.
        is_sparse: Whether only some images have an annotation.

    Raises:
        InputError: If an image is missing or cannot be read.
    """
    annotations = frame_paths(sequence, images, is_sparse)[:frames]
    following: UInt8Array | None = None
    for index, annotation in enumerate(annotations):
        has_truth = not is_sparse or annotation in sequence.annotation_paths
        truth = load_truth(annotation) if has_truth else None
        given = None if index else load_labels(annotation, max_objects=MAX_IDS)
        start_s = perf_counter()
        rgb = load_rgb(image_path(images, sequence, annotation)) if following is None else following
        following = None
        if given is None and index + 1 < len(annotations):  # as a run does
            following = load_rgb(image_path(images, sequence, annotations[index + 1]))
            pipeline.prefetch_frame(following)
        cpu_start_s = process_time()
        result = pipeline.step(rgb) if given is None else pipeline.start(rgb, given)
        cpu_s = process_time() - cpu_start_s
        if save_in is not None:
            save_labels(save_in / f"{annotation.stem}.png", result.labels)
        wall_s = perf_counter() - start_s
        stages_s = sum(result.timings.values())
        yield SegmentedFrame(index, annotation, truth, result.labels, wall_s, stages_s, cpu_s)


def feed(evaluator: Evaluator, frame: SegmentedFrame) -> None:
    """Give a frame to an evaluator, if it has a ground truth."""
    if frame.truth is not None:
        evaluator.feed(frame.truth, frame.labels, source=frame.annotation)


def frame_paths(sequence: DavisSequence, images: Path, is_sparse: bool) -> tuple[Path, ...]:
    """Return the path of the annotation of each frame, whether it exists or not.

    Raises:
        InputError: If the truth is sparse and an annotation has no image, or it is dense and an
            image after the first annotation has no annotation.
    """
    annotations = sequence.annotation_paths
    first, stems = annotations[0], {path.stem for path in annotations}
    found = {path.stem for path in (images / sequence.name).glob("*.jpg")}
    if not is_sparse:
        surplus = {stem for stem in found - stems if stem > first.stem}
        if surplus:
            raise InputError(
                f"{len(surplus)} images of '{sequence.name}' have no annotation, the first one is "
                f"{min(surplus)}.jpg: only benchmarks that have --sparse-truth can score this data"
            )
        return annotations
    for stem in sorted(stems - found):
        raise InputError(f"{first.with_stem(stem)}: there is no image {stem}.jpg")
    return tuple(first.with_stem(stem) for stem in sorted(found) if stem >= first.stem)


def image_path(images: Path, sequence: DavisSequence, annotation: Path) -> Path:
    """Return the path of the JPEG of an annotation."""
    return images / sequence.name / f"{annotation.stem}.jpg"


def load_rgb(path: Path) -> UInt8Array:
    """Read an image as (H, W, 3) uint8 RGB.

    Raises:
        InputError: If the file is missing or cannot be read.
    """
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise InputError(f"{path}: no such image, or not readable")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def add_data_arguments(parser: argparse.ArgumentParser, *, default_set: str) -> None:
    """Add the arguments of :func:`dataset_from_arguments`."""
    parser.add_argument("--davis-root", type=Path, required=True, help="folder in DAVIS layout")
    parser.add_argument("--set", default=default_set, help="list in ImageSets/2017 [%(default)s]")
    parser.add_argument("--resolution", default="480p")
    parser.add_argument("--sequences", help="names separated by commas [all of the set]")


def add_sparse_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument of benchmarks that score sparse truth."""
    parser.add_argument(
        "--sparse-truth",
        action="store_true",
        help="only some images are annotated, and 255 is not scored",
    )


def dataset_from_arguments(given: argparse.Namespace) -> tuple[DavisDataset, Path]:
    """Return the chosen sequences and the folder of their images.

    Raises:
        InputError: If the data set or one of its sequences is missing.
    """
    dataset = load_davis(given.davis_root, given.set, resolution=given.resolution)
    if given.sequences is not None:
        dataset = select_sequences(dataset, given.sequences.split(","))
    return dataset, given.davis_root / "JPEGImages" / given.resolution


def select_sequences(dataset: DavisDataset, names: Sequence[str]) -> DavisDataset:
    """Return a set with the named sequences only.

    Raises:
        InputError: If a name is not in the set.
    """
    missing = set(names) - {sequence.name for sequence in dataset.sequences}
    if missing:
        raise InputError(f"set '{dataset.set_name}' has no {', '.join(sorted(missing))}")
    return replace(dataset, sequences=tuple(s for s in dataset.sequences if s.name in names))


def data_facts(
    dataset: DavisDataset, images: Path | None = None, *, is_sparse: bool = False
) -> dict[str, Any]:
    """Return ``data``, ``frame_size_hw`` (the commonest) and ``objects`` of a result.

    With sparse truth each sequence has ``annotated``, its number of annotations.

    Args:
        dataset: The sequences.
        images: Folder with one folder of JPEGs per sequence; needed for sparse truth.
        is_sparse: Whether only some images have an annotation.
    """
    sequences = {}
    for sequence in dataset.sequences:
        first = load_labels(sequence.annotation_paths[0], max_objects=MAX_IDS)
        facts = {
            "frames": len(sequence.annotation_paths),
            "objects": int(first.max()),
            "size_hw": list(first.shape),
        }
        if is_sparse:
            assert images is not None
            facts["annotated"] = facts["frames"]
            facts["frames"] = len(frame_paths(sequence, images, is_sparse))
        sequences[sequence.name] = facts
    sizes = Counter(tuple(facts["size_hw"]) for facts in sequences.values())
    return {
        "data": {"set": dataset.set_name, "sequences": sequences},
        "frame_size_hw": list(sizes.most_common(1)[0][0]),
        "objects": sorted({facts["objects"] for facts in sequences.values()}),
    }
