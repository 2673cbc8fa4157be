from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpn.errors import InputError
from mpn.runtime.host import ops as base
from mpn.runtime.host import ops as cpu
from mpn.runtime.host.roi import reachable_boxes
from mpn.types import Roi
from tests.tolerances import FLOAT32_RESIZE, NORMALISED_RGB, WARP_VERSUS_FLOAT64

GOLDEN_WARPS = [
    "zero",
    "int_shift",
    "minus_one",
    "half_pixel",
    "sub32",
    "sub_third",
    "smooth",
    "rotation",
    "edge_half",
    "leaves_image",
    "all_out",
    "nonfinite",
]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_prob(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def constant_flow(x: float, y: float, size_hw: tuple[int, int]) -> np.ndarray:
    return np.broadcast_to(np.array([x, y], np.float32)[:, None, None], (2, *size_hw)).copy()


def bilinear_by_definition(image: np.ndarray, size: int) -> np.ndarray:
    """Resize (H, W) to (size, size) in float64: half-pixel bilinear, border repeated."""

    def matrix(n: int) -> np.ndarray:
        weights = np.zeros((size, n))
        for i in range(size):
            position = min(max((i + 0.5) * n / size - 0.5, 0), n - 1)
            low = min(int(position), max(n - 2, 0))
            weights[i, low] += 1 - (position - low)
            weights[i, min(low + 1, n - 1)] += position - low
        return weights

    return matrix(image.shape[0]) @ image.astype(np.float64) @ matrix(image.shape[1]).T


def test_the_module_is_an_implementation_of_the_protocol() -> None:
    ops: base.Ops = cpu
    assert ops.warp_bilinear is cpu.warp_bilinear


@pytest.mark.parametrize("name", GOLDEN_WARPS)
def test_warp_matches_the_golden_case(golden: Path, name: str) -> None:
    case = np.load(golden / "warp" / f"{name}.npz")
    prob, flow = case["prob"][None], np.ascontiguousarray(case["flow"].transpose(2, 0, 1))
    error = np.abs(cpu.warp_bilinear(prob, flow)[0] - case["exact_zeros"]).max()
    assert error <= WARP_VERSUS_FLOAT64


@pytest.mark.parametrize("name", ["half_pixel", "rotation"])
def test_golden_warp_detects_a_wrong_sign(golden: Path, name: str) -> None:
    case = np.load(golden / "warp" / f"{name}.npz")
    flow = -np.ascontiguousarray(case["flow"].transpose(2, 0, 1))
    error = np.abs(cpu.warp_bilinear(case["prob"][None], flow)[0] - case["exact_zeros"]).max()
    assert error > 100 * WARP_VERSUS_FLOAT64


def test_warp_by_zero_flow_is_the_identity_bit_for_bit() -> None:
    prob = random_prob((3, 37, 53))
    assert np.array_equal(cpu.warp_bilinear(prob, constant_flow(0, 0, (37, 53))), prob)


def test_warp_samples_at_target_of_flow() -> None:
    prob = np.zeros((1, 5, 7), np.float32)
    prob[0, 2, 3] = 1
    warped = cpu.warp_bilinear(prob, constant_flow(1, -1, (5, 7)))
    assert warped[0, 3, 2] == 1
    assert warped.sum() == 1


@settings(max_examples=40, deadline=None)
@given(dx=st.integers(-9, 9), dy=st.integers(-9, 9), seed=st.integers(0, 99))
def test_warp_by_whole_pixels_is_an_exact_shift(dx: int, dy: int, seed: int) -> None:
    prob = random_prob((2, 7, 8), seed)
    padded = np.pad(prob, ((0, 0), (9, 9), (9, 9)))
    expected = padded[:, 9 + dy : 16 + dy, 9 + dx : 17 + dx]
    assert np.array_equal(cpu.warp_bilinear(prob, constant_flow(dx, dy, (7, 8))), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38, 2.0**31, 4e9])
def test_warp_of_non_finite_coordinate_is_zero(value: float) -> None:
    for axis in (0, 1):
        flow = constant_flow(0, 0, (33, 65))
        flow[axis, 10:20, 5:60] = value
        expected = np.ones((1, 33, 65), np.float32)
        expected[0, 10:20, 5:60] = 0
        assert np.array_equal(cpu.warp_bilinear(np.ones_like(expected), flow), expected)


def test_warp_in_boxes_equals_full_warp_inside() -> None:
    prob = random_prob((3, 40, 50))
    flow = np.random.default_rng(1).normal(0, 4, (2, 40, 50)).astype(np.float32)
    box = Roi(7, 5, 31, 40)
    full = cpu.warp_bilinear(prob, flow)
    warped = cpu.warp_bilinear(prob, flow, boxes=[box, None, Roi(0, 0, 50, 40)])
    expected = np.zeros_like(full)
    expected[0, 5:40, 7:31] = full[0, 5:40, 7:31]
    expected[2] = full[2]
    assert np.array_equal(warped, expected)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), sigma=st.sampled_from([0.0, 0.3, 3.0, 30.0]))
def test_warp_in_reachable_boxes_loses_nothing(seed: int, sigma: float) -> None:
    rng = np.random.default_rng(seed)
    prob = np.zeros((2, 40, 50), np.float32)
    x0, y0 = int(rng.integers(0, 45)), int(rng.integers(0, 35))
    x1, y1 = int(rng.integers(x0 + 1, 51)), int(rng.integers(y0 + 1, 41))
    prob[0, y0:y1, x0:x1] = 1
    flow = (rng.normal(0, 5, (2, 1, 1)) + rng.normal(0, sigma, (2, 40, 50))).astype(np.float32)
    boxes = reachable_boxes([Roi(x0, y0, x1, y1), None], flow)
    assert np.array_equal(cpu.warp_bilinear(prob, flow, boxes=boxes), cpu.warp_bilinear(prob, flow))


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 9), (9, 1), (2, 3)])
def test_warp_of_a_tiny_frame(size_hw: tuple[int, int]) -> None:
    prob = np.ones((1, *size_hw), np.float32)
    assert np.array_equal(cpu.warp_bilinear(prob, constant_flow(0, 0, size_hw)), prob)
    assert not cpu.warp_bilinear(prob, constant_flow(99, 0, size_hw)).any()


def test_warp_of_no_object_is_empty() -> None:
    assert cpu.warp_bilinear(
        np.empty((0, 4, 5), np.float32), constant_flow(0, 0, (4, 5))
    ).shape == (
        0,
        4,
        5,
    )


def test_warp_refuses_a_flow_of_another_size() -> None:
    with pytest.raises(InputError, match=r"\(1, 4, 5\) and \(2, 5, 4\)"):
        cpu.warp_bilinear(np.ones((1, 4, 5), np.float32), constant_flow(0, 0, (5, 4)))
    with pytest.raises(InputError, match="expected 1 boxes, got 2"):
        cpu.warp_bilinear(
            np.ones((1, 4, 5), np.float32), constant_flow(0, 0, (4, 5)), boxes=[None, None]
        )


@pytest.mark.parametrize(
    ("roi", "size"),
    [(Roi(3, 4, 33, 24), 65), (Roi(0, 0, 60, 50), 17), (Roi(59, 49, 60, 50), 9)],
    ids=["enlarged", "shrunk", "one pixel"],
)
def test_crop_is_half_pixel_bilinear_and_normalised(roi: Roi, size: int) -> None:
    rgb = np.random.default_rng(2).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    prob = random_prob((1, 50, 60))
    packed = cpu.crop_resize_pack(rgb, prob, [roi], size=size, mean=MEAN, std=STD)
    assert packed.shape == (1, 4, size, size)
    assert packed.dtype == np.float32
    rows, columns = slice(roi.y0, roi.y1), slice(roi.x0, roi.x1)
    for c in range(3):
        resized = bilinear_by_definition(rgb[rows, columns, c], size)
        assert np.abs(packed[0, c] - (resized / 255 - MEAN[c]) / STD[c]).max() < NORMALISED_RGB
    expected = bilinear_by_definition(prob[0, rows, columns], size)
    assert np.abs(packed[0, 3] - expected).max() < FLOAT32_RESIZE
    if roi.size_hw != (1, 1):  # the reference detects a crop that is one pixel off
        shifted = np.roll(prob[0], 1, axis=1)[rows, columns]
        assert np.abs(packed[0, 3] - bilinear_by_definition(shifted, size)).max() > 0.01


def test_crop_keeps_the_order_of_rgb_and_of_objects() -> None:
    rgb = np.zeros((8, 8, 3), np.uint8)
    rgb[..., 0] = 255
    prob = np.stack([np.full((8, 8), value, np.float32) for value in (0.25, 0.5, 0.75)])
    roi = Roi(0, 0, 8, 8)
    packed = cpu.crop_resize_pack(
        rgb, prob, [roi, None, roi], size=3, mean=(0, 0, 0), std=(1, 1, 1)
    )
    assert packed.shape == (2, 4, 3, 3)
    assert np.allclose(packed[0, :, 1, 1], [1, 0, 0, 0.25])
    assert np.allclose(packed[1, :, 1, 1], [1, 0, 0, 0.75])
    scores = np.stack([np.full((3, 3), value, np.float32) for value in (0.1, 0.9)])
    scored = cpu.crop_resize_pack(
        rgb, prob, [roi, None, roi], size=3, mean=(0, 0, 0), std=(1, 1, 1), scores=scores
    )
    np.testing.assert_array_equal(scored[:, :4], packed)
    np.testing.assert_array_equal(scored[:, 4], scores)


def test_crop_of_no_object_is_an_empty_batch() -> None:
    rgb = np.zeros((8, 8, 3), np.uint8)
    prob = np.zeros((1, 8, 8), np.float32)
    packed = cpu.crop_resize_pack(rgb, prob, [None], size=3, mean=MEAN, std=STD)
    assert packed.shape == (0, 4, 3, 3)


def test_crop_refuses_probabilities_of_another_size() -> None:
    with pytest.raises(InputError, match="of the frame"):
        cpu.crop_resize_pack(
            np.zeros((8, 8, 3), np.uint8),
            np.zeros((1, 8, 9), np.float32),
            [None],
            size=3,
            mean=MEAN,
            std=STD,
        )


def test_paste_puts_each_crop_into_its_roi_and_nothing_elsewhere() -> None:
    crops = random_prob((2, 1, 17, 17))
    rois = [Roi(5, 6, 40, 20), None, Roi(0, 0, 9, 9)]
    prob = cpu.paste(crops, rois, (30, 44))
    assert prob.shape == (3, 30, 44)
    assert not prob[1].any()
    assert np.abs(prob[2, :9, :9] - bilinear_by_definition(crops[1, 0], 9)).max() < FLOAT32_RESIZE
    outside = np.ones((30, 44), bool)
    outside[6:20, 5:40] = False
    assert not prob[0][outside].any()
    assert prob[0][~outside].all()


@settings(max_examples=30, deadline=None)
@given(
    value=st.floats(0, 1, width=32),
    x0=st.integers(0, 20),
    y0=st.integers(0, 20),
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    size=st.sampled_from([1, 17, 33]),
)
def test_paste_of_the_crop_gives_a_constant_map_back(
    value: float, x0: int, y0: int, width: int, height: int, size: int
) -> None:
    prob = np.full((1, 64, 64), value, np.float32)
    rgb = np.zeros((64, 64, 3), np.uint8)
    roi = Roi(x0, y0, x0 + width, y0 + height)
    packed = cpu.crop_resize_pack(rgb, prob, [roi], size=size, mean=MEAN, std=STD)
    pasted = cpu.paste(packed[:, 3:], [roi], (64, 64))
    inside = pasted[0, y0 : y0 + height, x0 : x0 + width]
    assert np.abs(inside - np.float32(value)).max() < FLOAT32_RESIZE
    assert pasted.max() <= 1


def test_paste_of_unresized_crop_is_exact() -> None:
    prob = random_prob((1, 33, 40))
    roi = Roi(4, 5, 37, 33)
    crop = prob[:, 5:33, 4:37]
    square = np.zeros((1, 1, 33, 33), np.float32)
    square[0, 0, :28] = crop
    assert np.array_equal(cpu.paste(square, [Roi(4, 0, 37, 33)], (33, 40))[0, :28, 4:37], crop[0])
    assert roi.size_hw == crop.shape[1:]


def test_paste_refuses_a_batch_of_another_length() -> None:
    with pytest.raises(InputError, match="expected 2 rois that are not None, got 1"):
        cpu.paste(np.zeros((2, 1, 5, 5), np.float32), [Roi(0, 0, 2, 2), None], (9, 9))
    with pytest.raises(InputError, match=r"\(N, 1, S, S\)"):
        cpu.paste(np.zeros((2, 5, 5), np.float32), [None], (9, 9))


SOME = Roi(3, 4, 27, 21)


def _flows(to_prev: tuple[float, float], back: tuple[float, float]) -> tuple[np.ndarray, ...]:
    size_hw = (24, 32)
    return tuple(
        np.stack([np.full(size_hw, x, np.float32), np.full(size_hw, y, np.float32)])
        for x, y in (to_prev, back)
    )


@pytest.mark.parametrize("step", [(0.0, 0.0), (3.5, -2.0), (-9.0, 4.0)])
def test_flow_confidence_of_consistent_flow_is_one(step: tuple[float, float]) -> None:
    there, back = _flows(step, (-step[0], -step[1]))
    confidence = cpu.flow_confidence(there, back, box=SOME, sigma_px=1, sigma_frac=0)
    np.testing.assert_array_equal(confidence, np.ones(SOME.size_hw, np.float32))


def test_round_trip_error_lowers_flow_confidence() -> None:
    there, back = _flows((4.0, 0.0), (-1.0, 4.0))  # misses by (3, 4): 5 px, flow of 4 px
    confidence = cpu.flow_confidence(there, back, box=SOME, sigma_px=2, sigma_frac=0.5)
    expected = np.exp(-(5**2) / (2 * (2 + 0.5 * 4) ** 2))
    np.testing.assert_allclose(confidence, expected, rtol=FLOAT32_RESIZE)
    # control: a wider sigma tolerates more
    wider = cpu.flow_confidence(there, back, box=SOME, sigma_px=6, sigma_frac=0.5)
    assert (wider > confidence).all()


def test_flow_confidence_samples_flow_back_at_target() -> None:
    there, back = _flows((5.0, 0.0), (0.0, 0.0))
    back[0, :, 16:] = -5  # the flow back agrees only there
    box = Roi(0, 0, 24, 24)
    confidence = cpu.flow_confidence(there, back, box=box, sigma_px=1, sigma_frac=0)
    assert (confidence[:, 11:] == 1).all()
    assert (confidence[:, :10] < 1e-5).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_flow_confidence_of_non_finite_flow_is_zero(value: float, which: int) -> None:
    flows = _flows((1.0, 0.0), (-1.0, 0.0))
    flows[which][:, 10, 10] = value
    confidence = cpu.flow_confidence(*flows, box=Roi(0, 0, 32, 24), sigma_px=1, sigma_frac=0)
    assert np.isfinite(confidence).all()
    assert confidence[10, 10 if which == 0 else 9] == 0
    assert confidence[2, 2] == 1


def test_confidence_refuses_flows_of_two_sizes() -> None:
    there, back = _flows((1.0, 0.0), (-1.0, 0.0))
    with pytest.raises(InputError, match="both flows must be"):
        cpu.flow_confidence(there, back[:, 1:], box=SOME, sigma_px=1, sigma_frac=0)


def test_flow_confidence_is_independent_of_memory_layout() -> None:
    rng = np.random.default_rng(0)
    flows = rng.normal(0, 3, (2, 2, 61, 107)).astype(np.float32)

    def placed(offset: int) -> list[np.ndarray]:
        """Copy the flows to other distances from a 64-byte border."""
        found = []
        for number, flow in enumerate(flows):
            space = np.empty(flow.size + 32, np.float32)
            first = (-space.ctypes.data % 64) // 4 + (offset * (number + 1)) % 16
            place = space[first : first + flow.size].reshape(flow.shape)
            place[:] = flow
            found.append(place)
        return found

    expected = _confidence(placed(0))
    for offset in range(1, 16):
        np.testing.assert_array_equal(_confidence(placed(offset)), expected)
    # control: the last bit of one flow changes the result
    moved = placed(0)
    moved[0][0] = np.nextafter(moved[0][0], np.float32(np.inf))
    assert not np.array_equal(_confidence(moved), expected)


def _confidence(flows: list[np.ndarray]) -> np.ndarray:
    return cpu.flow_confidence(*flows, box=Roi(5, 3, 70, 50), sigma_px=1.0, sigma_frac=0.1)
