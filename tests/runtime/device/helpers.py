"""Build pipelines on the host and on a device of the shim, with the same engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mpn.engines.open import EngineSet
from mpn.runtime.options import DeviceOptions
from mpn.runtime.pipeline import Pipeline, PipelineOptions
from mpn.types import StepResult
from tests.emulation.cuda_shim.shim import Shim
from tests.emulation.engines import Function
from tests.emulation.streams import Order, Scheduler, ShimEngine, ShimStream
from tests.runtime.pipelines import pan_engine


def device_set(engines: EngineSet, stream: ShimStream, **options: Any) -> EngineSet:
    """Wrap the engines for a device."""

    def wrapped(engine: Any) -> Any:
        return None if engine is None else ShimEngine(engine, stream, **options)

    return replace(
        engines,
        propagation=wrapped(engines.propagation),
        flow=wrapped(engines.flow),
        osvos=wrapped(engines.osvos),
        features=wrapped(engines.features),
        backend="shim",
    )


def device_pipeline(
    shim: Shim,
    engines: EngineSet,
    options: PipelineOptions | None = None,
    *,
    order: Order = "at once",
    seed: int = 0,
    flow: Any = None,
    device_options: DeviceOptions | None = None,
    engine_options: dict[str, Any] | None = None,
    finetuner: Any = None,
) -> tuple[Pipeline, ShimStream]:
    """Build a pipeline on the shim, and return it with its stream of the objects."""
    stream = ShimStream(shim, Scheduler(order, seed))
    pipeline = Pipeline(
        device_set(engines, stream, **(engine_options or {})),
        options=options,
        flow=flow,
        stream=stream,
        device_options=device_options,
        finetuner=finetuner,
    )
    return pipeline, stream


def run(
    pipeline: Pipeline, frames: list[np.ndarray], labels: np.ndarray, *, expects: bool = False
) -> list[StepResult]:
    """Return all results; read ``probs``, which a device keeps for one frame only."""
    results = [pipeline.start(frames[0], labels)]
    for n, frame in enumerate(frames[1:], start=1):
        if expects and n + 1 < len(frames):
            pipeline.prefetch_frame(frames[n + 1])
        results.append(pipeline.step(frame))
        assert results[-1].probs is not None
    return results


def pan_both_ways() -> Function:
    """Make pan_engine for a pipeline with both flows: forward and backward in turns."""
    calls = {"count": 0}

    def flow(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        sign = -1 if calls["count"] % 2 else 1
        calls["count"] += 1
        return {"flow_px": sign * pan_engine(inputs)["flow_px"]}

    return flow


def iou(one: np.ndarray, other: np.ndarray) -> float:
    union = np.count_nonzero(one | other)
    return float(np.count_nonzero(one & other) / union) if union else 1.0
