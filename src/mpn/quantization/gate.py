"""Segment an annotated split, and compare the masks of two runs."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mpn.engines.base import Engine
from mpn.engines.open import EngineSet, open_engines
from mpn.engines.spec import Role
from mpn.engines.wrapper import EngineWrapper
from mpn.errors import ExportError
from mpn.evaluation import DavisDataset, DavisSequence, load_annotation, region_similarity
from mpn.runtime.media.video_images import load_rgb
from mpn.runtime.pipeline import Pipeline
from mpn.types import Float32Array, UInt8Array

LARGEST_J_DROP_POINTS = 0.3
SMALLEST_MASK_IOU = 0.985
_VOID = 255
_SEED = 0


class InputSample:
    """Random sample of the inputs of an engine, of bounded size.

    Reservoir sampling (Vitter, "Random Sampling with a Reservoir", 1985, algorithm R): each run has
    the same chance.

    Args:
        size: Number of kept inputs.
    """

    def __init__(self, size: int) -> None:
        self.inputs: list[dict[str, Float32Array]] = []
        self._size, self._runs = size, 0
        self._random = random.Random(_SEED)

    def add(self, inputs: Mapping[str, Float32Array]) -> None:
        """Take the inputs of a run, or leave them out."""
        self._runs += 1
        place = len(self.inputs)
        if place == self._size:
            place = self._random.randrange(self._runs)
            if place >= self._size:
                return
        self.inputs[place : place + 1] = [{name: a.copy() for name, a in inputs.items()}]


class RecordedEngine(EngineWrapper):
    """Engine that samples its inputs."""

    def __init__(self, engine: Engine, sample: InputSample) -> None:
        super().__init__(engine)
        self._sample = sample

    def run(self, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        """Run once, see :class:`mpn.engines.base.Engine`."""
        self._sample.add(inputs)
        return super().run(inputs)


@dataclass(frozen=True)
class SequenceMasks:
    """Masks of one sequence, from its second frame on.

    Attributes:
        name: Name of the sequence.
        shape: (frames, height, width).
        packed: The labels, compressed: a long split would not fit in memory.
        j: Mean region similarity per object.
    """

    name: str
    shape: tuple[int, int, int]
    packed: bytes
    j: tuple[float, ...]

    @property
    def labels(self) -> UInt8Array:
        """(frames, H, W) uint8 object ids."""
        return np.frombuffer(zlib.decompress(self.packed), np.uint8).reshape(self.shape)


@dataclass(frozen=True)
class Comparison:
    """Agreement of two runs over a split.

    Attributes:
        j: Mean J of the float32 engines over the objects, 0..1.
        j_drop_points: J of the float32 engines minus J of the others, times 100.
        mask_iou: IoU of the masks of both, mean over frames, then objects.
        worst: Sequence with the smallest IoU.
        worst_iou: Its IoU.
    """

    j: float
    j_drop_points: float
    mask_iou: float
    worst: str
    worst_iou: float

    @property
    def passes(self) -> bool:
        """Whether the second run may replace the first."""
        return self.j_drop_points <= LARGEST_J_DROP_POINTS and self.mask_iou >= SMALLEST_MASK_IOU

    def __str__(self) -> str:
        return (
            f"J {100 * self.j:.2f} drops by {self.j_drop_points:.2f} points (limit "
            f"{LARGEST_J_DROP_POINTS:g}), mask IoU {self.mask_iou:.4f} (limit "
            f"{SMALLEST_MASK_IOU:g}), smallest in {self.worst} ({self.worst_iou:.4f})"
        )


@dataclass
class Split:
    """Split of a data set in DAVIS layout, to run pipelines on.

    Attributes:
        dataset: Its annotations.
        images: Folder with one folder of JPEGs per sequence.
        frames: Largest number of frames per sequence.
        on_sequence: Called with the name before each sequence.
    """

    dataset: DavisDataset
    images: Path
    frames: int
    on_sequence: Callable[[str], None] = field(default=lambda name: None)

    @property
    def description(self) -> str:
        """One line for people."""
        sequences = self.dataset.sequences
        count = sum(len(s.annotation_paths[: self.frames]) for s in sequences)
        return f"{self.dataset.set_name}: {len(sequences)} sequences, {count} frames"

    def run(
        self, directory: Path, samples: Mapping[Role, InputSample] | None = None
    ) -> tuple[SequenceMasks, ...]:
        """Segment each sequence with the options of the directory.

        Args:
            directory: The engine directory; it runs on onnxruntime on the CPU.
            samples: Take the inputs of these roles.

        Raises:
            EvaluationError: If an annotation cannot be used.
            InputError: If an image cannot be read.
        """

        def opener(*given: Any, **options: Any) -> EngineSet:
            engines = open_engines(*given, **options)
            recorded: dict[Role, Any] = {
                role: RecordedEngine(engines.engines[role], sample)
                for role, sample in (samples or {}).items()
                if role in engines.engines
            }
            return replace(engines, **recorded)

        found = []
        for sequence in self.dataset.sequences:
            self.on_sequence(sequence.name)
            with Pipeline.from_engines(directory, backend="cpu", opener=opener) as pipeline:
                found.append(self._segment(pipeline, sequence))
        return tuple(found)

    def _segment(self, pipeline: Pipeline, sequence: DavisSequence) -> SequenceMasks:
        labels: list[UInt8Array] = []
        j: list[list[float]] = []
        ids: list[int] = []
        for index, annotation in enumerate(sequence.annotation_paths[: self.frames]):
            truth = load_annotation(annotation)
            rgb = load_rgb(self.images / sequence.name / f"{annotation.stem}.jpg")
            if index == 0:
                ids = [int(i) for i in np.unique(truth) if i not in (0, _VOID)]
                pipeline.start(rgb, np.where(truth == _VOID, 0, truth).astype(np.uint8))
                continue
            labels.append(pipeline.step(rgb).labels)
            void = truth == _VOID
            j.append([region_similarity(truth == i, labels[-1] == i, void_mask=void) for i in ids])
        stack = np.stack(labels)
        packed = zlib.compress(np.ascontiguousarray(stack, np.uint8).tobytes(), 1)
        frames, height, width = stack.shape
        means = tuple(float(value) for value in np.mean(j, axis=0))
        return SequenceMasks(sequence.name, (frames, height, width), packed, means)


def compared(reference: Sequence[SequenceMasks], others: Sequence[SequenceMasks]) -> Comparison:
    """Compare two runs over the same split.

    Args:
        reference: Masks of the float32 engines.
        others: Masks of the other engines.

    Raises:
        ExportError: If no sequence has an object.
    """
    by_sequence: dict[str, list[float]] = {}
    for one, other in zip(reference, others, strict=True):
        a, b = one.labels, other.labels
        for i in np.union1d(np.unique(a), np.unique(b)):
            if i:
                ious = [region_similarity(x == i, y == i) for x, y in zip(a, b, strict=True)]
                by_sequence.setdefault(one.name, []).append(float(np.mean(ious)))
    if not by_sequence or not any(masks.j for masks in reference):
        raise ExportError("the masks cannot be compared: no sequence has an object")
    means = {name: float(np.mean(ious)) for name, ious in by_sequence.items()}
    worst = min(means, key=lambda name: means[name])
    before, after = (
        float(np.mean([value for masks in run for value in masks.j])) for run in (reference, others)
    )
    iou = float(np.mean([value for ious in by_sequence.values() for value in ious]))
    return Comparison(before, 100 * (before - after), iou, worst, means[worst])
