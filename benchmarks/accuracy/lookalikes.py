"""Measure whether two objects that look alike keep their ids when they cross.

    python -m benchmarks.accuracy.lookalikes --davis-root DAVIS [--engine-dir DIR]
        [--pairs a:b,c:d] [--finetune | --no-finetune] [--write FOLDER] [-o FILE.json]

Each clip runs with the target model and without, or with OSVOS and without if the engines have no
target model; see clips.py.

A clip is made of two sequences of the set *train*: the animal of one is drawn twice over the frames
of the other, and the true masks are known. Object 1 moves to the right and object 2 to the left, so
that one passes in front of the other in the middle of the clip. Object 2 is mirrored, or is the
same animal some frames later. The ids of a clip are kept if, in the frames after the crossing, the
mask of each id overlaps its own object more than the other one, and their mean IoU is at least 0.5.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.clips import add_clip_arguments, count_of_sides, pairs_of, run_clips
from benchmarks.accuracy.pasting import (
    BoxXyxy,
    Place,
    SourceSequence,
    box_of,
    composed,
    placed,
    scale_to_fit,
)
from benchmarks.report.schema import measured
from mpn import Pipeline
from mpn.errors import InputError
from mpn.evaluation import region_similarity
from mpn.types import UInt8Array

KEPT_IOU = 0.5
PAIRS = "bear:hike,elephant:lucia,flamingo:boat,mallard-water:surf,rhino:bus"
"""Animal and scene of each clip."""
_IDS = (1, 2)
_LARGEST_SHARE = 0.3
"""Largest object as a fraction of width and height, so that both have a distance at the start."""
_START_X, _END_X = 0.2, 0.8
"""Centre of object 1 in the first and in the last frame, as a fraction of the width."""
_CENTRE_Y, _OFFSET_Y = 0.55, 0.04
"""Height of the crossing, and how much lower the front object is and higher the other."""
_LATER_FRAMES = 20
"""Lead of object 2 in the sequence of the animal if it is not mirrored."""


@dataclass(frozen=True)
class CrossingFrame:
    """Hold one frame of a clip.

    Attributes:
        rgb: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8 ids 1 and 2.
        hidden_px: Pixels of the rear object that the front object covers.
    """

    rgb: UInt8Array
    labels: UInt8Array
    hidden_px: int


@dataclass(frozen=True, kw_only=True)
class CrossingClip:
    """Describe a clip in which two copies of one animal cross.

    Attributes:
        davis_root: Folder in DAVIS layout.
        subject: Sequence that both objects are taken from.
        scene: Sequence of the background.
        is_mirrored: Object 2 is mirrored and passes in front; otherwise it is the same animal some
            frames later and passes behind object 1.
        frames: Number of frames.
        resolution: Folder of the data set.
    """

    davis_root: Path
    subject: str
    scene: str
    is_mirrored: bool
    frames: int = 50
    resolution: str = "480p"

    @property
    def name(self) -> str:
        """Name for files and tables."""
        return f"{self.subject}-over-{self.scene}-{'mirrored' if self.is_mirrored else 'later'}"

    @property
    def front_id(self) -> int:
        """Id of the object that passes in front."""
        return 2 if self.is_mirrored else 1

    def pictures(self) -> Iterator[tuple[UInt8Array, UInt8Array]]:
        """Yield (H, W, 3) uint8 RGB and (H, W) uint8 labels."""
        for frame in self.crossing_frames():
            yield frame.rgb, frame.labels

    def crossing_frames(self) -> Iterator[CrossingFrame]:
        """Yield all frames."""
        scene = SourceSequence(self.davis_root, self.scene, self.resolution)
        order = (3 - self.front_id, self.front_id)  # the rear object first
        for t in range(self.frames):
            rgb = scene.image(t)
            labels = np.zeros(rgb.shape[:2], np.uint8)
            hidden_px = 0
            for object_id in order:
                picture, mask = self._copy(object_id, t, rgb.shape[:2])
                rgb = composed(rgb, picture, mask)
                hidden_px = int(np.count_nonzero(labels[mask > 0]))
                labels[mask > 0] = object_id
            yield CrossingFrame(rgb, labels, hidden_px)

    @cached_property
    def _subject(self) -> SourceSequence:
        return SourceSequence(self.davis_root, self.subject, self.resolution)

    def _copy(
        self, object_id: int, t: int, size_hw: tuple[int, ...]
    ) -> tuple[UInt8Array, UInt8Array]:
        """Return image and mask of one copy, warped into frame t."""
        k = t + _LATER_FRAMES if object_id == 2 and not self.is_mirrored else t
        mask = self._subject.mask(k)
        place = self._place(object_id, t, box_of(mask), size_hw)
        return placed(self._subject.image(k), place, size_hw), placed(mask, place, size_hw)

    def _place(self, object_id: int, t: int, box_xyxy: BoxXyxy, size_hw: tuple[int, ...]) -> Place:
        height, width = size_hw
        scale = scale_to_fit(self._first_box, size_hw, _LARGEST_SHARE)
        share = t / (self.frames - 1)
        share = share if object_id == 1 else 1 - share
        target_x = (_START_X + (_END_X - _START_X) * share) * width
        offset = _OFFSET_Y if object_id == self.front_id else -_OFFSET_Y
        target_y = (_CENTRE_Y + offset) * height
        is_flipped = object_id == 2 and self.is_mirrored
        scale_x = -scale if is_flipped else scale
        centre_x = (box_xyxy[0] + box_xyxy[2]) / 2
        centre_y = (box_xyxy[1] + box_xyxy[3]) / 2
        return np.array(
            [
                [scale_x, 0, target_x - scale_x * centre_x],
                [0, scale, target_y - scale * centre_y],
            ],
            np.float32,
        )

    @cached_property
    def _first_box(self) -> BoxXyxy:
        return box_of(self._subject.mask(0))


def track_objects(clip: CrossingClip, pipeline: Pipeline) -> dict[str, Any]:
    """Segment a clip and compare both ids with both objects after the crossing.

    Raises:
        InputError: If the objects do not cross and separate within the clip.
    """
    hidden_px: list[int] = []
    ious: list[list[list[float]]] = []
    for t, frame in enumerate(clip.crossing_frames()):
        result = pipeline.step(frame.rgb) if t else pipeline.start(frame.rgb, frame.labels)
        hidden_px.append(frame.hidden_px)
        masks = [(frame.labels == k, result.labels == k) for k in _IDS]
        ious.append([[region_similarity(truth, mask) for truth, _ in masks] for _, mask in masks])
    crossing = np.flatnonzero(hidden_px)
    if not crossing.size or crossing[0] == 0 or crossing[-1] == len(hidden_px) - 1:
        raise InputError(f"{clip.name}: the objects do not cross and separate in the clip")
    first, last = int(crossing[0]), int(crossing[-1])
    before, after = (
        np.mean(part, axis=0) for part in (ious[1:first] or ious[:1], ious[last + 1 :])
    )
    own, other = np.diag(after), np.diag(after[:, ::-1])
    return {
        "crossing": [first, last],
        "iou_before": [round(float(value), 4) for value in np.diag(before)],
        "iou_after": [round(float(value), 4) for value in own],
        "iou_of_other_after": [round(float(value), 4) for value in other],
        "is_kept": bool((own > other).all() and (own >= KEPT_IOU).all()),
    }


def _summary(side: dict[str, Any]) -> str:
    after = " and ".join(f"{value:.3f}" for value in side["iou_after"])
    return f"{'kept' if side['is_kept'] else 'not kept'}; J {after} after the crossing"


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return the body of the result."""
    clips = [
        CrossingClip(
            davis_root=arguments.davis_root,
            subject=subject,
            scene=scene,
            is_mirrored=is_mirrored,
        )
        for subject, scene in pairs_of(arguments)
        for is_mirrored in (True, False)
    ]
    body = run_clips(arguments, clips, track_objects, _summary, objects=2)
    kept = count_of_sides(body["clips"], "is_kept")
    return {**body, "kept_means_iou": KEPT_IOU, "kept": kept}


def main() -> int:
    """Parse the arguments, run, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_clip_arguments(parser, pairs=PAIRS, out="lookalikes.json")
    arguments = parser.parse_args()
    body = measured("lookalikes", benchmark, arguments)
    if body is None:
        return 1
    print(f"kept: {body['kept']}\nwritten: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
