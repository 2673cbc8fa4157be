"""The two figures of a benchmark that need no file: the networks alone, and the pipeline.

Both are taken frame by frame in turn, so that whatever else the machine does meets them alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from mpn.engines.load import EngineSet
from mpn.engines.spec import ROLES, Role
from mpn.runtime.benchmark_result import fps_from_seconds, summary_ms
from mpn.runtime.candidates import Candidates
from mpn.runtime.flow import EngineFlow
from mpn.runtime.host.stages import Stages
from mpn.runtime.ops import cpu
from mpn.runtime.options import PipelineOptions
from mpn.runtime.pipeline import Pipeline
from mpn.runtime.preprocess import one_hot, osvos_input, resize_prob, resize_rgb, working_size_hw
from mpn.runtime.roi import roi_from_prob
from mpn.runtime.state import object_ids_from_labels
from mpn.types import Float32Array, TrackBranch, UInt8Array

Inputs = Mapping[str, Float32Array]


class NetworkFigure:
    """The networks alone: each engine on inputs that do not change.

    Args:
        engines: Open engines.
        options: In force; they decide the size and the crops of the inputs.
        frames: (H, W, 3) uint8 RGB, at least two: the inputs are made of the first two.
        labels: (H, W) uint8 of the first.
        one_by_one: Networks that run once for each object, since each object has its own.
    """

    def __init__(
        self,
        engines: EngineSet,
        options: PipelineOptions,
        frames: Sequence[UInt8Array],
        labels: UInt8Array,
        one_by_one: Sequence[Role] = (),
    ) -> None:
        self._engines = engines
        self._inputs = _fixed_inputs(engines, options, frames, labels, one_by_one)
        self._seconds: dict[Role, list[float]] = {role: [] for role in self._inputs}

    def step(self, rgb: UInt8Array | None = None) -> None:
        """Run every engine as often as a frame needs it, whatever the frame."""
        for role, batches in self._inputs.items():
            run = self._engines.engines[role].run
            begun = perf_counter()
            for inputs in batches:
                run(inputs)
            self._seconds[role].append(perf_counter() - begun)

    def as_json(self, *, warmup: int, every_frame: Sequence[Role]) -> dict[str, Any]:
        """The engine-only figure.

        Args:
            warmup: Steps that do not count.
            every_frame: The roles that run in every frame and make up ``fps`` and ``frame``.
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
    """The pipeline with its frames in memory.

    Args:
        pipeline: Open; it stays open.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._start_s = 0.0
        self._start_stage_s: Mapping[str, float] = {}
        self._frame_s: list[float] = []
        self._stage_s: list[Mapping[str, float]] = []
        self._states: list[list[str]] = []

    def start(self, rgb: UInt8Array, labels: UInt8Array) -> None:
        """The first frame, see :meth:`mpn.runtime.pipeline.Pipeline.start`."""
        begun = perf_counter()
        self._start_stage_s = self._pipeline.start(rgb, labels).timings
        self._start_s = perf_counter() - begun

    def step(self, rgb: UInt8Array) -> None:
        """A further frame, see :meth:`mpn.runtime.pipeline.Pipeline.step`."""
        begun = perf_counter()
        result = self._pipeline.step(rgb)
        self._frame_s.append(perf_counter() - begun)
        self._stage_s.append(result.timings)
        self._states.append([track.state for track in result.tracks])

    def roles_of_every_frame(self, *, warmup: int) -> tuple[Role, ...]:
        """The networks without which no frame went, ``warmup`` steps aside."""
        counted = self._stage_s[warmup:]
        return tuple(role for role in ROLES if all(role in stages for stages in counted))

    def as_json(self, *, warmup: int) -> dict[str, Any]:
        """The pipeline figure; ``warmup`` steps do not count."""
        frame_s, stage_s = self._frame_s[warmup:], self._stage_s[warmup:]
        states = [state for frame in self._states[warmup:] for state in frame]
        # In the order in which a frame meets them; a stage may be missing in some frames.
        names = dict.fromkeys(name for stages in stage_s for name in stages)
        return {
            "fps": fps_from_seconds(frame_s),
            "frame": summary_ms(frame_s),
            "stages": {n: summary_ms([s[n] for s in stage_s if n in s]) for n in names},
            "start_ms": round(self._start_s * 1e3, 3),
            "start_stages_ms": {n: round(s * 1e3, 3) for n, s in self._start_stage_s.items()},
            "tracked_share": round(states.count("tracked") / len(states), 4),
        }


def _fixed_inputs(
    engines: EngineSet,
    options: PipelineOptions,
    frames: Sequence[UInt8Array],
    labels: UInt8Array,
    one_by_one: Sequence[Role],
) -> dict[Role, list[Inputs]]:
    """For each open engine the inputs of its runs in one frame, made as the pipeline makes them."""
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
    packed = Stages(engines, options, cpu).crop(
        current, Candidates(prob, rois, rois, (branch,) * len(rois))
    )
    crops = np.concatenate((packed, packed[..., ::-1])) if options.mirror else packed
    groups = [crops]
    if "propagation" in one_by_one:  # each object's own, mirrored or not
        groups = [crops[k :: len(packed)] for k in range(len(packed))]
    most = manifest.max_objects
    inputs["propagation"] = [
        {"rgb_prob": np.ascontiguousarray(group[first : first + most])}
        for group in groups
        for first in range(0, len(group), most)
    ]
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
