"""Collect the statistics, versions and machine facts of run.json."""

from __future__ import annotations

import hashlib
import os
import platform
from collections import deque
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from mpn import __version__
from mpn._common.cores import usable_cores
from mpn.types import UInt8Array

_KEPT_TIMINGS = 10_000
"""Latest frames that median and p95 cover: memory stays bounded on a camera."""

_PACKAGES = ("numpy", "opencv-python-headless", "av", "pillow", "scipy", "onnxruntime",
             "onnxruntime-gpu", "openvino", "tensorrt-cu13", "tensorrt-rtx")  # fmt: skip


class StageStatistics:
    """Seconds by stage over a run, in bounded memory."""

    def __init__(self) -> None:
        self._recent_s: dict[str, deque[float]] = {}
        self._min_s: dict[str, float] = {}
        self._frames: dict[str, int] = {}

    def add(self, timings_s: Mapping[str, float]) -> None:
        """Add one frame: seconds by stage name."""
        for stage, seconds in timings_s.items():
            self._recent_s.setdefault(stage, deque(maxlen=_KEPT_TIMINGS)).append(seconds)
            self._min_s[stage] = min(seconds, self._min_s.get(stage, seconds))
            self._frames[stage] = self._frames.get(stage, 0) + 1

    def as_json(self) -> dict[str, dict[str, float]]:
        """Return ``frames``, ``min_s``, ``median_s`` and ``p95_s`` by stage."""
        summary = {}
        for stage, recent in self._recent_s.items():
            median_s, p95_s = np.percentile(np.array(recent), [50, 95])
            summary[stage] = {
                "frames": self._frames[stage],
                "min_s": round(self._min_s[stage], 6),
                "median_s": round(float(median_s), 6),
                "p95_s": round(float(p95_s), 6),
            }
        return summary


def versions() -> dict[str, str]:
    """Return the versions of this package, of Python and of the libraries of a run."""
    return {
        "mpn-runtime": __version__,
        "python": platform.python_version(),
        **installed_versions(_PACKAGES),
    }


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine_facts() -> dict[str, Any]:
    """Return processor, cores, memory and system; no name of host or user."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor_name(),
        "cores": usable_cores(),
        "memory_gib": _memory_gib(),
    }


def sha256_of_array(array: UInt8Array) -> str:
    """Compute the digest of the shape and the bytes of an array."""
    digest = hashlib.sha256(repr(array.shape).encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _processor_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line)
    return next(names, platform.machine())


def _memory_gib() -> float | None:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    return round(total / 2**30, 1)
