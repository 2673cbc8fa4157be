"""Measure wall FPS of mpn-run with and without the prefetch on the host.

    python benchmarks/flow_overlap.py [--engine-dir DIR] [--objects 1,3] [--rounds 5]
        [--frames 60] [--threads 2] [-o RESULT.json]

Each run decodes the built-in clip at 854x480 from H.264, segments it, and writes label PNGs and the
overlay video. *in turn* computes the flow of a frame before its other stages; *prefetch* computes
the flow of the next frame in a thread during them. Options: those of ``--fast``, and the default
without fine-tuning. Both must write the same masks, else nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np

from benchmarks.report.schema import cpu_backend, result_header, write_result
from mpn.engines.open import default_engine_dir, open_engines
from mpn.errors import MpnError
from mpn.runtime.bench.figures import run_wall
from mpn.runtime.bench.result import engine_facts, load_average
from mpn.runtime.bench.variants import labels_of_objects, make_clip
from mpn.runtime.host.backend import HostBackend
from mpn.runtime.options import PipelineOptions
from mpn.runtime.session.request import RunRequest

SIZE_HW = (480, 854)
WARMUP = 3
SIDES = {"in turn": False, "prefetch": True}
OPTIONS = {
    "fast": PipelineOptions(flip_tta=False),
    "default, not fine-tuned": PipelineOptions(),
}


def measure(
    folder: Path, video: Path, mask: Path, options: PipelineOptions, given: argparse.Namespace
) -> dict[str, Any]:
    """Run both sides in turn, and return FPS per round and the ratio of the medians.

    Args:
        folder: Takes the results of the runs.
        video: The clip.
        mask: Labels of its first frame.
        options: Of the pipeline.
        given: Engine directory, rounds and threads.

    Raises:
        MpnError: If the sides write different masks.
    """
    fps: dict[str, list[float]] = {side: [] for side in SIDES}
    masks: dict[str, list[bytes]] = {}
    order = list(SIDES)
    supports_prefetch = HostBackend.supports_prefetch
    try:
        for number in range(given.rounds):
            for side in order:
                HostBackend.supports_prefetch = SIDES[side]
                out = folder / f"{video.stem}-{number}-{side}"
                run = run_wall(
                    RunRequest(
                        video=str(video),
                        masks={None: mask},
                        out=out,
                        engine_dir=given.engine_dir,
                        backend="cpu",
                        threads=given.threads,
                        options=options,
                    )
                )
                fps[side].append(run.as_json(warmup=WARMUP)["fps"])
                masks[side] = [path.read_bytes() for path in sorted(out.rglob("*.png"))]
            order.reverse()
            if not masks["in turn"] or masks["in turn"] != masks["prefetch"]:
                raise MpnError("the sides wrote different masks: their times mean nothing")
    finally:
        HostBackend.supports_prefetch = supports_prefetch
    medians = {side: float(np.median(values)) for side, values in fps.items()}
    ratios = np.divide(fps["prefetch"], fps["in turn"])
    return {
        "rounds": fps,
        "medians": medians,
        "ratio_of_medians": round(medians["prefetch"] / medians["in turn"], 3),
        "median_of_ratios": round(float(np.median(ratios)), 3),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine-dir", type=Path, help="default: the shipped engines")
    parser.add_argument("--objects", default="1,3")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=60, help="of the clip")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args(arguments)
    load_before, runs = load_average(), []
    try:
        objects = [int(number) for number in given.objects.split(",")]
        directory = default_engine_dir() if given.engine_dir is None else given.engine_dir
        with open_engines(directory, backend="cpu", threads=given.threads) as engines:
            facts = engine_facts(engines)
        with TemporaryDirectory() as name:
            folder = Path(name)
            clip = make_clip(folder, frames=given.frames, size_hw=SIZE_HW)
            for count in objects:
                mask = folder / f"mask-{count}.png"
                cv2.imwrite(str(mask), labels_of_objects(clip.labels, count))
                for kind, options in OPTIONS.items():
                    results = folder / f"{count}-{kind}"
                    entry = measure(results, clip.video, mask, options, given)
                    runs.append({"objects": count, "options": kind, **entry})
                    print(
                        f"K = {count}, {kind}: {entry['medians']}, "
                        f"{entry['ratio_of_medians']}x, load {load_average()}",
                        flush=True,
                    )
        if given.out is not None:
            body = result_header(
                backend=cpu_backend(threads=given.threads),
                engine=facts,
                frame_size_hw=SIZE_HW,
                objects=objects,
                frames=given.rounds * (given.frames - 1 - WARMUP),
                warmup=WARMUP,
                load_average_before=load_before,
                not_measured=["GPU (CUDA, TensorRT): the networks ran on the CPU"],
            )
            write_result(given.out, "flow_overlap", body | {"runs": runs})
    except (MpnError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
