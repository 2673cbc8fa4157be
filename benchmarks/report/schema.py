"""Define, check, read and write the JSON of a benchmark.

    python -m benchmarks.report.schema FILE.json ...

docs/benchmarks.md explains the keys. ``check_result`` runs when a result is written, when a report
is made, and in the tests for every committed file.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mpn.errors import MpnError
from mpn.runtime.bench.result import BENCHMARK_SCHEMA, benchmark_document, save_result
from mpn.runtime.options import CONSTANTS_OF_0_1, OPTIONS_OF_0_1

Result = Mapping[str, Any]

NUMBER = (int, float)
OPTIONAL_NUMBER = (int, float, type(None))
OPTIONAL_LIST = (list, type(None))

HEAD: dict[str, Any] = {
    "schema": int,
    "benchmark": str,
    "machine": {
        "system": str,
        "architecture": str,
        "processor": str,
        "cores": int,
        "memory_gib": OPTIONAL_NUMBER,
    },
    "versions": {"mpn-runtime": str, "python": str, "numpy": str, "opencv-python-headless": str},
    "backend": {"asked": str, "used": str, "note": str, "threads": OPTIONAL_NUMBER},
    "engine": (dict, type(None)),
    "frame_size_hw": list,
    "objects": OPTIONAL_LIST,
    "frames": OPTIONAL_NUMBER,
    "warmup": OPTIONAL_NUMBER,
    "load_average_before": OPTIONAL_NUMBER,
    "not_measured": list,
}
"""Keys of every result with their types. A dict describes an object with at least these keys."""

ENGINE: dict[str, Any] = {"name": str, "roles": dict, "digests": dict}
"""Keys of ``engine`` if an engine directory ran. Each role has its ``precision``."""

_RATIOS = {"ratio_of_medians": NUMBER, "ratio_of_minima": NUMBER}
_FIGURE = {"fps": NUMBER, "frame": dict}
KINDS: dict[str, dict[str, Any]] = {
    "fps": {
        "runs": [
            {
                "objects": int,
                "variant": str,
                "engine_only": {**_FIGURE, "roles": dict},
                "pipeline": {**_FIGURE, "stages": dict, "start_ms": NUMBER},
                "wall": {
                    **_FIGURE,
                    "stages": dict,
                    "until_first_mask_ms": NUMBER,
                    "peak_memory_mib": OPTIONAL_NUMBER,
                },
            }
        ]
    },
    "profile": {
        "peaks": {"gemm_flop_s": NUMBER, "int8_flop_s": NUMBER, "bandwidth_bytes_s": NUMBER},
        "frame": dict,
        "stages": [{"name": str, "kind": str, "median_ms": NUMBER, "min_ms": NUMBER}],
        "other_threads": [{"name": str, "median_ms": NUMBER, "bytes": NUMBER}],
        "operators": list,
        "summary": dict,
    },
    "davis": {"data": {"set": str, "sequences": dict}, "ablations": dict},
    "compare_torch": {
        "networks": str,
        "conditions": list,
        "runs": [{"objects": int, "sides": dict, "ratios": dict, "agreement": dict}],
    },
    "export_table": {"results": [{"variant": str, "precision": str, "verdict": str}]},
    "evaluation_speed": {
        "results": [{"name": str, "objects": int, "ours": dict, "plain": dict, **_RATIOS}]
    },
    "finetuning": {"data": dict, "roles": list, "runs": [{"steps": int, "objects": dict}]},
    "finetune_step": {"results": [{"role": str, "times": dict, "agreement": dict}]},
    "crf_speed": {
        "picture": str,
        "results": [{"name": str, "size_hw": list, "labels": int, "ours": {"cpu": dict}}],
    },
    "precision": {"data": dict, "sides": dict, "mask_iou": {"mean": NUMBER, "objects": dict}},
    "flow_accuracy": {"sources": dict},
    "networks": {
        "results": [
            {
                "variant": str,
                "recipe": str,
                "config": dict,
                "parameters": int,
                "backbone_parameters": int,
                "macs": int,
                "backbone_macs": int,
                "trained": (dict, type(None)),
            }
        ]
    },
    "reappearance": {"clips": dict, "in_time": dict, "in_time_means_frames": int},
    "directions": {
        "data": {"set": str, "sequences": dict},
        "product": str,
        "left_out": list,
        "every": int,
        "sequences": dict,
        "mean": {"anchors": {"two": dict, "three": dict}, "halves": dict},
    },
    "lookalikes": {"clips": dict, "kept": dict, "kept_means_iou": NUMBER},
    "confidence": {"sets": dict, "wrong_below_j": NUMBER, "marked_below": NUMBER},
    "corrections": {
        "data": {"set": str, "is_held_out": bool, "sequences": dict},
        "seeds": int,
        "sequences": dict,
    },
    "features": {
        "data": dict,
        "precision": str,
        "results": [
            {
                "name": str,
                "size_hw": list,
                "output_stride": int,
                "every": int,
                "features": dict,
                "frame": dict,
                "frame_mean_ms": NUMBER,
            }
        ],
    },
    "step_parity": {
        "parameters": int,
        "optimizer": str,
        "scope": str,
        "images": int,
        "right": list,
        "planted": list,
    },
    "releases": {
        "repeats": int,
        "releases": dict,
        "runs": [{"objects": int, "first_mask": dict, "wall": dict, "process": dict}],
    },
    "scaling": {"repeats": int, "engines": dict, "sweeps": dict},
    "same_masks": {
        "data": {"set": str, "sequences": dict},
        "options": str,
        "new_options": str,
        "repeats": int,
        "releases": dict,
        "wall": dict,
    },
    "batch": {
        "clips": dict,
        "workers": int,
        "options": str,
        "repeats": int,
        "release": dict,
        "wall": dict,
    },
    "batch_ray": {
        "data": {"clips": list, "frames_per_clip": int},
        "options": str,
        "repeats": int,
        "wall": {"local": dict, "ray": dict, "ratio": dict},
        "loss": {
            "killed_processes": int,
            "killed_at_s": NUMBER,
            "wall_s": NUMBER,
            "exit_code": int,
            "done": int,
            "most_often": int,
        },
        "differing": int,
    },
    "service": {
        "minutes": NUMBER,
        "sessions_at_once": int,
        "sessions": dict,
        "fps_of_all": NUMBER,
        "latency": {"frames": dict, "video": dict},
        "memory": {
            "samples": list,
            "rss_settled_mib": NUMBER,
            "rss_end_mib": NUMBER,
            "rss_peak_mib": NUMBER,
            "rss_slope_per_minute_mib": NUMBER,
        },
        "errors": list,
        "retried": int,
        "differing": int,
        "one_more": {"status": int, "retry_after": (str, type(None))},
        "stop": {"exit_code": int, "seconds": NUMBER, "accepted": int, "saved": int, "lost": int},
    },
    "memory": {
        "memory": {
            "samples": list,
            "rss_at_100_mib": NUMBER,
            "rss_at_end_mib": NUMBER,
            "rss_slope_per_1000_frames_mib": NUMBER,
        },
        "repeats": {"frames": int, "runs": [{"threads": int, "digest": str}]},
    },
}
"""Keys that each benchmark adds. The report has a table for each of these benchmarks."""

_NAMES_OF_0_1 = {
    "adapt": "finetune",
    "adapt_ms": "finetune_ms",
    "adapt_s": "finetune_s",
    "adapted": "finetuned",
    "open_adapted_checked": "open_finetuned_checked",
    "wall_fps_with_adaptation": "wall_fps_with_finetuning",
}
"""Key in results of version 0.1 -> key now."""

SUMMARY = ("n", "min_ms", "median_ms", "p95_ms")
SCORES = ("J-Mean", "F-Mean", "J&F-Mean")
_PACKAGES = ("torch", "onnx")


class ResultError(MpnError):
    """Raised for a benchmark result that is not in the common format."""


def load_result(path: Path) -> dict[str, Any]:
    """Read a result, check it, and replace the names of version 0.1.

    The options of the returned result are flat: ``"osvos.every"`` is a key.

    Raises:
        ResultError: If the file cannot be read or is not in the format. The message has its path.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: not a readable benchmark result ({error})") from error
    try:
        check_result(document)
    except ResultError as error:
        raise ResultError(f"{path}: {error}") from error
    checked: dict[str, Any] = with_names_of_today(document)
    return checked


def with_names_of_today(value: Any) -> Any:
    """Return a copy of a result with the names of today and flat options."""
    if isinstance(value, Mapping):
        return {
            _NAMES_OF_0_1.get(key, key): flat_options(found)
            if key == "options" and isinstance(found, Mapping)
            else with_names_of_today(found)
            for key, found in value.items()
        }
    if isinstance(value, list):
        return [with_names_of_today(found) for found in value]
    return "finetuned" if value == "adapted" else value


def flat_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by name as :func:`mpn.runtime.options.option_names` does.

    Args:
        options: Options with one dict per group, or flat as version 0.1 wrote them.
    """
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            if name == "crf":
                flat["crf"] = True
            flat |= {f"{name}.{field}": found for field, found in value.items()}
        elif name == "osvos":
            flat["osvos.mode"] = {"retrieve-only": "redetect-only"}.get(value, value)
        elif name == "crf" and value is None:
            flat["crf"] = False
        elif name not in CONSTANTS_OF_0_1:
            flat[OPTIONS_OF_0_1.get(name, name)] = value
    return flat


def check_result(document: Any) -> None:
    """Raise ResultError if a document is not a result in the common format.

    The message is one line and contains the key.
    """
    _check_shape(document, HEAD, "")
    if document["schema"] != BENCHMARK_SCHEMA:
        raise ResultError(
            f"schema is {document['schema']}, this version writes and reads {BENCHMARK_SCHEMA}: "
            "run the benchmark again"
        )
    kind = document["benchmark"]
    if re.fullmatch(r"[a-z][a-z0-9_]*", kind) is None:
        raise ResultError(f"benchmark is '{kind}', expected a name like {', '.join(KINDS)}")
    _check_shape(document, KINDS.get(kind, {}), "")
    size_hw = document["frame_size_hw"]
    if len(size_hw) != 2 or not all(isinstance(side, int) and side > 0 for side in size_hw):
        raise ResultError(f"frame_size_hw must be [height, width] in pixels, got {size_hw}")
    if document["engine"] is not None:
        _check_engine(document["engine"])
    _check_values(document, "")


def result_header(
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
    """Return the keys that every result has, except machine and versions.

    Args:
        backend: ``asked``, ``used`` (the backend that ran), ``note`` and ``threads``. See
            :func:`cpu_backend`.
        engine: :func:`mpn.runtime.bench.result.engine_facts`; None if no engine directory ran.
        frame_size_hw: (height, width) of the frames in pixels.
        objects: Measured numbers of objects K; None if the benchmark has no objects.
        frames: Frames per figure; None if nothing is timed per frame.
        warmup: Frames before them that are not counted.
        load_average_before: :func:`mpn.runtime.bench.result.load_average` before the start.
        not_measured: One line for each figure that a reader may expect and that is missing.
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
    """Return ``backend`` of a benchmark that runs on the CPU by definition."""
    return {"asked": "cpu", "used": "cpu", "note": "", "threads": threads}


def write_result(path: Path, benchmark: str, body: Mapping[str, Any]) -> None:
    """Write one result: schema, benchmark, machine, versions and the body.

    Raises:
        OutputError: If the file cannot be written.
        ResultError: If the result is not in the common format. The file is written before the
            check, because a run may have taken hours.
    """
    document = benchmark_document(benchmark, body, more_versions=_versions())
    save_result(path, document)
    check_result(document)


def measured(
    name: str,
    benchmark: Callable[[argparse.Namespace], dict[str, Any]],
    arguments: argparse.Namespace,
) -> dict[str, Any] | None:
    """Run a benchmark and write its result; print an error as one line.

    Args:
        name: Name of the benchmark in the result.
        benchmark: Measures, and returns the body of the result.
        arguments: Given to ``benchmark``; ``out`` is the file of the result.

    Returns:
        The body, or None after an error.
    """
    try:
        body = benchmark(arguments)
        write_result(arguments.out, name, body)
    except MpnError as error:
        print(f"error: {error}", file=sys.stderr)
        return None
    return body


def share_of_limit(measure: str, value: float, limit: float) -> float:
    """Return a parity difference as a fraction of its limit."""
    if measure == "mask_iou":  # a lower limit, the others are upper limits
        return (1 - value) / (1 - limit)
    return value / limit


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _check_engine(engine: Mapping[str, Any]) -> None:
    _check_shape(engine, ENGINE, "engine.")
    for role, facts in engine["roles"].items():
        _check_shape(facts, {"precision": str}, f"engine.roles.{role}.")
    for name, digest in engine["digests"].items():
        if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set(_HEX_DIGITS):
            raise ResultError(f"engine.digests.{name} must be a SHA-256 in hex, got {digest!r}")


def _check_shape(value: Any, shape: Any, where: str) -> None:
    """Check that ``value`` has the keys and types of ``shape``, and allow more."""
    if not isinstance(value, Mapping):
        raise ResultError(
            f"{where.rstrip('.') or 'the file'} must be an object, got {_kind(value)}"
        )
    for key, expected in shape.items():
        if key not in value:
            raise ResultError(f"{where}{key} is missing")
        found, path = value[key], f"{where}{key}"
        if isinstance(expected, Mapping):
            _check_shape(found, expected, f"{path}.")
        elif isinstance(expected, list):
            if not isinstance(found, list) or not found:
                raise ResultError(f"{path} must be a list of at least one, got {_kind(found)}")
            for index, entry in enumerate(found):
                _check_shape(entry, expected[0], f"{path}[{index}].")
        elif not isinstance(found, expected) or (isinstance(found, bool) and expected is not bool):
            raise ResultError(f"{path} must be {_names(expected)}, got {_kind(found)}")


def _check_values(value: Any, where: str) -> None:
    """Check that numbers are finite, time summaries ordered, and scores in 0..1."""
    if isinstance(value, Mapping):
        if "median_ms" in value:
            _check_summary(value, where)
        for key, inside in value.items():
            path = f"{where}.{key}" if where else str(key)
            if key in SCORES and not (isinstance(inside, NUMBER) and 0 <= inside <= 1):
                raise ResultError(f"{path} must be a fraction of 0..1, got {inside!r}")
            if (key == "fps" or key.endswith("_fps")) and not (
                isinstance(inside, NUMBER) and inside > 0
            ):
                raise ResultError(f"{path} must be a positive number, got {inside!r}")
            _check_values(inside, path)
    elif isinstance(value, list):
        for index, inside in enumerate(value):
            _check_values(inside, f"{where}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ResultError(f"{where} is {value}, every number must be finite")


def _check_summary(summary: Mapping[str, Any], where: str) -> None:
    missing = [key for key in SUMMARY if not isinstance(summary.get(key), NUMBER)]
    if missing:
        raise ResultError(f"{where}.{missing[0]} is missing: times have {', '.join(SUMMARY)}")
    low, middle, high = summary["min_ms"], summary["median_ms"], summary["p95_ms"]
    if summary["n"] < 1 or not 0 <= low <= middle <= high:
        raise ResultError(f"{where}: n >= 1 and 0 <= min <= median <= p95 do not hold: {summary}")


def _names(expected: Any) -> str:
    kinds = expected if isinstance(expected, tuple) else (expected,)
    if float in kinds:
        kinds = tuple(kind for kind in kinds if kind is not int)
    return " or ".join(_NAMES[kind] for kind in kinds)


def _kind(value: Any) -> str:
    return _NAMES.get(type(value), type(value).__name__)


_HEX_DIGITS = "0123456789abcdef"
_NAMES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "a truth value",
    type(None): "null",
}


def main() -> None:
    """Check the files given on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    for path in parser.parse_args().files:
        try:
            load_result(path)
        except ResultError as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
