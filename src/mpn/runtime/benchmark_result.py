"""The one JSON format of every benchmark result, and the figures in it.

Keys that each result has: ``schema``, ``benchmark`` (its name), ``machine`` and ``versions`` (as in
run.json), ``backend``, ``engine``, ``frame_size_hw``, ``objects``, ``frames``, ``warmup``,
``load_average_before`` and ``not_measured`` (docs/benchmarks.md); the rest is the benchmark's own.
Times are in milliseconds, as :func:`summary_ms` says.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpn._common.files import output_errors, save_json
from mpn.engines.load import EngineSet
from mpn.errors import OutputError
from mpn.runtime.report import machine_facts, versions

BENCHMARK_SCHEMA = 2


def summary_ms(seconds: Iterable[float]) -> dict[str, float]:
    """What is told of a series of times.

    Args:
        seconds: At least one.

    Returns:
        ``n``, how many there are, and ``min_ms``, ``median_ms`` and ``p95_ms``.
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
    """Frames a second over all of them: their number by their sum, so that slow ones count."""
    return round(len(seconds) / max(sum(seconds), 1e-9), 3)


def load_average() -> float | None:
    """Processes that wanted a core in the last minute, on average; None where nobody counts."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def engine_facts(engines: EngineSet) -> dict[str, Any]:
    """What ran: name and sizes of the engine directory, precision and digest of its engines."""
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
    """A result in the common format.

    Args:
        benchmark: Its name.
        body: Its own keys.
        more_versions: Of packages that the runtime does not know, for example torch.
    """
    return {
        "schema": BENCHMARK_SCHEMA,
        "benchmark": benchmark,
        "machine": machine_facts(),
        "versions": {**versions(), **(more_versions or {})},
        **body,
    }


def check_result_path(path: Path) -> None:
    """Raise OutputError unless a result can be written there: better now than after minutes."""
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder, give the name of a JSON file")
    folder = path.absolute().parent
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir():
        raise OutputError(f"cannot write {path}: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: no permission to write in {existing}")


def save_result(path: Path, document: Mapping[str, Any]) -> None:
    """Write a result, atomically; its folder is made.

    Raises:
        OutputError: If it cannot be written.
    """
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    save_json(path, dict(document), durable=True)
