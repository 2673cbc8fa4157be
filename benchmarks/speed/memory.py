"""Measure resident memory over many frames, and compare masks of repeats.

    python -m benchmarks.speed.memory [--engine-dir DIR] [--frames 2000] [--objects 5]
        [--frame-size 854x480] [--threads 2] [--repeat-frames 60] [-o FILE.json]

The built-in clip is played forwards and backwards through ``mpn.propagate`` with default options.
``rss_mib`` is the resident set of the process, including the rendered frames. The slope is a
least-squares fit over the samples from frame 100 on. A shorter part of the clip then runs twice
with the given threads and once with each other number of 1 and 2; the digest of all masks must be
the same. Exits with 1 if it is not.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report.schema import cpu_backend, measured, result_header
from mpn import propagate
from mpn.engines.open import default_engine_dir, open_engines
from mpn.errors import InputError
from mpn.export.options import frame_size_hw_from_text
from mpn.runtime.bench.result import check_result_path, engine_facts, load_average
from mpn.runtime.bench.variants import labels_of_objects
from mpn.synthetic import SyntheticFrame, render_clip
from mpn.types import StepResult, UInt8Array

_SETTLED_AT = 100
_STATM = Path("/proc/self/statm")


def resident_mib() -> float:
    """Return the resident set of this process in MiB.

    Raises:
        InputError: If the system has no ``/proc``.
    """
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
    except OSError as error:
        raise InputError(f"resident memory is read from {_STATM}, which is missing") from error
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def forwards_and_backwards(clip: list[SyntheticFrame], frames: int) -> Iterator[UInt8Array]:
    """Yield (H, W, 3) uint8 RGB of a clip that turns back at both ends."""
    period = max(2 * (len(clip) - 1), 1)
    for t in range(frames):
        yield clip[min(t % period, period - t % period)].rgb


def results(
    clip: list[SyntheticFrame], given: argparse.Namespace, *, frames: int, threads: int
) -> Iterator[StepResult]:
    """Segment the clip."""
    return propagate(
        forwards_and_backwards(clip, frames),
        labels_of_objects(clip[0].labels, given.objects),
        engine_dir=given.engine_dir,
        backend="cpu",
        threads=threads,
    )


def memory_figures(samples: list[tuple[int, float]]) -> dict[str, Any]:
    """Summarise (frame, MiB) samples.

    Raises:
        InputError: If fewer than two samples are from frame 100 or later.
    """
    settled = [sample for sample in samples if sample[0] >= _SETTLED_AT]
    if len(settled) < 2:
        raise InputError(f"two samples from frame {_SETTLED_AT} on are needed: use more --frames")
    frames, values_mib = np.array(settled).T
    slope_mib = float(np.polyfit(frames, values_mib, 1)[0])
    return {
        "samples": [[frame, round(value, 2)] for frame, value in samples],
        "rss_at_100_mib": round(settled[0][1], 2),
        "rss_at_end_mib": round(settled[-1][1], 2),
        "rss_slope_per_1000_frames_mib": round(slope_mib * 1000, 3),
    }


def digest_of(masks: Iterator[StepResult]) -> str:
    """Return the SHA-256 of all masks of a run."""
    digest = hashlib.sha256()
    for result in masks:
        digest.update(np.ascontiguousarray(result.labels).data)
    return digest.hexdigest()


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return the body of the result."""
    check_result_path(given.out)
    before = load_average()
    size_hw = frame_size_hw_from_text(given.frame_size)
    clip = list(render_clip(frames=given.clip_frames, size_hw=size_hw))
    samples = []
    for t, _ in enumerate(results(clip, given, frames=given.frames, threads=given.threads)):
        if t % given.sample_every == 0 or t == given.frames - 1:
            samples.append((t, resident_mib()))
    memory = memory_figures(samples)
    runs = []
    for threads in (given.threads, given.threads, *({1, 2} - {given.threads})):
        masks = results(clip, given, frames=given.repeat_frames, threads=threads)
        runs.append({"threads": threads, "digest": digest_of(masks)})
    with open_engines(given.engine_dir, backend="cpu", threads=given.threads) as engines:
        engine = engine_facts(engines)
    return {
        **result_header(
            backend=cpu_backend(given.threads),
            engine=engine,
            frame_size_hw=size_hw,
            objects=[given.objects],
            frames=given.frames,
            warmup=None,
            load_average_before=before,
            not_measured=["memory of a GPU"],
        ),
        "memory": memory,
        "repeats": {
            "frames": given.repeat_frames,
            "runs": runs,
            "are_equal": len({run["digest"] for run in runs}) == 1,
        },
    }


def main() -> int:
    """Parse the arguments, run, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine-dir", type=Path, default=default_engine_dir())
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--objects", type=int, default=5)
    parser.add_argument("--frame-size", default="854x480", help="[%(default)s]")
    parser.add_argument("--clip-frames", type=int, default=48, help="rendered [%(default)s]")
    parser.add_argument("--sample-every", type=int, default=20, help="frames [%(default)s]")
    parser.add_argument("--repeat-frames", type=int, default=60, help="[%(default)s]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=Path("memory.json"))
    given = parser.parse_args()
    body = measured("memory", benchmark, given)
    if body is None:
        return 1
    memory, repeats = body["memory"], body["repeats"]
    verdict = "equal" if repeats["are_equal"] else "different"
    print(
        f"{memory['rss_at_100_mib']} MiB at frame {_SETTLED_AT}, {memory['rss_at_end_mib']} MiB at "
        f"the end, {memory['rss_slope_per_1000_frames_mib']:+} MiB per 1000 frames\n"
        f"masks of {len(repeats['runs'])} runs: {verdict}\n"
        f"written: {given.out}"
    )
    return 0 if repeats["are_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
