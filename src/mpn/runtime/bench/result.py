"""Write benchmark results in one JSON format.

Common keys: ``schema``, ``benchmark`` (its name), ``machine`` and ``versions`` (as in run.json),
``backend``, ``engine``, ``frame_size_hw``, ``objects``, ``frames``, ``warmup``,
``load_average_before`` and ``not_measured`` (docs/benchmarks.md). A benchmark adds other keys.
Times are in milliseconds, see :func:`summary_ms`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpn._common.files import output_errors, save_json
from mpn.engines.open import EngineSet
from mpn.errors import OutputError
from mpn.runtime.session.report import machine_facts, versions

BENCHMARK_SCHEMA = 2


def summary_ms(seconds: Iterable[float]) -> dict[str, float]:
    """Summarise a series of times.

    Args:
        seconds: At least one.

    Returns:
        ``n``, the number of times, and ``min_ms``, ``median_ms`` and ``p95_ms``.
    """
    values_ms = np.array(list(seconds), np.float64) * 1e3
    median_ms, p95_ms = np.percentile(values_ms, [50, 95])
    return {
        "n": int(values_ms.size),
        "min_ms": round(float(values_ms.min()), 3),
        "median_ms": round(float(median_ms), 3),
        "p95_ms": round(float(p95_ms), 3),
    }


def fps_from_seconds(seconds: Sequence[float]) -> float:
    """Return frames per second: the number of times divided by their sum."""
    return round(len(seconds) / max(sum(seconds), 1e-9), 3)


def load_average() -> float | None:
    """Return the load average of the last minute; None if the system has none."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def engine_facts(engines: EngineSet) -> dict[str, Any]:
    """Return name, sizes, precisions and digests of an engine directory."""
    manifest = engines.manifest
    return {
        "name": manifest.name,
        "frame_size_hw": list(manifest.frame_size_hw),
        "roi_size": manifest.roi_size,
        "max_objects": manifest.max_objects,
        "flow": manifest.flow.as_json(),
        "roles": {
            role: {
                "precision": manifest.roles[role].precision,
                "half_weights": manifest.roles[role].half_weights,
                "total_weights": manifest.roles[role].total_weights,
                "variant": manifest.roles[role].variant,
                "parameters": manifest.roles[role].parameters,
            }
            for role in engines.engines
        },
        "digests": dict(engines.digests),
    }


def benchmark_document(
    benchmark: str,
    body: Mapping[str, Any],
    *,
    more_versions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return a result in the common format.

    Args:
        benchmark: Name of the benchmark.
        body: Its keys.
        more_versions: Versions of packages that the runtime does not use, for example torch.
    """
    return {
        "schema": BENCHMARK_SCHEMA,
        "benchmark": benchmark,
        "machine": machine_facts(),
        "versions": {**versions(), **(more_versions or {})},
        **body,
    }


def check_result_path(path: Path) -> None:
    """Raise OutputError if no result can be written to a path."""
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder, give the name of a JSON file")
    folder = path.absolute().parent
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir():
        raise OutputError(f"cannot write {path}: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: no permission to write in {existing}")


def save_result(path: Path, document: Mapping[str, Any]) -> None:
    """Write a result atomically and create its folder.

    Raises:
        OutputError: If it cannot be written.
    """
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    save_json(path, dict(document), durable=True)
