from __future__ import annotations

import math

import numpy as np
import pytest

from mpn.training.propagation.augment import MotionBlur, disturbed_flow, line_kernel, misplaced_mask
from tests.tolerances import PROBS_SUM


def _scene() -> tuple[np.ndarray, np.ndarray]:
    rgb = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    mask = np.zeros((60, 80), np.bool_)
    mask[20:40, 25:50] = True
    return rgb, mask


def _of_kind(*, object_only: bool) -> tuple[MotionBlur, int]:
    """Find a blur of a kind, and a frame with a long blur."""
    rgb, mask = _scene()
    for seed in range(40):
        blur = MotionBlur(seed, 12.0)
        if blur.object_only is object_only:
            for t in range(10):
                if (blur(rgb, mask, t) != rgb).any():
                    return blur, t
    raise AssertionError("no such blur")


@pytest.mark.parametrize("length_px", [2.0, 5.5, 12.0])
@pytest.mark.parametrize("angle", [0.0, 0.7, math.pi / 2, 3.0])
def test_the_kernel_is_a_centred_line_of_that_length(length_px: float, angle: float) -> None:
    kernel = line_kernel(length_px, angle).astype(np.float64)
    assert kernel.shape[0] == kernel.shape[1]
    assert kernel.shape[0] % 2 == 1
    assert kernel.sum() == pytest.approx(1, abs=PROBS_SUM)
    ys, xs = np.mgrid[: kernel.shape[0], : kernel.shape[1]] - kernel.shape[0] // 2
    assert abs((kernel * xs).sum()) < 0.02
    assert abs((kernel * ys).sum()) < 0.02
    # The variance of a uniform line is length^2 / 12; sampling a pixel adds up to 1/4 an axis.
    along = (kernel * (xs * math.cos(angle) + ys * math.sin(angle)) ** 2).sum()
    across = (kernel * (ys * math.cos(angle) - xs * math.sin(angle)) ** 2).sum()
    assert length_px**2 / 12 - 0.1 < along < length_px**2 / 12 + 0.5
    assert across < 0.3


def test_a_blurred_frame_is_a_function_of_seed_and_frame() -> None:
    rgb, mask = _scene()
    blur, t = _of_kind(object_only=False)
    again = MotionBlur(blur._seed, 12.0)
    np.testing.assert_array_equal(blur(rgb, mask, t), again(rgb, mask, t))
    frames = [blur(rgb, mask, k) for k in range(8)]
    assert len({frame.tobytes() for frame in frames}) > 2
    assert blur(rgb, mask, t).std() < rgb.std()
    assert blur(rgb, mask, t).mean() == pytest.approx(rgb.mean(), rel=0.05)


def test_blur_of_the_object_leaves_the_rest_of_the_frame_sharp() -> None:
    rgb, mask = _scene()
    blur, t = _of_kind(object_only=True)
    changed = (blur(rgb, mask, t) != rgb).any(axis=2)
    assert changed[mask].mean() > 0.8
    far = np.ones_like(mask)
    far[5:55, 10:65] = False
    assert not changed[far].any()
    # control: a blur of the whole frame changes it everywhere
    whole, t = _of_kind(object_only=False)
    assert (whole(rgb, mask, t) != rgb).any(axis=2)[far].mean() > 0.8


def test_blur_without_an_object_is_none() -> None:
    rgb, mask = _scene()
    blur, t = _of_kind(object_only=True)
    np.testing.assert_array_equal(blur(rgb, np.zeros_like(mask), t), rgb)


def test_flow_errors_are_smooth_bounded_or_shorten_the_flow() -> None:
    flow = np.full((2, 48, 64), 6.0, np.float32)
    shortened = 0
    for seed in range(30):
        out = disturbed_flow(flow, 4.0, np.random.default_rng(seed))
        assert out.dtype == np.float32
        assert out.shape == flow.shape
        assert np.abs(out).max() <= 6 + 4 + 1e-5
        error = out - flow
        steps = np.abs(np.diff(error, axis=2))
        if np.quantile(steps, 0.999) < 1:  # no region whose flow is too short
            assert np.abs(error).max() <= 4 + 1e-5
        else:
            shortened += 1
    assert 5 < shortened < 25
    assert (flow == 6).all(), "the input is not written to"
    np.testing.assert_array_equal(
        disturbed_flow(flow, 4.0, np.random.default_rng(3)),
        disturbed_flow(flow, 4.0, np.random.default_rng(3)),
    )


def test_misplaced_mask_keeps_shape_outside_object() -> None:
    _, mask = _scene()
    small = np.zeros_like(mask)
    small[20:30, 25:37] = True
    moved_ones = 0
    for seed in range(20):
        moved = misplaced_mask(small, np.random.default_rng(seed), margin_frac=0.4, margin_px=8)
        if (moved == small).all():
            continue
        moved_ones += 1
        assert moved.sum() == small.sum()
        ys, xs = np.nonzero(moved)
        gap_y = max(ys.min() - 30, 20 - ys.max() - 1)
        gap_x = max(xs.min() - 37, 25 - xs.max() - 1)
        assert max(gap_x, gap_y) >= 8
    assert moved_ones > 15
    # control: where nothing is free, the mask stays
    full = np.ones_like(mask)
    rng = np.random.default_rng(0)
    assert misplaced_mask(full, rng, margin_frac=0.4, margin_px=8) is full
    empty = np.zeros_like(mask)
    assert misplaced_mask(empty, rng, margin_frac=0.4, margin_px=8) is empty
