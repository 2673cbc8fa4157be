"""Writing a benchmark's result: what every result says beside its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpn.runtime.benchmark_result import benchmark_document, save_result
from mpn.runtime.benchmark_result import summary_ms as summary_ms
from mpn.runtime.report import installed_versions
from result_format import check_result

_PACKAGES = ("torch", "onnx")


def head(
    *,
    backend: Mapping[str, Any],
    engine: Mapping[str, Any] | None,
    frame_size_hw: Sequence[int],
    objects: Sequence[int] | None,
    frames: int | None,
    warmup: int | None,
    load_average_before: float | None,
    not_measured: Sequence[str],
) -> dict[str, Any]:
    """The keys that every result has beside machine and versions, for the start of its body.

    Args:
        backend: ``asked``, ``used`` (what really ran), ``note`` and ``threads``; on a CPU that was
            asked for :func:`cpu_backend`.
        engine: :func:`mpn.runtime.benchmark_result.engine_facts`; None if no engine directory ran.
        frame_size_hw: (height, width) of the frames.
        objects: The numbers of objects K measured; None where there are none.
        frames: Frames that count, a figure; None where nothing is timed by frame.
        warmup: Frames before them that do not.
        load_average_before: :func:`mpn.runtime.benchmark_result.load_average`, before the start.
        not_measured: What a reader may look for and not find, a line each.
    """
    return {
        "backend": dict(backend),
        "engine": None if engine is None else dict(engine),
        "frame_size_hw": list(frame_size_hw),
        "objects": None if objects is None else list(objects),
        "frames": frames,
        "warmup": warmup,
        "load_average_before": load_average_before,
        "not_measured": list(not_measured),
    }


def cpu_backend(threads: int) -> dict[str, Any]:
    """``backend`` of a benchmark that asks for the CPU and gets it."""
    return {"asked": "cpu", "used": "cpu", "note": "", "threads": threads}


def write_result(path: Path, benchmark: str, body: Mapping[str, Any]) -> None:
    """Write one result: schema, name of the benchmark, machine, versions, and the body.

    Raises:
        OutputError: If it cannot be written.
        ResultError: If it is not in the common format; it is written then too, since a run may
            have taken hours.
    """
    document = benchmark_document(benchmark, body, more_versions=installed_versions(_PACKAGES))
    save_result(path, document)
    check_result(document)
