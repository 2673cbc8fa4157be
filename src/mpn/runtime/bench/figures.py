"""Measure networks, pipelines, and runs from file to files for a benchmark.

Networks and pipelines run interleaved, frame by frame, so that other load on the machine affects
them equally. A run from file to files has a process to itself.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from mpn._common.concurrency import process_pool
from mpn.engines.open import EngineSet
from mpn.engines.spec import ROLES, Role
from mpn.errors import EngineError
from mpn.runtime.bench.result import fps_from_seconds, summary_ms
from mpn.runtime.candidates import Candidates
from mpn.runtime.host.flow import EngineFlow
from mpn.runtime.host.preprocess import (
    flow_input,
    one_hot,
    osvos_input,
    resize_prob,
    resize_rgb,
    working_size_hw,
)
from mpn.runtime.host.roi import roi_from_prob
from mpn.runtime.host.stages import Stages
from mpn.runtime.host.target import TargetStage
from mpn.runtime.one_shot import takes_score
from mpn.runtime.options import ResolvedOptions
from mpn.runtime.pipeline import Pipeline
from mpn.runtime.session.request import RunRequest
from mpn.runtime.session.session import run_video
from mpn.runtime.state import object_ids_from_labels
from mpn.runtime.target import NO_SCORE
from mpn.types import Float32Array, TrackBranch, UInt8Array

Inputs = Mapping[str, Float32Array]


class NetworkFigure:
    """Measure the networks without the other stages, on fixed inputs.

    Args:
        engines: Open engines.
        options: Options of the pipeline, for the size and the crops of the inputs.
        frames: (H, W, 3) uint8 RGB, at least two. The inputs are computed from the first two.
        labels: (H, W) uint8 of the first frame.
        one_by_one: Fine-tuned networks, which run once per object.
    """

    def __init__(
        self,
        engines: EngineSet,
        options: ResolvedOptions,
        frames: Sequence[UInt8Array],
        labels: UInt8Array,
        one_by_one: Sequence[Role] = (),
    ) -> None:
        self._engines = engines
        self._inputs = fixed_inputs(engines, options, frames, labels, one_by_one)
        self._seconds: dict[Role, list[float]] = {role: [] for role in self._inputs}

    def step(self, rgb: UInt8Array | None = None) -> None:
        """Run each engine as often as one frame needs it; ``rgb`` is not used."""
        for role, batches in self._inputs.items():
            run = self._engines.engines[role].run
            begun = perf_counter()
            for inputs in batches:
                run(inputs)
            self._seconds[role].append(perf_counter() - begun)

    def as_json(self, *, warmup: int, every_frame: Sequence[Role]) -> dict[str, Any]:
        """Return the engine-only figure.

        Args:
            warmup: First steps, which are left out.
            every_frame: The roles that run in each frame; ``fps`` and ``frame`` are their sum.
        """
        seconds = {role: values[warmup:] for role, values in self._seconds.items()}
        counted = [role for role in seconds if role in every_frame]
        frame_s = [sum(values) for values in zip(*(seconds[r] for r in counted), strict=True)]
        return {
            "fps": fps_from_seconds(frame_s),
            "frame": summary_ms(frame_s),
            "every_frame": counted,
            "roles": {role: summary_ms(values) for role, values in seconds.items()},
            "batches": {role: len(batches) for role, batches in self._inputs.items()},
        }


class PipelineFigure:
    """Measure a pipeline with its frames in memory.

    Args:
        pipeline: An open pipeline. The caller closes it.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._start_s = 0.0
        self._start_stage_s: Mapping[str, float] = {}
        self._frame_s: list[float] = []
        self._stage_s: list[Mapping[str, float]] = []
        self._states: list[list[str]] = []

    def start(self, rgb: UInt8Array, labels: UInt8Array) -> None:
        """Run the first frame, see :meth:`mpn.runtime.pipeline.Pipeline.start`."""
        begun = perf_counter()
        self._start_stage_s = self._pipeline.start(rgb, labels).timings
        self._start_s = perf_counter() - begun

    def step(self, rgb: UInt8Array) -> None:
        """Run the next frame, see :meth:`mpn.runtime.pipeline.Pipeline.step`."""
        begun = perf_counter()
        result = self._pipeline.step(rgb)
        self._frame_s.append(perf_counter() - begun)
        self._stage_s.append(result.timings)
        self._states.append([track.state for track in result.tracks])

    def roles_of_every_frame(self, *, warmup: int) -> tuple[Role, ...]:
        """Return the networks that ran in each frame after the first ``warmup`` steps."""
        counted = self._stage_s[warmup:]
        return tuple(role for role in ROLES if all(role in stages for stages in counted))

    def as_json(self, *, warmup: int) -> dict[str, Any]:
        """Return the pipeline figure without the first ``warmup`` steps."""
        frame_s, stage_s = self._frame_s[warmup:], self._stage_s[warmup:]
        states = [state for frame in self._states[warmup:] for state in frame]
        # In the order of the pipeline; a stage may be missing in some frames.
        names = dict.fromkeys(name for stages in stage_s for name in stages)
        return {
            "fps": fps_from_seconds(frame_s),
            "frame": summary_ms(frame_s),
            "stages": {n: summary_ms([s[n] for s in stage_s if n in s]) for n in names},
            "start_ms": round(self._start_s * 1e3, 3),
            "start_stages_ms": {n: round(s * 1e3, 3) for n, s in self._start_stage_s.items()},
            "tracked_share": round(states.count("tracked") / len(states), 4),
        }


def fixed_inputs(
    engines: EngineSet,
    options: ResolvedOptions,
    frames: Sequence[UInt8Array],
    labels: UInt8Array,
    one_by_one: Sequence[Role],
) -> dict[Role, list[Inputs]]:
    """Compute the inputs of each engine for one frame, as the pipeline does."""
    manifest = engines.manifest
    working_hw = working_size_hw((labels.shape[0], labels.shape[1]), options.size)
    previous, current = (resize_rgb(rgb, working_hw) for rgb in frames[:2])
    inputs: dict[Role, list[Inputs]] = {}
    if engines.flow is not None:
        flow = EngineFlow(engines.flow)
        inputs["flow"] = [
            {"frame0": flow.prepare(current).data, "frame1": flow.prepare(previous).data}
        ]
    prob = resize_prob(one_hot(labels, object_ids_from_labels(labels)), working_hw)
    rois = tuple(
        roi_from_prob(
            plane,
            threshold=options.threshold,
            margin_frac=options.roi_margin_frac,
            margin_px_min=options.roi_margin_px_min,
        )
        for plane in prob
    )
    branch: TrackBranch = "given"
    found = Candidates(prob, rois, rois, (branch,) * len(rois))
    scores, (name,) = None, engines.propagation.spec.input_names
    if takes_score(engines.propagation.spec):
        present = sum(roi is not None for roi in rois)
        scores = np.full((present, manifest.roi_size, manifest.roi_size), NO_SCORE, np.float32)
    packed = Stages(engines, options).crop(current, found, scores)
    crops = np.concatenate((packed, packed[..., ::-1])) if options.flip_tta else packed
    groups = [crops]
    if "propagation" in one_by_one:  # per object: the crop and, with flip TTA, the flipped crop
        groups = [crops[k :: len(packed)] for k in range(len(packed))]
    most = manifest.max_objects
    inputs["propagation"] = [
        {name: np.ascontiguousarray(group[first : first + most])}
        for group in groups
        for first in range(0, len(group), most)
    ]
    if engines.features is not None:
        size_hw = TargetStage(engines.features, options.target).size_hw
        inputs["features"] = [{"image": flow_input(current, size_hw)}]
    if engines.osvos is not None:
        preprocessing = manifest.preprocessing.osvos
        image = osvos_input(
            current,
            manifest.frame_size_hw,
            channel_order=preprocessing.channel_order,
            mean=preprocessing.mean,
        )
        inputs["osvos"] = [{"image": image}] * (len(packed) if "osvos" in one_by_one else 1)
    return inputs


@dataclass(frozen=True)
class WallRun:
    """The times of one run from file to files.

    Attributes:
        report: Its run.json.
        done_s: Time at which each frame left the pipeline, in seconds since the call.
        total_s: Time at which all files were written and closed.
        peak_memory_mib: Peak memory of the process, see :func:`peak_memory_mib`.
    """

    report: Mapping[str, Any]
    done_s: tuple[float, ...]
    total_s: float
    peak_memory_mib: float | None

    def as_json(self, *, warmup: int) -> dict[str, Any]:
        """Return the wall figure.

        ``until_first_mask_ms`` and ``first_step_ms`` are the cost of the start.
        ``until_first_mask_ms`` includes opening the video and the engines, and ``finetune_ms`` of
        fine-tuning.

        Args:
            warmup: Frames after the first that are left out of ``fps`` and ``frame``. ``stages``
                includes all frames; ``whole_run`` also includes opening the video and the engines.
        """
        done_s = self.done_s[warmup:]
        frame_s = [later - earlier for earlier, later in pairwise(done_s)]
        # Writers run concurrently and end after the pipeline: this time belongs to the frames too.
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
            "finetune_ms": round(report["finetune"].get("seconds", 0.0) * 1e3, 3),
            "first_step_ms": round((self.done_s[1] - self.done_s[0]) * 1e3, 3),
            "peak_memory_mib": self.peak_memory_mib,
            "backend": report["backend"]["used"],
        }


def run_wall(request: RunRequest) -> WallRun:
    """Run a video in this process and time it.

    Args:
        request: The run, with at least two frames.

    Raises:
        MpnError: See :func:`mpn.runtime.session.session.run_video`.
    """
    done_s: list[float] = []
    begun = perf_counter()
    report = run_video(request, on_progress=lambda _: done_s.append(perf_counter() - begun))
    return WallRun(report, tuple(done_s), perf_counter() - begun, peak_memory_mib())


def run_wall_apart(request: RunRequest) -> WallRun:
    """Call :func:`run_wall` in a new process, for a separate peak of memory.

    Raises:
        EngineError: If the process ends unexpectedly.
        MpnError: See :func:`run_wall`.
    """
    try:
        with process_pool(1) as pool:
            return pool.submit(run_wall, request).result()
    except BrokenProcessPool as error:
        raise EngineError(
            "the process that ran the video ended unexpectedly (out of memory?): use smaller "
            "frames or fewer objects"
        ) from error


def peak_memory_mib() -> float | None:
    """Return the peak resident memory of this process in MiB; None if unknown."""
    try:
        # Not getrusage: its peak survives exec, so a child would start with its parent's peak.
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
    """Convert a stage of run.json to the keys of ``summary_ms``."""
    return {
        "n": stage["frames"],
        **{f"{name}_ms": round(stage[f"{name}_s"] * 1e3, 3) for name in ("min", "median", "p95")},
    }
