"""Rollback on a device: a frame that fails in any stage changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpn.runtime.device.backend import DeviceBackend
from mpn.runtime.pipeline import Pipeline, PipelineOptions
from tests.emulation.cuda_shim.shim import Shim
from tests.emulation.engines import fake_engine_set
from tests.emulation.streams import ShimStream
from tests.runtime.device.helpers import device_pipeline
from tests.runtime.device.test_backend import green, sharpened
from tests.runtime.pipelines import PLAIN, TWO
from tests.tolerances import DEVICE_PROB

FRAMES = 7
STAGES = ("ingest", "run_osvos", "warp", "propagate", "merge", "emit", "readback")
CRF: dict[str, Any] = {"crf": True, "crf.iterations": 1, "crf.margin_px": 4}
"""One iteration: the emulated kernels are slow."""
BLENDED = {"osvos.mode": "blend", "size": 40}
OPTIONS: dict[str, dict[str, Any]] = {
    "native": {},
    "smaller": {"size": 30},
    "CRF": CRF,
    "CRF fed back": {"crf.feedback": True, **CRF},
    "CRF fed back, smaller": {"crf.feedback": True, "size": 30, **CRF},
}


class StageError(Exception):
    pass


def open_pipeline(shim: Shim, options: dict[str, Any]) -> Pipeline:
    engines = fake_engine_set(osvos=green, propagation=sharpened, preprocessing=PLAIN)
    return device_pipeline(shim, engines, PipelineOptions().with_values(options))[0]


def fail(
    pipeline: Pipeline, frame: np.ndarray, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segment a frame in which one stage raises after its first operation."""
    work, put = getattr(DeviceBackend, stage), ShimStream._put
    is_in_stage = False

    def failing_put(self: ShimStream, *operation: Any) -> None:
        put(self, *operation)
        if is_in_stage:
            raise StageError

    def failing(*args: Any, **kwargs: Any) -> None:
        nonlocal is_in_stage
        is_in_stage = True
        try:
            work(*args, **kwargs)
        finally:
            is_in_stage = False
        raise StageError

    with monkeypatch.context() as patched:
        patched.setattr(ShimStream, "_put", failing_put)
        patched.setattr(DeviceBackend, stage, failing)
        with pytest.raises(StageError):
            pipeline.step(frame)


@pytest.fixture(scope="module")
def undisturbed(shim: Shim) -> list[np.ndarray]:
    with open_pipeline(shim, BLENDED) as pipeline:
        pipeline.start(TWO.frames[0], TWO.labels[0])
        return [pipeline.step(frame).probs for frame in TWO.frames[1:FRAMES]]


@pytest.mark.parametrize("stage", STAGES)
def test_frame_that_fails_changes_nothing(
    shim: Shim, stage: str, undisturbed: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In frame 2 the stages run uncaptured; from frame 4 on they are captured."""
    captured = {"warp", "propagate", "merge", "emit"}
    with open_pipeline(shim, BLENDED) as pipeline:
        pipeline.start(TWO.frames[0], TWO.labels[0])
        given = []
        for n, frame in enumerate(TWO.frames[1:FRAMES], start=1):
            if n in (1, 2) or (n in (4, 5) and stage in captured):
                fail(pipeline, frame, stage, monkeypatch)
            given.append(pipeline.step(frame).probs)
    for mine, expected in zip(given, undisturbed, strict=True):
        assert np.array_equal(mine, expected)
    assert not np.array_equal(undisturbed[1], undisturbed[2]), "control: frames differ"


@pytest.mark.parametrize("case", OPTIONS)
def test_correction_after_failed_frame_is_undisturbed(
    shim: Shim, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results that the failed frame has overwritten are computed again."""
    labels = np.where(TWO.labels[2] == 2, 2, 0).astype(np.uint8)
    is_refined = "CRF" in case
    corrected = []
    for stage in (None, "refine" if is_refined else "emit", "readback"):
        with open_pipeline(shim, OPTIONS[case]) as pipeline:
            pipeline.start(TWO.frames[0], TWO.labels[0])
            for frame in TWO.frames[1:3]:
                pipeline.step(frame)
            if stage is not None:
                fail(pipeline, TWO.frames[6], stage, monkeypatch)
            corrected.append(pipeline.correct(labels).probs)
            corrected.append(pipeline.step(TWO.frames[3]).probs)
    limit = (
        100 * DEVICE_PROB if is_refined else 0.0
    )  # the order of the sums in the CRF is not fixed
    for given, expected in zip(corrected[2:], 2 * corrected[:2], strict=True):
        assert np.abs(given - expected).max() <= limit
    assert np.abs(corrected[0] - corrected[1]).max() > 0.1, "control: frames differ"
