"""The JSON format of benchmark results, with the versions of what only benchmarks use."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mpn.runtime.benchmark_result import benchmark_document, save_result
from mpn.runtime.benchmark_result import summary_ms as summary_ms

_PACKAGES = ("torch", "onnx")


def write_result(path: Path, benchmark: str, body: Mapping[str, Any]) -> None:
    """Write one result: schema, name of the benchmark, machine, versions, and the body."""
    save_result(path, benchmark_document(benchmark, body, more_versions=_versions()))


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
