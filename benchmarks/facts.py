"""What every benchmark result says about itself, in one JSON format."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA = 1
_PACKAGES = ("mpn-runtime", "numpy", "opencv-python-headless", "onnxruntime", "av", "torch", "onnx")


def machine_facts() -> dict[str, Any]:
    """Processor, cores, memory and versions; nothing that names a host or a user."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def summary_ms(seconds: Iterable[float]) -> dict[str, float]:
    """Minimum, median and 95th percentile in milliseconds, and how many there were."""
    values = np.array(list(seconds), np.float64) * 1e3
    return {
        "n": int(values.size),
        "min_ms": round(float(values.min()), 3),
        "median_ms": round(float(np.median(values)), 3),
        "p95_ms": round(float(np.percentile(values, 95)), 3),
    }


def write_result(path: Path, benchmark: str, body: Mapping[str, Any]) -> None:
    """Write one result: schema, name of the benchmark, machine, and the body."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"schema": SCHEMA, "benchmark": benchmark, "machine": machine_facts(), **body}
    path.write_text(json.dumps(document, indent=2) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
