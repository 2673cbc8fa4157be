from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import pytest

from mpn.engines.directory.manifest import FlowSource
from mpn.engines.open import EngineSet
from mpn.errors import EngineError
from mpn.runtime.host.flow import DisFlow, EngineFlow, flow_estimator_from, flow_px
from tests.builders.clips import Square, squares_clip
from tests.emulation.engines import fake_engine_set
from tests.tolerances import DIS_FLOW_PX

PAN_XY = (2.5, -1.25)
PAN = squares_clip([Square(1, (50, 30), 40, PAN_XY)], size_hw=(120, 160), pan_xy=PAN_XY, frames=3)


def median_px(flow: np.ndarray) -> np.ndarray:
    return np.median(flow[:, 20:-20, 20:-20], axis=(1, 2))


def replace_flow(engines: EngineSet) -> EngineSet:
    return EngineSet(
        manifest=engines.manifest,
        propagation=engines.propagation,
        flow=None,
        osvos=None,
        backend="cpu",
        backend_note="",
        digests={},
    )


@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_dis_flow_is_in_pixels_from_first_to_second(preset: str, scale: float) -> None:
    estimator = DisFlow(FlowSource("opencv-dis", preset, scale))  # type: ignore[arg-type]
    flow = flow_px(estimator, PAN.frames[0], PAN.frames[1])
    assert flow.shape == (2, 120, 160)
    assert flow.dtype == np.float32
    assert np.abs(median_px(flow) - PAN_XY).max() < DIS_FLOW_PX
    back = flow_px(estimator, PAN.frames[1], PAN.frames[0])
    assert np.abs(median_px(back) + PAN_XY).max() < DIS_FLOW_PX


def test_dis_flow_of_prepared_frame_is_equal() -> None:
    estimator = DisFlow(FlowSource("opencv-dis", "fast"))
    first, second, third = map(estimator.prepare, PAN.frames)
    estimator.estimate(second, first)
    assert np.array_equal(
        estimator.estimate(third, second), flow_px(estimator, PAN.frames[2], PAN.frames[1])
    )


@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
@pytest.mark.parametrize(
    "size_hw", [(1, 1), (1, 100), (100, 1), (8, 8), (12, 60), (16, 500), (24, 854), (31, 31)]
)
def test_dis_of_a_small_frame_is_finite_and_of_its_size(
    preset: str, size_hw: tuple[int, int]
) -> None:
    # Without padding these raise, return NaN or kill the process, depending on the preset.
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, *size_hw, 3), dtype=np.uint8)
    estimator = DisFlow(FlowSource("opencv-dis", preset))  # type: ignore[arg-type]
    flow = flow_px(estimator, images[0], images[1])
    assert flow.shape == (2, *size_hw)
    assert np.isfinite(flow).all()


def test_one_dis_estimator_takes_videos_of_several_sizes() -> None:
    estimator = DisFlow(FlowSource("opencv-dis", "fast"))
    for size_hw in [(120, 160), (40, 60), (200, 333), (1, 1), (120, 160)]:
        image = cv2.resize(PAN.frames[0], size_hw[::-1])
        assert flow_px(estimator, image, image).shape == (2, *size_hw)


def test_engine_flow_resizes_frames_and_rescales_flow() -> None:
    def constant(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        flow = np.empty((1, 2, 128, 192), np.float32)
        flow[0, 0], flow[0, 1] = 12, 16
        return {"flow_px": flow}

    engines = fake_engine_set(flow=constant, frame_size_hw=(120, 160))
    estimator = flow_estimator_from(engines)
    assert isinstance(estimator, EngineFlow)
    flow = flow_px(estimator, PAN.frames[1], PAN.frames[0])
    assert flow.shape == (2, 120, 160)
    assert np.allclose(flow[0], 12 * 160 / 192)
    assert np.allclose(flow[1], 16 * 120 / 128)
    (call,) = engines.flow.calls  # type: ignore[union-attr]
    expected = cv2.resize(PAN.frames[1], (192, 128)).transpose(2, 0, 1)
    assert np.array_equal(call["frame0"][0], expected)
    assert not np.array_equal(call["frame1"][0], expected)


def test_a_flow_of_the_frames_own_size_is_left_as_it_is() -> None:
    flow = np.random.default_rng(0).normal(size=(1, 2, 64, 64)).astype(np.float32)
    engines = fake_engine_set(flow=lambda inputs: {"flow_px": flow}, frame_size_hw=(64, 64))
    image = np.zeros((64, 64, 3), np.uint8)
    assert np.array_equal(flow_px(flow_estimator_from(engines), image, image), flow[0])


def test_manifest_selects_the_flow_source() -> None:
    assert isinstance(flow_estimator_from(fake_engine_set()), DisFlow)
    engines = fake_engine_set(flow=lambda inputs: {})
    assert isinstance(flow_estimator_from(engines), EngineFlow)
    with pytest.raises(EngineError, match="was not opened"):
        flow_estimator_from(replace_flow(engines))


@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
def test_dis_flow_does_not_depend_on_earlier_sizes(preset: str) -> None:
    """OpenCV changes its object when it gets an image under 91 px."""
    large = squares_clip([Square(1, (50, 30), 40, (2, 1))], size_hw=(120, 200), frames=2).frames
    small = tuple(frame[:60, :90] for frame in large)
    sizes = [small, large, small, large]
    source = FlowSource("opencv-dis", preset)  # type: ignore[arg-type]
    estimator = DisFlow(source)
    for frames in sizes:
        expected = flow_px(DisFlow(source), *frames)
        assert np.array_equal(flow_px(estimator, *frames), expected)
    if preset != "medium":  # it starts at a scale that fits
        kept = estimator._dis
        flow_px(estimator, *small)
        changed = kept.calc(*(estimator.prepare(frame).data for frame in large), None)
        assert not np.array_equal(np.stack(cv2.split(changed)), expected)
