"""Read DAVIS sequences and segment them: the one loop of all accuracy benchmarks."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import cv2
import numpy as np

from mpn import Pipeline
from mpn.errors import InputError
from mpn.evaluation import DavisDataset, DavisSequence, load_davis
from mpn.evaluation import load_annotation as load_truth
from mpn.masks import load_labels, save_labels
from mpn.types import UInt8Array

MAX_IDS = 254


@dataclass(frozen=True)
class SegmentedFrame:
    """Hold one segmented frame and its times.

    Attributes:
        index: Number of the frame from 0.
        annotation: Path of the ground truth.
        truth: (H, W) uint8 labels of the ground truth.
        labels: (H, W) uint8 labels of the pipeline.
        wall_s: Seconds to decode, segment and save the frame.
        stages_s: Seconds of all stages.
        cpu_s: Processor seconds of the pipeline call.
    """

    index: int
    annotation: Path
    truth: UInt8Array
    labels: UInt8Array
    wall_s: float
    stages_s: float
    cpu_s: float


def segment_frames(
    pipeline: Pipeline,
    sequence: DavisSequence,
    images: Path,
    *,
    frames: int | None = None,
    save_in: Path | None = None,
) -> Iterator[SegmentedFrame]:
    """Segment a sequence from its first annotation.

    Args:
        pipeline: An open pipeline.
        sequence: The sequence.
        images: Folder with one folder of JPEGs per sequence.
        frames: Number of frames; None for all.
        save_in: Folder for the palette PNGs; None to save none.

    Raises:
        InputError: If an image is missing or cannot be read.
    """
    for index, annotation in enumerate(sequence.annotation_paths[:frames]):
        truth = load_truth(annotation)
        given = None if index else load_labels(annotation, max_objects=MAX_IDS)
        start_s = perf_counter()
        rgb = load_rgb(image_path(images, sequence, annotation))
        cpu_start_s = process_time()
        result = pipeline.step(rgb) if given is None else pipeline.start(rgb, given)
        cpu_s = process_time() - cpu_start_s
        if save_in is not None:
            save_labels(save_in / f"{annotation.stem}.png", result.labels)
        wall_s = perf_counter() - start_s
        stages_s = sum(result.timings.values())
        yield SegmentedFrame(index, annotation, truth, result.labels, wall_s, stages_s, cpu_s)


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


def data_facts(dataset: DavisDataset) -> dict[str, Any]:
    """Return ``data``, ``frame_size_hw`` (the commonest) and ``objects`` of a result."""
    sequences = {}
    for sequence in dataset.sequences:
        first = load_labels(sequence.annotation_paths[0], max_objects=MAX_IDS)
        sequences[sequence.name] = {
            "frames": len(sequence.annotation_paths),
            "objects": int(first.max()),
            "size_hw": list(first.shape),
        }
    sizes = Counter(tuple(facts["size_hw"]) for facts in sequences.values())
    return {
        "data": {"set": dataset.set_name, "sequences": sequences},
        "frame_size_hw": list(sizes.most_common(1)[0][0]),
        "objects": sorted({facts["objects"] for facts in sequences.values()}),
    }
