"""The wall figure of a benchmark: a run as ``mpn-run`` makes it, from an H.264 file to its results.

It runs in a process of its own, which gives the peak memory of such a run and nothing else's, and
the cost of its first frames with everything cold.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from mpn._common.concurrency import process_pool
from mpn.errors import EngineError
from mpn.runtime.benchmark_result import summary_ms
from mpn.runtime.request import RunRequest
from mpn.runtime.session import run_video


@dataclass(frozen=True)
class WallRun:
    """One run, timed from outside.

    Attributes:
        report: Its run.json.
        done_s: When each frame was through the pipeline, in seconds from the call on.
        total_s: When everything was written and closed.
        peak_memory_mib: Of the process, see :func:`peak_memory_mib`.
    """

    report: Mapping[str, Any]
    done_s: tuple[float, ...]
    total_s: float
    peak_memory_mib: float | None

    def as_json(self, *, warmup: int) -> dict[str, Any]:
        """The wall figure.

        ``until_first_mask_ms`` (from the call on, video and engines opened; ``adapt_ms`` of it for
        fine-tuning) and ``first_step_ms`` are what a run pays before it is warm.

        Args:
            warmup: Frames after the first that do not count in ``fps`` and ``frame``; ``stages``
                counts all, and ``whole_run`` the opening of video and engines too.
        """
        done_s = self.done_s[warmup:]
        frame_s = [later - earlier for earlier, later in pairwise(done_s)]
        # Writers run behind the pipeline: what they still had to do belongs to these frames.
        behind_s = self.total_s - done_s[-1]
        report = self.report
        return {
            "fps": round(len(frame_s) / (sum(frame_s) + behind_s), 3),
            "frame": summary_ms(frame_s),
            "stages": {name: _stage_ms(stage) for name, stage in report["stages"].items()},
            "whole_run": {
                "frames": report["frames"],
                "seconds": round(self.total_s, 3),
                "fps": round(len(self.done_s) / self.total_s, 3),
            },
            "until_first_mask_ms": round(self.done_s[0] * 1e3, 3),
            "adapt_ms": round(report["adapt"].get("seconds", 0.0) * 1e3, 3),
            "first_step_ms": round((self.done_s[1] - self.done_s[0]) * 1e3, 3),
            "peak_memory_mib": self.peak_memory_mib,
            "backend": report["backend"]["used"],
        }


def run_wall(request: RunRequest) -> WallRun:
    """Run a video in this process and time it.

    Args:
        request: What to run; at least two frames.

    Raises:
        MpnError: As :func:`mpn.runtime.session.run_video` does.
    """
    done_s: list[float] = []
    begun = perf_counter()
    report = run_video(request, on_progress=lambda _: done_s.append(perf_counter() - begun))
    return WallRun(report, tuple(done_s), perf_counter() - begun, peak_memory_mib())


def run_wall_apart(request: RunRequest) -> WallRun:
    """:func:`run_wall` in a new process, which ends with it.

    Raises:
        EngineError: If the process dies.
        MpnError: As :func:`run_wall` does.
    """
    try:
        with process_pool(1) as pool:
            return pool.submit(run_wall, request).result()
    except BrokenProcessPool as error:
        raise EngineError(
            "the process that ran the video ended before its time (out of memory?): use smaller "
            "frames or fewer objects"
        ) from error


def peak_memory_mib() -> float | None:
    """Most memory that this process ever had resident, in MiB; None where it cannot be told."""
    try:
        # Not getrusage: its peak survives exec, so that a child begins with its parent's.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        peak_kib = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return round(int(peak_kib.split()[1]) / 1024, 1)
    except (OSError, StopIteration):
        pass
    if platform.system() != "Darwin":
        return None
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)


def _stage_ms(stage: Mapping[str, float]) -> dict[str, float]:
    """A stage of run.json as :func:`mpn.runtime.benchmark_result.summary_ms` would tell it."""
    return {
        "n": stage["frames"],
        **{f"{name}_ms": round(stage[f"{name}_s"] * 1e3, 3) for name in ("min", "median", "p95")},
    }
