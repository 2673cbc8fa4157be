"""Measure whether a lost object is re-detected.

    python -m benchmarks.accuracy.reappearance --davis-root DAVIS [--engine-dir DIR]
        [--pairs a:b,c:d] [--finetune | --no-finetune] [--write FOLDER] [-o FILE.json]

Each clip runs with the target model and without, or with OSVOS and without if the engines have no
target model; see clips.py.

A clip is made of two sequences of the set *train*: the object of one is drawn over the frames of
the other, so the background continues while the object is absent, and the true masks are known.
The object moves as in its own sequence, is absent for some frames (hidden at once, or after it
leaves through the nearer side), and returns at another place, mirrored. It counts as re-detected in
the first frame after its return in which the IoU of its mask with the true mask is at least 0.5.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
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
from mpn.evaluation import region_similarity
from mpn.types import UInt8Array

FOUND_IOU = 0.5
WITHIN_FRAMES = 3
PAIRS = "flamingo:boat,mallard-water:hike,bear:surf,lucia:bus,rhino:lucia"
"""Object and scene of each clip: animals and a person over water, wood and street."""
_LEAVES_IN = 6
"""Frames in which an object leaves the picture; it is absent in the last of them."""
_LARGEST_SHARE = 0.4
"""Largest object as a fraction of width and height. A larger one is scaled down."""
_FAR = 0.8
"""Place of the return as a fraction of the width, on the other side of the frame."""


@dataclass(frozen=True, kw_only=True)
class ReappearanceClip:
    """Describe a clip in which an object disappears and returns.

    Attributes:
        davis_root: Folder in DAVIS layout.
        subject: Sequence that object 1 is taken from.
        scene: Sequence of the background.
        leaves: Whether the object leaves through the side; otherwise it is hidden at once.
        present: Frames before it disappears.
        absent: Frames without a pixel of it.
        after: Frames from its return on.
        resolution: Folder of the data set.
    """

    davis_root: Path
    subject: str
    scene: str
    leaves: bool = False
    present: int = 20
    absent: int = 10
    after: int = 15
    resolution: str = "480p"

    @property
    def name(self) -> str:
        """Name for files and tables."""
        return f"{self.subject}-over-{self.scene}-{'leaves' if self.leaves else 'hidden'}"

    @property
    def gone_at(self) -> int:
        """First frame without a pixel of the object."""
        return self.present + (_LEAVES_IN - 1 if self.leaves else 0)

    @property
    def returns_at(self) -> int:
        """First frame after the absence."""
        return self.gone_at + self.absent

    def pictures(self) -> Iterator[tuple[UInt8Array, UInt8Array]]:
        """Yield (H, W, 3) uint8 RGB and (H, W) uint8 labels; the object is 1."""
        scene = SourceSequence(self.davis_root, self.scene, self.resolution)
        subject = SourceSequence(self.davis_root, self.subject, self.resolution)
        first = last = box_of(subject.mask(0))
        for t in range(self.returns_at + self.after):
            background = scene.image(t)
            size_hw = background.shape[:2]
            if self.gone_at <= t < self.returns_at:
                yield background, np.zeros(size_hw, np.uint8)
                continue
            k = t - (self.absent if t >= self.returns_at else 0)
            mask = subject.mask(k)
            if t < self.present and mask.any():
                last = box_of(mask)
            place = self._place(t, first, last, size_hw)
            mask = placed(mask, place, size_hw)
            yield composed(background, placed(subject.image(k), place, size_hw), mask), mask

    def _place(self, t: int, first: BoxXyxy, last: BoxXyxy, size_hw: tuple[int, ...]) -> Place:
        width = size_hw[1]
        scale = scale_to_fit(first, size_hw, _LARGEST_SHARE)
        centre_x, centre_y = (first[0] + first[2]) / 2, (first[1] + first[3]) / 2
        left, right = (scale * (x - centre_x) + centre_x for x in (last[0], last[2]))
        if t >= self.returns_at:  # mirrored, in the other half
            target_x = (_FAR if left + right < width else 1 - _FAR) * width
            return np.array(
                [
                    [-scale, 0, target_x + scale * (last[0] + last[2]) / 2],
                    [0, scale, centre_y * (1 - scale)],
                ],
                np.float32,
            )
        shift_x = 0.0
        if t >= self.present:
            to_right, to_left = width - left, right
            share = (t - self.present + 1) / _LEAVES_IN
            shift_x = share * (to_right if to_right < to_left else -to_left)
        return np.array(
            [
                [scale, 0, centre_x * (1 - scale) + shift_x],
                [0, scale, centre_y * (1 - scale)],
            ],
            np.float32,
        )


def track_object(clip: ReappearanceClip, pipeline: Pipeline) -> dict[str, Any]:
    """Segment a clip and measure the object before, during and after its absence."""
    ious: list[float] = []
    areas_px: list[int] = []
    events: dict[str, list[int]] = {"lost": [], "redetected": [], "blended": []}
    for t, (rgb, truth) in enumerate(clip.pictures()):
        result = pipeline.step(rgb) if t else pipeline.start(rgb, truth)
        (track,) = result.tracks
        ious.append(float(region_similarity(truth > 0, result.labels > 0)))
        areas_px.append(track.area_px)
        for event in track.events:
            events[event].append(t)
    back = next((t for t in range(clip.returns_at, len(ious)) if ious[t] >= FOUND_IOU), None)
    return {
        "found_at": back,
        "frames_until_found": None if back is None else back - clip.returns_at + 1,
        "is_found_in_time": back is not None and back < clip.returns_at + WITHIN_FRAMES,
        "iou_before": round(float(np.mean(ious[1 : clip.present])), 4),
        "empty_share_while_away": round(
            float(np.mean([not a for a in areas_px[clip.gone_at : clip.returns_at]])), 4
        ),
        "iou_after": round(float(np.mean(ious[clip.returns_at :])), 4),
        "events": {name: frames for name, frames in events.items() if name != "blended"},
        "blended_frames": len(events["blended"]),
    }


def _summary(side: dict[str, Any]) -> str:
    until = side["frames_until_found"]
    found = "never found" if until is None else f"found in frame {until} after its return"
    return f"{found}; J {side['iou_before']:.3f} before, {side['iou_after']:.3f} after"


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return the body of the result."""
    clips = [
        ReappearanceClip(
            davis_root=arguments.davis_root, subject=subject, scene=scene, leaves=leaves
        )
        for subject, scene in pairs_of(arguments)
        for leaves in (False, True)
    ]
    body = run_clips(arguments, clips, track_object, _summary, objects=1)
    return {
        **body,
        "found_means_iou": FOUND_IOU,
        "in_time_means_frames": WITHIN_FRAMES,
        "in_time": count_of_sides(body["clips"], "is_found_in_time"),
    }


def main() -> int:
    """Parse the arguments, run, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_clip_arguments(parser, pairs=PAIRS, out="reappearance.json")
    arguments = parser.parse_args()
    body = measured("reappearance", benchmark, arguments)
    if body is None:
        return 1
    print(f"written: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
