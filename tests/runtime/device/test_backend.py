"""Results of a pipeline on a device are those of the host, for all options.

The device is the shim: kernels are compiled by g++ from their source, and engines run on the host
in the order of their stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mpn.engines.directory.manifest import Preprocessing
from mpn.errors import EngineError, InputError
from mpn.runtime.options import HOST_ONLY, DeviceOptions, option_names
from mpn.runtime.pipeline import Pipeline, PipelineOptions
from mpn.types import StepResult
from tests.builders.clips import Clip, KnownFlow
from tests.emulation.cuda_shim.shim import Shim
from tests.emulation.engines import FakeFinetuner, fake_engine_set, fourth_channel
from tests.emulation.streams import OnDevice, ShimEngine, ShimStream
from tests.runtime.device.helpers import device_pipeline, pan_both_ways, run
from tests.runtime.pipelines import PAN, PLAIN, TWO, pan_engine
from tests.tolerances import DEVICE_CONFIDENCE, DEVICE_PROB, DEVICE_RELIABILITY


def sharpened(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sharpen the input: a propagation network."""
    return {"prob": np.clip(1.4 * inputs["rgb_prob"][:, 3:4] - 0.2, 0, 1)}


def lopsided(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weaken the input towards the right: a propagation network."""
    prob = inputs["rgb_prob"][:, 3:4]
    fade = np.linspace(1.3, 0.8, prob.shape[-1], dtype=np.float32)
    return {"prob": np.clip(fade * prob, 0, 1)}


def green(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Find the first square of TWO, which is green: OSVOS on BGR minus 116.67."""
    return {"prob": np.where(inputs["image"][:, 1:2] > 70, 0.9, 0.1).astype(np.float32)}


def red(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"prob": np.where(inputs["image"][:, 2:3] > 70, 0.85, 0.05).astype(np.float32)}


TWO_SHORT = replace(TWO, **{name: given[:7] for name, given in vars(TWO).items()})
"""For the emulated CRF, which takes a second a frame: each graph is captured and replayed."""
ALL_STAGES = {"flow_check_px": 3.0, "colour_weight": 0.7, "propagation_weight": 0.8}
CASES: dict[str, tuple[Clip, dict[str, Any], dict[str, Any]]] = {
    "two objects": (TWO, {}, {}),
    "one object": (PAN, {}, {"propagation": sharpened}),
    "all evidence, both flows": (PAN, ALL_STAGES, {"flow": pan_both_ways}),
    "colours": (TWO, {"colour_weight": 0.7}, {}),
    "worked on smaller than given": (TWO, {"size": 40}, {}),
    "warp only": (TWO, {"use_propagation": False}, {}),
    "blended": (PAN, {"osvos.mode": "blend"}, {"osvos": red}),
    "two blended": (TWO, {"osvos.mode": "blend", "osvos.blend_weight": 0.3}, {"osvos": green}),
    "blended, worked on smaller": (
        TWO,
        {"osvos.mode": "blend", "osvos.threshold": 0.8, "size": 50},
        {"osvos": green},
    ),
    "OSVOS every third frame": (TWO, {"osvos.mode": "blend", "osvos.every": 3}, {"osvos": green}),
    "more objects than the engine takes": (TWO, {}, {"max_objects": 1, "propagation": sharpened}),
    "flipped": (TWO, {"flip_tta": True}, {"propagation": lopsided}),
    "flipped, in batches": (TWO, {"flip_tta": True}, {"propagation": lopsided, "max_objects": 2}),
    "CRF": (TWO_SHORT, {"crf": True, "crf.margin_px": 4}, {}),
    "CRF fed back, worked on smaller": (
        TWO_SHORT,
        {"crf": True, "crf.feedback": True, "size": 40, "crf.margin_px": 4},
        {},
    ),
}


def both(
    shim: Shim, clip: Clip, options: dict[str, Any], engines: dict[str, Any], **device: Any
) -> tuple[Pipeline, Pipeline, ShimStream]:
    both_ways = engines.get("flow") is pan_both_ways
    sets = [
        fake_engine_set(
            **{
                "preprocessing": PLAIN,
                **engines,
                **({"flow": pan_both_ways()} if both_ways else {}),
            }
        )
        for _ in range(2)
    ]
    chosen = PipelineOptions().with_values(options)
    # Frames worked on at another size have another flow: OpenCV DIS estimates it.
    flows = None if "flow" in engines or "size" in options else clip.flows_to_prev_px
    known = [None if flows is None else KnownFlow(flows) for _ in range(2)]
    host = Pipeline(sets[0], options=chosen, flow=known[0])
    on_device, stream = device_pipeline(shim, sets[1], chosen, flow=known[1], **device)
    return host, on_device, stream


def assert_same(given: list[StepResult], expected: list[StepResult], *, crf: bool = False) -> None:
    limit = 100 * DEVICE_PROB if crf else DEVICE_PROB
    for mine, theirs in zip(given, expected, strict=True):
        assert np.array_equal(mine.labels, theirs.labels), f"labels of frame {mine.index}"
        assert np.abs(mine.probs - theirs.probs).max() <= limit
        assert (mine.index, mine.object_ids) == (theirs.index, theirs.object_ids)
        for track, other in zip(mine.tracks, theirs.tracks, strict=True):
            nothing = {"confidence": 0.0, "reliability": None}
            assert replace(track, **nothing) == replace(other, **nothing)
            assert abs(track.confidence - other.confidence) <= DEVICE_CONFIDENCE
            assert track.reliability is not None
            assert other.reliability is not None
            assert abs(track.reliability - other.reliability) <= DEVICE_RELIABILITY


@pytest.mark.parametrize("case", CASES)
def test_results_are_the_hosts(shim: Shim, case: str) -> None:
    clip, options, engines = CASES[case]
    host, device, stream = both(shim, clip, options, engines)
    with host, device:
        expected = run(host, clip.frames, clip.labels[0])
        given = run(device, clip.frames, clip.labels[0])
    assert_same(given, expected, crf="crf" in options)
    assert any(np.unique(result.labels).size > 1 for result in given[1:])
    assert stream.scheduler.graphs > 0, "the last frames were graphs"
    stages = {stage for result in given for stage in result.timings}
    assert stages >= {"input", "flow", "graph_front", "graph_back"}


def test_device_single_stream_without_graphs_is_equal(shim: Shim) -> None:
    plain = DeviceOptions(use_graphs=False, use_streams=False)
    host, device, stream = both(
        shim, PAN, {"osvos.mode": "blend", "crf": True}, {"osvos": red}, device_options=plain
    )
    with host, device:
        assert_same(
            run(device, PAN.frames, PAN.labels[0]), run(host, PAN.frames, PAN.labels[0]), crf=True
        )
        stages = {"input", "flow", "osvos", "warp", "crop", "propagation", "merge", "crf"}
        assert set(device.timings) >= stages | {"output"}
    assert stream.scheduler.graphs == 0
    assert len(stream.scheduler.queues) == 1


def lost_on_the_way() -> Clip:
    """Return TWO with a flow that moves the first object out of frame 4."""
    flows = [flow.copy() for flow in TWO.flows_to_prev_px]
    flows[4][:, :, :55] = 500
    return replace(TWO, flows_to_prev_px=flows)


@pytest.mark.parametrize("osvos", [None, green], ids=["without OSVOS", "with OSVOS"])
@pytest.mark.parametrize("mode", ["auto", "blend"])
def test_a_lost_object_is_sought_as_on_the_host(shim: Shim, osvos: Any, mode: str) -> None:
    clip = lost_on_the_way()
    if osvos is None:
        mode = "auto"
    host, device, _ = both(
        shim, clip, {"osvos.mode": mode}, {} if osvos is None else {"osvos": osvos}
    )
    with host, device:
        expected = run(host, clip.frames, clip.labels[0])
        given = run(device, clip.frames, clip.labels[0])
    assert_same(given, expected)
    events = [event for result in given for track in result.tracks for event in track.events]
    assert ("redetected" in events) == (osvos is not None)
    assert "lost" in events or osvos is not None


def adapted(engine_set: Any, roles: tuple[str, ...]) -> FakeFinetuner:
    networks = {
        "osvos": lambda object_id: green if object_id == 2 else red,
        "propagation": lambda object_id: sharpened if object_id == 2 else None,
    }
    return FakeFinetuner(engine_set, {role: networks[role] for role in roles})  # type: ignore[misc]


class DeviceFinetuner:
    """Wrap the engines of a finetuner for a device."""

    def __init__(self, finetuner: FakeFinetuner, streams: list[ShimStream]) -> None:
        self._finetuner, self._streams = finetuner, streams

    def finetune(self, *given: Any) -> dict[Any, Any]:
        made = self._finetuner.finetune(*given)
        return {role: ShimEngine(engine, self._streams[0]) for role, engine in made.items()}

    def report_as_json(self) -> list[dict[str, Any]]:
        return []

    def close(self) -> None:
        self._finetuner.close()


@pytest.mark.parametrize("roles", [("osvos",), ("propagation",), ("osvos", "propagation")])
@pytest.mark.parametrize("flows", ["true", "misleading"])
def test_objects_with_engines_of_their_own(shim: Shim, roles: tuple[str, ...], flows: str) -> None:
    """With misleading flow the first object's mask stays behind, and OSVOS moves it."""
    flow = [f.copy() for f in TWO.flows_to_prev_px]
    if flows == "misleading":
        for f in flow[2:]:
            f[:, :, :60] = 0
    engines = {"preprocessing": PLAIN, "osvos": green}
    host_set, device_engines = fake_engine_set(**engines), fake_engine_set(**engines)
    host = Pipeline(host_set, flow=KnownFlow(flow), finetuner=adapted(host_set, roles))
    streams: list[ShimStream] = []
    device, stream = device_pipeline(
        shim,
        device_engines,
        flow=KnownFlow(flow),
        finetuner=DeviceFinetuner(adapted(device_engines, roles), streams),
    )
    streams.append(stream)
    with host, device:
        expected = run(host, TWO.frames, TWO.labels[0])
        given = run(device, TWO.frames, TWO.labels[0])
    assert_same(given, expected)
    if "osvos" in roles:
        branches = {track.branch for result in given[1:] for track in result.tracks}
        assert branches & {"blended", "osvos"}


def test_the_users_labels_are_taken_over_in_any_frame(shim: Shim) -> None:
    host, device, _ = both(shim, TWO, {"osvos.mode": "blend", "size": 50}, {"osvos": green})
    other = np.where(TWO.labels[3] == 2, 2, 0).astype(np.uint8)
    new = np.zeros_like(other)
    new[40:55, 40:60] = 9

    def scenario(pipeline: Pipeline) -> list[StepResult]:
        frames = TWO.frames
        results = [pipeline.start(frames[0], TWO.labels[0])]
        for frame in frames[1:4]:
            pipeline.step(frame)
        results.append(pipeline.correct(other))
        results.append(pipeline.step(frames[4]))
        results[-1].probs  # noqa: B018
        results.append(pipeline.add_objects(new))
        for frame in frames[5:8]:
            results.append(pipeline.step(frame))
            results[-1].probs  # noqa: B018
        results.append(pipeline.resume_at(frames[8], results[-1].labels))
        results.append(pipeline.step(frames[9]))
        results[-1].probs  # noqa: B018
        return results

    with host, device:
        expected, given = scenario(host), scenario(device)
    assert_same(given, expected)
    assert given[-1].object_ids == (2, 7, 9)


def test_a_frame_that_fails_leaves_everything_as_it_was(shim: Shim) -> None:
    fails = {"now": False}

    def sometimes(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = dict(sharpened(inputs))
        if fails["now"]:
            outputs["prob"] = outputs["prob"].copy()
            outputs["prob"][-1, 0, 3, 3] = np.nan
        return outputs

    host, device, _ = both(shim, PAN, {}, {"propagation": sometimes, "flow": pan_engine})
    camera = np.empty_like(PAN.frames[0])  # one array for all frames
    with host, device:
        expected = run(host, PAN.frames, PAN.labels[0])
        given = [device.start(PAN.frames[0], PAN.labels[0]), device.step(PAN.frames[1])]
        assert given[-1].probs is not None
        fails["now"] = True
        for noise in range(2):
            camera[:] = noise
            with pytest.raises(EngineError, match="propagation engine returned values"):
                device.step(camera)
        fails["now"] = False
        for frame in PAN.frames[2:]:
            camera[:] = frame
            given.append(device.step(camera))
            assert given[-1].probs is not None
    assert_same(given, expected)


def test_nan_of_osvos_raises(shim: Shim) -> None:
    def broken(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"prob": np.full_like(inputs["image"][:, :1], np.nan)}

    _, device, _ = both(shim, PAN, {"osvos.mode": "blend"}, {"osvos": broken})
    with device:
        device.start(PAN.frames[0], PAN.labels[0])
        with pytest.raises(EngineError, match="OSVOS engine returned values"):
            device.step(PAN.frames[1])


def test_probabilities_are_there_until_the_next_frame(shim: Shim) -> None:
    _, device, stream = both(shim, PAN, {}, {})
    with device:
        device.start(PAN.frames[0], PAN.labels[0])
        first = device.step(PAN.frames[1])
        before = stream.downloads
        assert "probs=(1, 60, 90)" in repr(first)
        assert stream.downloads == before, "not read yet"
        assert first.probs.shape == (1, 60, 90)
        second = device.step(PAN.frames[2])
        assert first.probs.any(), "read in time, they stay"
        device.step(PAN.frames[3])
        with pytest.raises(InputError, match="before the next frame"):
            second.probs  # noqa: B018
        assert second.labels.any()


def test_frames_in_device_memory_are_taken_as_they_are(shim: Shim) -> None:
    """Also if the host reads a frame, for an object that is lost."""
    clip = lost_on_the_way()
    engines = {"flow": pan_engine, "osvos": green, "preprocessing": PLAIN}
    host, device, stream = both(shim, clip, {}, engines)
    with host, device:
        expected = run(host, clip.frames, clip.labels[0])
        first: Any = OnDevice(stream, clip.frames[0])
        given = [device.start(first, clip.labels[0])]
        for frame in clip.frames[1:]:
            given.append(device.step(OnDevice(stream, frame)))  # type: ignore[arg-type]
            assert given[-1].probs is not None
        for wrong, message in (
            (np.zeros((10, 20, 3), np.uint8), "the frame is 20x10 but"),
            (np.zeros((60, 90, 3), np.float32), "must be .* uint8 RGB"),
            (np.zeros((60, 90), np.uint8), "must be .* uint8 RGB"),
        ):
            with pytest.raises(InputError, match=message):
                device.step(OnDevice(stream, wrong))  # type: ignore[arg-type]
    assert_same(given, expected)


def test_every_option_has_kernels_or_is_refused(shim: Shim) -> None:
    """Each new option of the pipeline must be in one of the lists."""
    placed = HONOURED | set(HOST_ONLY)
    assert set(option_names()) == placed
    for name, possible in HOST_ONLY.items():
        other = {"crf.working_scale": 0.5}[name]
        assert other != possible
        with pytest.raises(InputError, match=f"option {name} is {other!r}, not supported"):
            both(shim, PAN, {"crf": True, name: other}, {})


HONOURED = {
    "size",
    "threshold",
    "flow_check_px",
    "colour_weight",
    "roi_margin_frac",
    "roi_margin_px_min",
    "use_propagation",
    "flip_tta",
    "propagation_weight",
    "lost_area_frac",
    "one_shot",
    "target.every",
    "target.update_every",
    "target.memory",
    "target.given_weight",
    "target.confidence_min",
    "target.ridge",
    "target.agreement_min",
    "target.roi_growth",
    "target.blend_weight",
    "osvos.mode",
    "osvos.threshold",
    "osvos.every",
    "osvos.confidence_min",
    "osvos.blend_weight",
    "redetect.area_frac_min",
    "redetect.colour_min",
    "redetect.agreement_min",
    "crf",
    "crf.feedback",
    "crf.sxy_gaussian",
    "crf.compat_gaussian",
    "crf.sxy_bilateral",
    "crf.srgb_bilateral",
    "crf.compat_bilateral",
    "crf.iterations",
    "crf.margin_px",
    "crf.whole_frame",
}
"""Options that the device works by: each is in a case above, or in the kernels' own tests."""


def test_engines_of_one_crop_cannot_run_its_flipped_crop(shim: Shim) -> None:
    _, device, _ = both(shim, PAN, {"flip_tta": True}, {"max_objects": 1})
    with device, pytest.raises(EngineError, match="option flip_tta needs two"):
        device.start(PAN.frames[0], PAN.labels[0])


def test_unsupported_input_on_device_raises(shim: Shim) -> None:
    stream = ShimStream(shim)
    with pytest.raises(EngineError, match="takes arrays of the host only"):
        Pipeline(fake_engine_set(), stream=stream)
    _, device, stream = both(shim, PAN, {}, {})
    with device:
        device.start(PAN.frames[0], PAN.labels[0])
        with pytest.raises(InputError, match="OpenCV DIS"):
            device.step(OnDevice(stream, PAN.frames[1]))  # type: ignore[arg-type]
        with pytest.raises(InputError, match="the frame is 10x10"):
            device.step(np.zeros((10, 10, 3), np.uint8))
        assert device.step(PAN.frames[1]).labels.any(), "it stands where it stood"
    with pytest.raises(InputError, match="closed"):
        device.step(PAN.frames[1])


def test_preprocessing_of_the_manifest_reaches_the_device(shim: Shim) -> None:
    """Control of all tests above, whose network does not use colours."""
    given: list[np.ndarray] = []

    def watched(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        given.append(inputs["rgb_prob"].copy())
        return fourth_channel(inputs)

    engines = {"propagation": watched, "preprocessing": Preprocessing()}
    host, device, _ = both(shim, PAN, {}, engines)
    with host, device:
        for pipeline in (host, device):
            pipeline.start(PAN.frames[0], PAN.labels[0])
            pipeline.step(PAN.frames[1])
    assert np.abs(given[0] - given[1]).max() <= 1e-5
    assert np.abs(given[0][:, :3]).max() > 1
