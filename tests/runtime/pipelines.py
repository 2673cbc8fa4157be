"""Build pipelines of fake engines, and clips to run them on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mpn.engines.directory.manifest import Preprocessing, PropagationPreprocessing
from mpn.engines.spec import Role
from mpn.runtime.pipeline import Pipeline, PipelineOptions
from mpn.types import StepResult
from tests.builders.clips import Clip, KnownFlow, Square, squares_clip
from tests.emulation.engines import FakeFinetuner, Function, fake_engine_set

PLAIN = Preprocessing(propagation=PropagationPreprocessing((0, 0, 0), (1, 1, 1)))
"""Keeps colours in 0..1 for tests.builders.clips.by_colour."""

ONE = Square(1, (20, 15), 24, (3, 2))
PAN = squares_clip([ONE], pan_xy=(3, 2))
TWO = squares_clip(
    [Square(2, (4, 10), 22, (4, 0), channel=1), Square(7, (60, 16), 22, (-4, 0), channel=2)],
    frames=13,
)


def make(
    clip: Clip | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    flows: Any = None,
    adapts: Mapping[Role, Callable[[int], Function | None]] | None = None,
    **engines: Any,
) -> Pipeline:
    """Build a pipeline of fake engines with the exact flow of a clip.

    Args:
        clip: Source of the flow; None: OpenCV DIS, or a flow engine.
        options: Options of the pipeline.
        flows: Replaces the flow of the clip.
        adapts: See FakeFinetuner; None: no finetuner.
        engines: See fake_engine_set.
    """
    engines.setdefault("preprocessing", PLAIN)
    known = flows if flows is not None else clip.flows_to_prev_px if clip is not None else None
    engine_set = fake_engine_set(**engines)
    return Pipeline(
        engine_set,
        options=PipelineOptions().with_values(options or {}),
        flow=None if known is None else KnownFlow(known),
        finetuner=None if adapts is None else FakeFinetuner(engine_set, adapts),
    )


def run(pipeline: Pipeline, clip: Clip) -> list[StepResult]:
    results = [pipeline.start(clip.frames[0], clip.labels[0])]
    return results + [pipeline.step(frame) for frame in clip.frames[1:]]


def pan_engine(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a flow network of 128x64 that returns the motion of PAN, which is 90x60."""
    flow = np.zeros((1, 2, 64, 128), np.float32)
    flow[0, 0], flow[0, 1] = -3 * 128 / 90, -2 * 64 / 60
    return {"flow_px": flow}


def finetuner_of(pipeline: Pipeline) -> FakeFinetuner:
    finetuner = pipeline._finetuner
    assert isinstance(finetuner, FakeFinetuner)
    return finetuner


def propagation_calls(pipeline: Pipeline) -> list[np.ndarray]:
    return [call["rgb_prob"] for call in pipeline.engines.propagation.calls]  # type: ignore[attr-defined]
