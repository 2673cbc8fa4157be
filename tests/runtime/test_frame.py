"""Rollback on the host: a frame that fails in any stage changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest

from mpn.runtime.pipeline import Pipeline
from tests.runtime.pipelines import TWO, make

OPTIONS = {
    "osvos.mode": "blend",
    "flow_check_px": 3.0,
    "colour_weight": 0.5,
    "propagation_weight": 0.8,
    "size": 40,
    "crf": True,
    "crf.feedback": True,
}
STAGES = (
    "host.ingest.resize_rgb",
    "host.flow.DisFlow.estimate",
    "host.stages.Stages.warp",
    "host.osvos.OsvosRunner.maps",
    "osvos_policy.OsvosPolicy.redetect",
    "host.stages.Stages.crop",
    "host.stages.Stages.propagate",
    "host.stages.Stages.paste",
    "host.backend.blend_osvos",
    "host.backend.merge",
    "host.backend.refine",
    "host.backend.resize_prob",
    "host.backend.labels_from_merged",
    "host.backend.measure_objects",
    "host.backend.HostBackend.emit",
    "host.backend.HostBackend.readback",
)


class StageError(Exception):
    pass


def half_green(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"prob": np.where(inputs["image"][:, 1:2] > 70, 0.9, 0.1).astype(np.float32)}


def open_pipeline() -> Pipeline:
    return make(osvos=half_green, options=OPTIONS)


@pytest.fixture(scope="module")
def undisturbed() -> list[np.ndarray]:
    with open_pipeline() as pipeline:
        results = [pipeline.start(TWO.frames[0], TWO.labels[0])]
        results += [pipeline.step(frame) for frame in TWO.frames[1:5]]
        results.append(pipeline.correct(correction()))
    return [result.probs for result in results]


def correction() -> np.ndarray:
    return np.where(TWO.labels[4] == 2, 2, 0).astype(np.uint8)


@pytest.mark.parametrize("stage", STAGES)
def test_frame_that_fails_changes_nothing(
    stage: str, undisturbed: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_pipeline() as pipeline:
        results = [pipeline.start(TWO.frames[0], TWO.labels[0])]
        for n, frame in enumerate(TWO.frames[1:5], start=1):
            if n in (1, 3):
                fail(pipeline, frame, stage, monkeypatch)
            results.append(pipeline.step(frame))
        fail(pipeline, TWO.frames[5], stage, monkeypatch)
        results.append(pipeline.correct(correction()))
    for result, expected in zip(results, undisturbed, strict=True):
        assert np.array_equal(result.probs, expected)
    assert not np.array_equal(undisturbed[3], undisturbed[4]), "control: frames differ"


def fail(
    pipeline: Pipeline, frame: np.ndarray, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segment a frame in which one stage raises after its work."""
    work = resolve_name(f"mpn.runtime.{stage}")

    def failing(*args: Any, **kwargs: Any) -> None:
        work(*args, **kwargs)
        raise StageError

    with monkeypatch.context() as patched:
        patched.setattr(f"mpn.runtime.{stage}", failing)
        with pytest.raises(StageError):
            pipeline.step(frame)
