"""The target model on a device gives the results of the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mpn.errors import EngineError
from mpn.runtime.backend import FrameMemory
from mpn.runtime.device.backend import DeviceBackend
from mpn.runtime.options import DeviceOptions
from mpn.runtime.pipeline import Pipeline
from mpn.types import StepResult
from tests.builders.clips import Clip, squares_clip
from tests.emulation.cuda_shim.shim import Shim
from tests.emulation.engines import pooled_colours
from tests.emulation.streams import ShimEvent, ShimStream
from tests.runtime.device.helpers import pan_both_ways, run
from tests.runtime.device.test_backend import assert_same, both, green, sharpened
from tests.runtime.device.test_backend_rollback import fail
from tests.runtime.pipelines import ONE, PAN, TWO, pan_engine
from tests.tolerances import DEVICE_PROB

LONG = squares_clip([ONE], pan_xy=(3, 2), frames=9)
PANNED: dict[str, Any] = {"flow": pan_engine}
EMPTY = squares_clip([], size_hw=(60, 90), frames=1).frames[0]


def mixed(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sharpen the mean of probability and score: a network of five channels."""
    packed = inputs["rgb_prob_score"]
    return {"prob": np.clip(0.7 * (packed[:, 3:4] + packed[:, 4:5]) - 0.2, 0, 1)}


def lopsided(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    prob = mixed(inputs)["prob"]
    return {"prob": prob * np.linspace(1, 0.8, prob.shape[-1], dtype=np.float32)}


FIVE: dict[str, Any] = {"features": pooled_colours, "takes_score": True, "propagation": mixed}
FOUR: dict[str, Any] = {"features": pooled_colours, "propagation": sharpened}
OFTEN = {"target.confidence_min": 0.3, "target.every": 3}
CASES: dict[str, tuple[Clip, dict[str, Any], dict[str, Any]]] = {
    "two objects": (TWO, OFTEN, FIVE),
    "one object, smaller": (
        PAN,
        {"size": 50, "target.update_every": 2, "target.confidence_min": 0.8},
        FIVE,
    ),
    "flipped, in batches": (
        TWO, {"flip_tta": True}, {**FIVE, "propagation": lopsided, "max_objects": 2},
    ),
    "score input without target model": (PAN, {"one_shot": "off"}, FIVE),
    "blended": (PAN, OFTEN, FOUR),
    "two blended": (TWO, {"target.every": 1, "target.blend_weight": 0.6}, FOUR),
    "with OSVOS blended": (
        TWO, {"one_shot": "both", "osvos.mode": "blend"}, {**FIVE, "osvos": green},
    ),
    "OSVOS alone": (TWO, {"one_shot": "osvos", "osvos.mode": "blend"}, {**FOUR, "osvos": green}),
}  # fmt: skip


def memory_of(pipeline: Pipeline) -> FrameMemory:
    return pipeline._backend.snapshot()


def assert_same_memory(given: FrameMemory, expected: FrameMemory) -> None:
    assert (given.targets is None) == (expected.targets is None)
    assert (given.features is None) == (expected.features is None)
    if given.targets is None or expected.targets is None:
        return
    assert given.scores is not None
    assert expected.scores is not None
    assert np.abs(given.scores - expected.scores).max() <= DEVICE_PROB
    if given.features is not None and expected.features is not None:
        assert np.array_equal(given.features, expected.features)
    for frames, theirs in (
        (given.targets.given, expected.targets.given),
        (given.targets.recent, expected.targets.recent),
    ):
        assert [dict(f.weights) for f in frames] == [dict(f.weights) for f in theirs]


@pytest.mark.parametrize("case", CASES)
def test_results_are_the_hosts(shim: Shim, case: str) -> None:
    clip, options, engines = CASES[case]
    host, device, stream = both(shim, clip, options, engines)
    with host, device:
        expected = run(host, clip.frames, clip.labels[0])
        given = run(device, clip.frames, clip.labels[0])
        assert_same(given, expected)
        assert_same_memory(memory_of(device), memory_of(host))
        targets = memory_of(host).targets
        stages = set(device.timings)
    if targets is not None:
        assert "features" in stages
        assert case not in ("two objects", "one object, smaller") or targets.recent, "it learned"
    assert any(np.unique(result.labels).size > 1 for result in given[1:])
    assert stream.scheduler.graphs > 0 or clip is PAN, "PAN is too short"


@pytest.mark.parametrize(
    ("engines", "flow_px"),
    [(FIVE, 500), (FOUR, 500), (FIVE, -30)],
    ids=["five channels", "blended", "moved aside"],
)
def test_lost_object_is_redetected_as_on_host(
    shim: Shim, engines: dict[str, Any], flow_px: int
) -> None:
    """The flow moves the first object out of frame 4, or aside."""
    flows = [flow.copy() for flow in TWO.flows_to_prev_px]
    flows[4][:, :, :55] = flow_px
    clip = replace(TWO, flows_to_prev_px=flows)
    host, device, _ = both(shim, clip, {"redetect.colour_min": -2.0}, engines)
    with host, device:
        expected = run(host, clip.frames, clip.labels[0])
        given = run(device, clip.frames, clip.labels[0])
    assert_same(given, expected)
    assert "redetected" in [event for r in given for t in r.tracks for event in t.events]


def test_users_labels_are_taken_over_in_any_frame(shim: Shim) -> None:
    host, device, _ = both(shim, TWO, OFTEN, FIVE)
    first = np.where(TWO.labels[0] == 2, 2, 0).astype(np.uint8)
    memories: dict[int, list[FrameMemory]] = {}

    def scenario(pipeline: Pipeline) -> list[StepResult]:
        frames, kept = TWO.frames, memories.setdefault(id(pipeline), [])
        results = [pipeline.start(frames[0], first)]

        def step(n: int) -> None:
            results.append(pipeline.step(frames[n]))
            assert results[-1].probs is not None

        step(1)
        results.append(pipeline.add_objects(np.where(TWO.labels[1] == 7, 7, 0).astype(np.uint8)))
        step(2)
        step(3)
        kept.append(memory_of(pipeline))
        results.append(pipeline.correct(np.where(TWO.labels[3] == 2, 2, 0).astype(np.uint8)))
        step(4)
        results.append(pipeline.resume_at(frames[5], TWO.labels[5]))
        kept.append(memory_of(pipeline))
        step(6)
        step(7)
        kept.append(memory_of(pipeline))
        return results

    with host, device:
        assert_same(scenario(device), scenario(host))
        for given, expected in zip(memories[id(device)], memories[id(host)], strict=True):
            assert_same_memory(given, expected)


def test_failed_features_leave_everything_as_it_was(shim: Shim) -> None:
    fails = False

    def features(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = pooled_colours(inputs)
        if fails:
            found["features"][0, 1, 2, 3] = np.nan
        return found

    host, device, _ = both(shim, PAN, OFTEN, {**FIVE, **PANNED, "features": features})
    with host, device:
        expected = run(host, PAN.frames, PAN.labels[0])
        given = [device.start(PAN.frames[0], PAN.labels[0])]
        for n, frame in enumerate(PAN.frames[1:], start=1):
            if n in (3, 4):
                fails = True
                with pytest.raises(EngineError, match="features engine returned values"):
                    device.step(frame)
                fails = False
            given.append(device.step(frame))
            assert given[-1].probs is not None
    assert_same(given, expected)


@pytest.mark.parametrize("stage", ["run_features", "score", "propagate", "readback"])
def test_frame_that_fails_keeps_the_scores(
    shim: Shim, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"target.every": 4, "target.update_every": 0}
    _, undisturbed, _ = both(shim, PAN, options, {**FIVE, **PANNED})
    _, device, _ = both(shim, PAN, options, {**FIVE, **PANNED})
    with undisturbed, device:
        expected = run(undisturbed, PAN.frames[:6], PAN.labels[0])
        given = [device.start(PAN.frames[0], PAN.labels[0])]
        for n, frame in enumerate(PAN.frames[1:6], start=1):
            if n in ((4,) if stage == "run_features" else (2, 3, 4)):
                fail(device, EMPTY, stage, monkeypatch)
            given.append(device.step(frame))
            assert given[-1].probs is not None
        scores = [memory_of(pipeline).scores for pipeline in (device, undisturbed)]
    for mine, theirs in zip(given, expected, strict=True):
        assert np.array_equal(mine.probs, theirs.probs)
    assert np.array_equal(*scores)


def prefetched(shim: Shim, **device: Any) -> np.ndarray:
    engines = {**FIVE, "flow": pan_both_ways}
    options = {"flow_check_px": 3.0, **OFTEN}
    _, pipeline, _ = both(shim, LONG, options, engines, **device)
    with pipeline:
        results = run(pipeline, LONG.frames, LONG.labels[0], expects=True)
    return np.stack([result.probs for result in results])


def test_no_order_that_the_events_allow_changes_a_bit(
    shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prefetched(shim, device_options=DeviceOptions(use_graphs=False, use_streams=False))
    for order, seed in (("late", 0), ("random", 1)):
        assert prefetched(shim, order=order, seed=seed).tobytes() == expected.tobytes()
    # Control: without the wait for the features, late work gives another result.
    monkeypatch.setattr(DeviceBackend, "wait_for_features", lambda *_: None)
    monkeypatch.setattr(ShimEvent, "elapsed_s", lambda *_: 0.001)
    assert prefetched(shim, order="late").tobytes() != expected.tobytes()


def test_host_waits_once_a_frame_without_an_update(shim: Shim) -> None:
    """An update waits for features and probabilities, too."""
    options = {"target.update_every": 4, "target.confidence_min": 0.3}
    _, device, stream = both(shim, LONG, options, {**FIVE, **PANNED}, order="late")
    assert isinstance(stream, ShimStream)
    scheduler, waits, allocations = stream.scheduler, [], []
    with device:
        device.start(LONG.frames[0], LONG.labels[0])
        for n, frame in enumerate(LONG.frames[1:], start=1):
            if n < 8:
                device.prefetch_frame(LONG.frames[n + 1])
            before = scheduler.host_waits, scheduler.allocations
            device.step(frame)
            waits.append(scheduler.host_waits - before[0])
            allocations.append(scheduler.allocations - before[1])
    assert waits == [1, 1, 1, 2, 1, 1, 1, 2]
    assert not any(allocations[1:])
