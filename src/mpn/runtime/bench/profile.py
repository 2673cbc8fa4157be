"""Compare stages of a frame and operators of its networks with the roofline.

Stages run in the pipeline. Operators run in separate sessions with onnxruntime's profiler, on
the inputs of one frame. The profiler adds time to small operators.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mpn._common.concurrency import OpenCvThreads
from mpn._common.locks import TemporaryFolder
from mpn.engines.directory.manifest import load_manifest
from mpn.engines.onnxruntime.engine import open_session
from mpn.engines.open import EngineSet, local_engine_dir, open_engines
from mpn.errors import InputError
from mpn.runtime.bench.benchmark import BenchmarkOptions, OnProgress
from mpn.runtime.bench.figures import Inputs, PipelineFigure, fixed_inputs
from mpn.runtime.bench.result import (
    benchmark_document,
    engine_facts,
    load_average,
    summary_ms,
)
from mpn.runtime.bench.roofline import Cost, Peaks, cost_of, measure_peaks
from mpn.runtime.bench.stages import FrameSizes, stage_costs, time_other_threads
from mpn.runtime.bench.variants import labels_of_objects, make_clip, variants_of
from mpn.runtime.host.preprocess import working_size_hw
from mpn.runtime.options import ResolvedOptions

GOOD_SHARE = 0.7
"""Share of the roofline from which a part counts as close to it."""
_SMALL_MS = 0.1
"""An operator under this time is limited by its start, not by arithmetic."""
_OUTSIDE = "networks outside their operators"
_NETWORKS = ("flow", "features", "osvos", "propagation")
_LIBRARY = ("flow", "crf")
"""Stages that OpenCV or the CRF computes, unless a network computes them."""


def run_profile(
    engine_dir: str | Path | None = None,
    options: BenchmarkOptions | None = None,
    *,
    on_progress: OnProgress = lambda _: None,
) -> dict[str, Any]:
    """Profile the default pipeline for one number of objects.

    Returns:
        A result of the benchmark ``profile``, see docs/benchmarks.md.

    Raises:
        EngineError: If the engines cannot be opened or fail.
        InputError: If the options have several numbers of objects or a variant, or the backend
            runs on a GPU.
    """
    options = options or BenchmarkOptions(objects=(1,))
    if len(options.objects) != 1:
        raise InputError(
            f"a profile takes one number of objects, got {list(options.objects)}: use --objects 1"
        )
    if options.variants is not None:
        raise InputError("a profile is of the variant default: leave out --variants")
    directory, before, threads = local_engine_dir(engine_dir), load_average(), options.threads
    (variant,) = variants_of(load_manifest(directory), ("default",), options.finetune)
    with (
        nullcontext() if threads is None else OpenCvThreads(threads),
        TemporaryFolder() as folder,
        open_engines(directory, backend=options.backend, threads=threads) as engines,
    ):
        if not engines.is_on_host:
            raise InputError(
                f"a profile is of the CPU, the backend is {engines.backend}: use --backend cpu"
            )
        on_progress("measuring the peaks")
        peaks = measure_peaks(threads)
        on_progress("the pipeline")
        clip = make_clip(
            folder.path, frames=1 + options.warmup + options.frames, size_hw=options.frame_size_hw
        )
        labels = labels_of_objects(clip.labels, options.objects[0])
        with variant.open_pipeline(directory, engines, threads) as pipeline:
            figure = PipelineFigure(pipeline)
            figure.start(clip.frames[0], labels)
            for rgb in clip.frames[1:]:
                figure.step(rgb)
        peaks = peaks.best(measure_peaks(threads))  # other load may have slowed the first
        measured = figure.as_json(warmup=options.warmup)
        operators: list[dict[str, Any]] = []
        missing = []
        if engines.backend == "cpu":
            inputs = fixed_inputs(engines, variant.options, clip.frames, labels, ())
            for role in (role for role in inputs if role in measured["stages"]):
                on_progress(f"the operators of {role}")
                path = directory / engines.manifest.roles[role].onnx
                found = profile_network(path, inputs[role], peaks, threads, repeats=options.frames)
                operators += [{"network": role, **operator} for operator in found]
        else:
            missing.append(f"operators: not listed for the backend {engines.backend}")
        on_progress("decoding and writing files")
        others = time_other_threads(clip.video, labels, folder.path, frames=options.frames)
        costs = stage_costs(_sizes(engines, variant.options, options))
        counted = len(clip.frames) - 1 - options.warmup
        stages = [
            _stage(name, summary, counted, operators, costs.get(name), peaks)
            for name, summary in measured["stages"].items()
        ]
        body = {
            "engine": engine_facts(engines),
            "backend": {
                "asked": options.backend,
                "used": engines.backend,
                "note": engines.backend_note,
                "threads": threads,
            },
            "options": variant.options.as_json(),
            "frame_size_hw": list(options.frame_size_hw),
            "working_size_hw": list(working_size_hw(options.frame_size_hw, variant.options.size)),
            "objects": list(options.objects),
            "frames": options.frames,
            "warmup": options.warmup,
            "load_average_before": before,
            "not_measured": missing,
            "peaks": peaks.as_json(),
            "frame": measured["frame"],
            "stages": stages,
            "other_threads": others,
            "operators": operators,
            "summary": summary_of(stages, operators),
        }
    return benchmark_document("profile", body)


def profile_network(
    path: Path, batches: Sequence[Inputs], peaks: Peaks, threads: int | None, *, repeats: int
) -> list[dict[str, Any]]:
    """Profile the operators of a graph on the CPU.

    Args:
        path: ONNX file.
        batches: Inputs of each run of one frame.
        peaks: Peaks of this machine.
        threads: Threads per operator.
        repeats: Measured frames, after one that is not measured.

    Returns:
        One entry per operator, slowest first: ``name``, ``type``, times of a frame,
        ``flop``, ``bytes``, ``share`` of the roofline and ``reason``, all per frame.
    """
    # Reordered weights have no shape in the profile: the shapes are those of one more session.
    shapes = {
        event["name"]: event["args"]
        for event in _events(path, batches[:1], threads, repeats=1, prepack=False)
        if "op_name" in event["args"]
    }
    events = _events(path, batches, threads, repeats=1 + repeats, prepack=True)
    for event in events:
        args = shapes.get(event["name"])
        if args is not None and args["op_name"] == event["args"]["op_name"]:
            known, seen = args["input_type_shape"], event["args"]["input_type_shape"]
            if len(known) > len(seen) > 0:
                event["args"]["input_type_shape"] = [seen[0], *known[1:]]
    return operators_of(events, len(batches), peaks)


def _events(
    path: Path, batches: Sequence[Inputs], threads: int | None, *, repeats: int, prepack: bool
) -> list[dict[str, Any]]:
    with TemporaryFolder() as folder:
        session = open_session(
            path, "cpu", threads, profile_prefix=folder.path / "profile", prepack=prepack
        )
        for _ in range(repeats):
            for inputs in batches:
                session.run(None, dict(inputs))
        events: list[dict[str, Any]] = json.loads(
            Path(session.end_profiling()).read_text(encoding="utf-8")
        )
    return events


def operators_of(
    events: Sequence[Mapping[str, Any]], batches: int, peaks: Peaks
) -> list[dict[str, Any]]:
    """Summarise onnxruntime's events, see :func:`profile_network`."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            by_name.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event)
    found = []
    for name, all_runs in by_name.items():
        runs = all_runs[batches:]
        frames = [runs[first : first + batches] for first in range(0, len(runs), batches)]
        times_ms = [sum(event["dur"] for event in frame) / 1e3 for frame in frames]
        kind = runs[0]["args"]["op_name"]
        costs = [cost_of(kind, event["args"]) for event in frames[0]]
        flop, nbytes = sum(c.flop for c in costs), sum(c.nbytes for c in costs)
        is_int8 = costs[0].is_int8
        least_ms = 1e3 * sum(peaks.least_s(c.flop, c.nbytes, is_int8=is_int8) for c in costs)
        median_ms = statistics.median(times_ms)
        bandwidth_ms = 1e3 * nbytes / peaks.bandwidth_bytes_s
        reason = "dense operators"
        if median_ms < _SMALL_MS * batches:
            reason = "small shapes"
        elif costs[0].is_depthwise or least_ms <= bandwidth_ms:
            reason = "depthwise and memory"
        found.append(
            {
                "name": name,
                "type": "depthwise Conv" if costs[0].is_depthwise else kind,
                **summary_ms(time_ms / 1e3 for time_ms in times_ms),
                "flop": flop,
                "bytes": nbytes,
                "least_ms": least_ms,
                # The profiler has microseconds: a shorter operator has no time.
                "share": round(least_ms / median_ms, 4) if median_ms else None,
                "reason": reason,
            }
        )
    return sorted(found, key=lambda operator: -operator["median_ms"])


def _sizes(engines: EngineSet, resolved: ResolvedOptions, options: BenchmarkOptions) -> FrameSizes:
    manifest, features = engines.manifest, engines.features
    (crop,) = engines.propagation.spec.inputs
    grid = None
    if features is not None:
        _, depth, rows, columns = (int(side) for side in features.spec.outputs[0].shape)
        grid = (depth, rows, columns)
    return FrameSizes(
        objects=options.objects[0],
        input_hw=options.frame_size_hw,
        working_hw=working_size_hw(options.frame_size_hw, resolved.size),
        crop_chw=(int(crop.shape[1]), manifest.roi_size, manifest.roi_size),
        features_chw=grid,
    )


def _stage(
    name: str,
    summary: Mapping[str, float],
    frames: int,
    operators: Sequence[Mapping[str, Any]],
    cost: Cost | None,
    peaks: Peaks,
) -> dict[str, Any]:
    """Return one stage; FLOP and bytes are those of its network, or of ``cost``.

    The mean over all frames is less than the median if the stage does not run in each frame.
    """
    own = [operator for operator in operators if operator["network"] == name]
    kind = "network" if name in _NETWORKS else "python"
    if name in _LIBRARY and not own:
        kind = "library"
    flop = nbytes = share = None
    if own:
        flop, nbytes = (sum(operator[unit] for operator in own) for unit in ("flop", "bytes"))
        least_ms = sum(operator["least_ms"] for operator in own)
    elif cost is not None and kind != "network":
        flop, nbytes = cost.flop, cost.nbytes
        least_ms = 1e3 * peaks.least_s(flop, nbytes)
    if nbytes and kind != "library":
        share = round(least_ms / max(summary["median_ms"], 1e-3), 4)
    return {
        "name": name,
        "kind": kind,
        **summary,
        "runs_share": round(summary["n"] / frames, 4),
        "flop": flop,
        "bytes": nbytes,
        "share": share,
    }


def summary_of(
    stages: Sequence[Mapping[str, Any]], operators: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Return the share of the frame's time per reason; the shares sum to 1.

    The time of a network's stage that its operators do not take is a part by itself. If they take
    more, because of the profiler, the stage is divided in their proportions.
    """
    names = {"library": "library code", "python": "Python and NumPy", "network": "networks"}
    parts: dict[str, float] = {f"at {GOOD_SHARE:.0%} of the roofline or more": 0.0}
    (good,) = parts
    for stage in stages:
        stage_ms = stage["median_ms"] * stage["runs_share"]
        own = [operator for operator in operators if operator["network"] == stage["name"]]
        total_ms = sum(operator["median_ms"] for operator in own)
        if not total_ms:
            is_good = (stage["share"] or 0.0) >= GOOD_SHARE
            reason = good if is_good else names[stage["kind"]]
            parts[reason] = parts.get(reason, 0.0) + stage_ms
            continue
        for operator in own:
            is_good = (operator["share"] or 0.0) >= GOOD_SHARE
            reason = good if is_good else operator["reason"]
            part_ms = stage_ms * operator["median_ms"] / max(total_ms, stage["median_ms"])
            parts[reason] = parts.get(reason, 0.0) + part_ms
        outside_ms = stage_ms * max(1 - total_ms / stage["median_ms"], 0.0)
        parts[_OUTSIDE] = parts.get(_OUTSIDE, 0.0) + outside_ms
    whole = max(sum(parts.values()), 1e-9)
    return {reason: round(part / whole, 4) for reason, part in parts.items()}


def by_type(operators: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the sums per network and type of operator, slowest first."""
    sums: dict[tuple[str, str], dict[str, Any]] = {}
    for operator in operators:
        key = (operator["network"], operator["type"])
        row = sums.setdefault(
            key,
            {"network": key[0], "type": key[1], "count": 0, "median_ms": 0.0, "min_ms": 0.0}
            | {"flop": 0.0, "bytes": 0.0, "least_ms": 0.0},
        )
        row["count"] += 1
        for name in ("median_ms", "min_ms", "flop", "bytes", "least_ms"):
            row[name] += operator[name]
    rows = sorted(sums.values(), key=lambda row: -row["median_ms"])
    return [row | {"share": row["least_ms"] / max(row["median_ms"], 1e-3)} for row in rows]
