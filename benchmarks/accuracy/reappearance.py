"""Measure whether a lost object is re-detected, with OSVOS and without.

    python -m benchmarks.accuracy.reappearance --davis-root DAVIS [--engine-dir DIR]
        [--pairs a:b,c:d] [--finetune-steps N | --no-finetune] [--write FOLDER] [-o FILE.json]

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

import cv2
import numpy as np
import numpy.typing as npt

from benchmarks.accuracy.ablations import option_from_text
from benchmarks.accuracy.sequences import MAX_IDS, load_rgb
from benchmarks.report.schema import cpu_backend, result_header, write_result
from mpn import Pipeline, PipelineOptions
from mpn.errors import InputError, MpnError
from mpn.evaluation import region_similarity
from mpn.masks import load_labels, save_labels
from mpn.runtime.bench.result import engine_facts, load_average
from mpn.runtime.finetune.plan import FinetuneOptions
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
_ALPHA_SIGMA_PX = 0.8
"""Blur of the outline: a hard edge would be too easy to detect."""

_Box = tuple[int, int, int, int]


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

    def frames(self) -> Iterator[tuple[UInt8Array, UInt8Array]]:
        """Yield (H, W, 3) uint8 RGB and (H, W) uint8 labels; the object is 1."""
        scene = self._paths("JPEGImages", self.scene, "jpg")
        pictures = self._paths("JPEGImages", self.subject, "jpg")
        masks = self._paths("Annotations", self.subject, "png")
        first = _box_xyxy(_mask(masks[0]))
        last = first
        for t in range(self.returns_at + self.after):
            # A sequence that is shorter than the clip is played forwards and backwards.
            background = load_rgb(scene[_reflected_index(t, len(scene))])
            size_hw = background.shape[:2]
            if self.gone_at <= t < self.returns_at:
                yield background, np.zeros(size_hw, np.uint8)
                continue
            k = _reflected_index(t - (self.absent if t >= self.returns_at else 0), len(masks))
            mask = _mask(masks[k])
            if t < self.present and mask.any():
                last = _box_xyxy(mask)
            place = self._place(t, first, last, size_hw)
            rgb, mask = (_placed(image, place, size_hw) for image in (load_rgb(pictures[k]), mask))
            yield _composed(background, rgb, mask)

    def _place(
        self, t: int, first: _Box, last: _Box, size_hw: tuple[int, ...]
    ) -> npt.NDArray[np.float32]:
        """Return the affine matrix (2, 3) from an image of the subject into frame t."""
        height, width = size_hw
        scale = min(
            _LARGEST_SHARE * width / (first[2] - first[0]),
            _LARGEST_SHARE * height / (first[3] - first[1]),
            1.0,
        )
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

    def _paths(self, kind: str, sequence: str, suffix: str) -> list[Path]:
        folder = self.davis_root / kind / self.resolution / sequence
        paths = sorted(folder.glob(f"*.{suffix}"))
        if not paths:
            raise InputError(f"{folder} has no *.{suffix}")
        return paths


def write_clip(clip: ReappearanceClip, root: Path) -> None:
    """Write a clip as a sequence in DAVIS layout."""
    images = root / "JPEGImages" / clip.resolution / clip.name
    annotations = root / "Annotations" / clip.resolution / clip.name
    for folder in (images, annotations):
        folder.mkdir(parents=True, exist_ok=True)
    for t, (rgb, labels) in enumerate(clip.frames()):
        bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(images / f"{t:05d}.jpg"), bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])
        save_labels(annotations / f"{t:05d}.png", labels)
    sets = root / "ImageSets" / "2017"
    sets.mkdir(parents=True, exist_ok=True)
    names = {path.name for path in annotations.parent.iterdir()}
    (sets / "val.txt").write_text("\n".join(sorted(names)) + "\n", encoding="utf-8")


def _reflected_index(t: int, length: int) -> int:
    period = 2 * (length - 1)
    return min(t % period, period - t % period)


def _mask(path: Path) -> UInt8Array:
    return (load_labels(path, max_objects=MAX_IDS, allow_empty=True) == 1).astype(np.uint8)


def _box_xyxy(mask: UInt8Array) -> _Box:
    x, y, width, height = cv2.boundingRect(mask)
    return (x, y, x + width, y + height)


def _placed(
    image: UInt8Array, place: npt.NDArray[np.float32], size_hw: tuple[int, ...]
) -> UInt8Array:
    is_mask = image.ndim == 2
    moved = cv2.warpAffine(
        image,
        place,
        (size_hw[1], size_hw[0]),
        flags=cv2.INTER_NEAREST if is_mask else cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT if is_mask else cv2.BORDER_REPLICATE,
    )
    return np.asarray(moved, np.uint8)


def _composed(
    background: UInt8Array, rgb: UInt8Array, mask: UInt8Array
) -> tuple[UInt8Array, UInt8Array]:
    alpha = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), _ALPHA_SIGMA_PX)[..., None]
    composed = rgb * alpha + background * (1 - alpha)
    return np.round(composed).astype(np.uint8), mask


def track_object(clip: ReappearanceClip, pipeline: Pipeline) -> dict[str, Any]:
    """Segment a clip and measure the object before, during and after its absence."""
    ious: list[float] = []
    areas_px: list[int] = []
    events: dict[str, list[int]] = {"lost": [], "redetected": [], "blended": []}
    for t, (rgb, truth) in enumerate(clip.frames()):
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


def run_clip(clip: ReappearanceClip, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one clip with OSVOS and without."""
    sides: dict[str, Any] = {}
    for side, off in (("with_osvos", {}), ("without_osvos", {"osvos.mode": "off"})):
        finetune = None
        if not arguments.no_finetune:
            finetune = FinetuneOptions(
                steps=arguments.finetune_steps,
                seed=arguments.seed,
                cache_dir=arguments.finetune_cache,
            )
        with Pipeline.from_engines(
            arguments.engine_dir,
            backend="cpu",
            threads=arguments.threads,
            options=PipelineOptions(finetune=finetune).with_values(
                {**dict(arguments.option), **off}
            ),
        ) as pipeline:
            sides[side] = track_object(clip, pipeline)
            sides[side]["finetune_s"] = round(pipeline.timings.get("finetune", 0.0), 2)
            if side == "with_osvos":
                sides["facts"] = {
                    "options": pipeline.options.as_json(),
                    "engine": engine_facts(pipeline.engines),
                }
        print(f"{clip.name:34} {side:14} {_summary(sides[side])}", flush=True)
    return sides


def _summary(side: dict[str, Any]) -> str:
    until = side["frames_until_found"]
    found = "never found" if until is None else f"found in frame {until} after its return"
    return f"{found}; J {side['iou_before']:.3f} before, {side['iou_after']:.3f} after"


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return the body of the result."""
    load_before = load_average()
    clips, runs = [], {}
    for pair in arguments.pairs.split(","):
        subject, _, scene = pair.partition(":")
        for leaves in (False, True):
            clips.append(
                ReappearanceClip(
                    davis_root=arguments.davis_root, subject=subject, scene=scene, leaves=leaves
                )
            )
    for clip in clips:
        if arguments.write is not None:
            write_clip(clip, arguments.write)
        runs[clip.name] = run_clip(clip, arguments)
    facts = [run.pop("facts") for run in runs.values()][-1]
    rgb, _ = next(clips[0].frames())
    return {
        **result_header(
            backend=cpu_backend(arguments.threads),
            engine=facts["engine"],
            frame_size_hw=rgb.shape[:2],
            objects=[1],
            frames=None,
            warmup=None,
            load_average_before=load_before,
            not_measured=["speed: the clips are rendered during the run"],
        ),
        "found_means_iou": FOUND_IOU,
        "in_time_means_frames": WITHIN_FRAMES,
        "options": facts["options"],
        "clips": runs,
        "in_time": {
            side: sum(run[side]["is_found_in_time"] for run in runs.values())
            for side in ("with_osvos", "without_osvos")
        },
    }


def main() -> int:
    """Parse the arguments, run, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--davis-root", type=Path, required=True)
    parser.add_argument("--engine-dir", type=Path, help="engine directory [the shipped one]")
    parser.add_argument("--pairs", default=PAIRS, help="SUBJECT:SCENE pairs separated by commas")
    parser.add_argument(
        "--option", action="append", type=option_from_text, default=[], help="NAME=VALUE"
    )
    parser.add_argument("--finetune-steps", type=int, help="steps [the recipe of each network]")
    parser.add_argument("--no-finetune", action="store_true")
    parser.add_argument("--finetune-cache", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, help="folder to write the clips to in DAVIS layout")
    parser.add_argument("-o", "--out", type=Path, default=Path("reappearance.json"))
    arguments = parser.parse_args()
    try:
        body = benchmark(arguments)
        write_result(arguments.out, "reappearance", body)
    except MpnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"written: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
