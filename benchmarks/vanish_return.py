"""Is an object that vanishes found again after its return? With OSVOS, and without.

    python benchmarks/vanish_return.py --davis-root DAVIS [--engine-dir DIR] [--pairs a:b,c:d]
        [--adapt-steps N | --no-adapt] [--write FOLDER] [-o benchmarks/results/vanish_return.json]

The clips are made of sequences of the set *train*, see vanish_clip.py. An object counts as found in
the first frame after its return in which its mask has an IoU of at least 0.5 with the true one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from davis_ablations import option
from facts import cpu_backend, head, write_result
from mpn import Pipeline, PipelineOptions
from mpn.evaluation import region_similarity
from mpn.runtime.bench.result import engine_facts, load_average
from mpn.runtime.options import FinetuneOptions
from vanish_clip import VanishingClip, write_clip

FOUND_IOU = 0.5
WITHIN_FRAMES = 3
PAIRS = "flamingo:boat,mallard-water:hike,bear:surf,lucia:bus,rhino:lucia"
"""Object and scene: animals and a person, large and small, over water, wood and street."""


def follow(clip: VanishingClip, pipeline: Pipeline) -> dict[str, Any]:
    """Segment a clip; what became of the object before, while it is away, and after."""
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


def run_clip(clip: VanishingClip, arguments: argparse.Namespace) -> dict[str, Any]:
    """One clip with OSVOS and without."""
    sides: dict[str, Any] = {}
    for side, off in (("with_osvos", {}), ("without_osvos", {"osvos.mode": "off"})):
        adapt = None
        if not arguments.no_adapt:
            adapt = FinetuneOptions(
                steps=arguments.adapt_steps, seed=arguments.seed, cache_dir=arguments.adapt_cache
            )
        with Pipeline.from_engines(
            arguments.engine_dir,
            backend="cpu",
            threads=arguments.threads,
            options=PipelineOptions(finetune=adapt).with_values({**dict(arguments.option), **off}),
        ) as pipeline:
            sides[side] = follow(clip, pipeline)
            sides[side]["adapt_s"] = round(pipeline.timings.get("finetune", 0.0), 2)
            if side == "with_osvos":
                sides["facts"] = {
                    "options": pipeline.options.as_json(),
                    "engine": engine_facts(pipeline.engines),
                }
        print(f"{clip.name:34} {side:14} {_summary(sides[side])}", flush=True)
    return sides


def _summary(side: dict[str, Any]) -> str:
    until = side["frames_until_found"]
    found = "never found" if until is None else f"found in frame {until} of its return"
    return f"{found}; J {side['iou_before']:.3f} before, {side['iou_after']:.3f} after"


def main() -> None:
    """Run every clip and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--davis-root", type=Path, required=True)
    parser.add_argument("--engine-dir", type=Path, help="default: the shipped engines")
    parser.add_argument("--pairs", default=PAIRS, help="object:scene, separated by commas")
    parser.add_argument("--option", action="append", type=option, default=[], help="NAME=VALUE")
    parser.add_argument("--adapt-steps", type=int, help="default: by network")
    parser.add_argument("--no-adapt", action="store_true")
    parser.add_argument("--adapt-cache", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, help="also write the clips there, in DAVIS layout")
    parser.add_argument("-o", "--out", type=Path, default=Path("vanish_return.json"))
    arguments = parser.parse_args()
    load_before = load_average()
    clips, runs = [], {}
    for pair in arguments.pairs.split(","):
        subject, _, scene = pair.partition(":")
        for leaves in (False, True):
            clips.append(
                VanishingClip(
                    davis_root=arguments.davis_root, subject=subject, scene=scene, leaves=leaves
                )
            )
    for clip in clips:
        if arguments.write is not None:
            write_clip(clip, arguments.write)
        runs[clip.name] = run_clip(clip, arguments)
    facts = [run.pop("facts") for run in runs.values()][-1]
    rgb, _ = next(clips[0].frames())
    write_result(
        arguments.out,
        "vanish_return",
        {
            **head(
                backend=cpu_backend(arguments.threads),
                engine=facts["engine"],
                frame_size_hw=rgb.shape[:2],
                objects=[1],
                frames=None,
                warmup=None,
                load_average_before=load_before,
                not_measured=["speed: the clips are made while they are segmented"],
            ),
            "found_means_iou": FOUND_IOU,
            "in_time_means_frames": WITHIN_FRAMES,
            "options": facts["options"],
            "clips": runs,
            "in_time": {
                side: sum(run[side]["is_found_in_time"] for run in runs.values())
                for side in ("with_osvos", "without_osvos")
            },
        },
    )
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
