from __future__ import annotations

import numpy as np
import pytest

from mpn.export.parity_inputs import (
    BACKGROUND_MOTION_PX,
    OBJECT_MOTION_PX,
    centred_coverage,
    rendered_picture,
)
from tests.tolerances import RENDERED_SPECTRUM_SLOPE

SIZE_HW = (128, 192)


def test_the_same_arguments_give_the_same_picture() -> None:
    first, second = (rendered_picture(SIZE_HW, 3) for _ in range(2))
    np.testing.assert_array_equal(first.rgb, second.rgb)
    np.testing.assert_array_equal(first.coverage, second.coverage)
    assert not np.array_equal(first.rgb, rendered_picture(SIZE_HW, 4).rgb)


def test_a_picture_has_colours_edges_and_an_object() -> None:
    picture = rendered_picture(SIZE_HW, 3)
    assert picture.rgb.shape == (*SIZE_HW, 3)
    assert picture.rgb.dtype == np.uint8
    assert picture.rgb.std() > 20
    assert picture.coverage.min() == 0
    assert picture.coverage.max() == 1
    assert 0.05 < (picture.coverage > 0.5).mean() < 0.4
    assert np.any((picture.coverage > 0) & (picture.coverage < 1))  # a soft edge


def _slope(gray: np.ndarray) -> float:  # type: ignore[type-arg]
    """Exponent of the amplitude spectrum over frequency."""
    size = gray.shape[0]
    amplitude = np.abs(np.fft.fft2(gray))
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(size) * size] * 2))
    band = (frequency >= 4) & (frequency <= 16)
    return float(np.polyfit(np.log(frequency[band]), np.log(amplitude[band]), 1)[0])


def test_the_spectrum_falls_as_in_photographs() -> None:
    pictures = [rendered_picture((256, 256), seed).rgb.mean(axis=2) for seed in range(4)]
    slope = np.mean([_slope(picture) for picture in pictures])
    assert slope == pytest.approx(-1.0, abs=RENDERED_SPECTRUM_SLOPE)
    noise = np.random.default_rng(0).normal(size=(256, 256))
    assert abs(_slope(noise)) < RENDERED_SPECTRUM_SLOPE  # control: white noise does not fall


def test_object_and_background_have_the_stated_motion() -> None:
    before, after = (rendered_picture(SIZE_HW, 3, step=step) for step in (0, 1))
    inside = np.s_[20:108, 20:172]

    def moved(motion_px: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
        x, y = motion_px
        return (
            np.roll(before.rgb, (y, x), axis=(0, 1))[inside],
            np.roll(before.coverage, (y, x), axis=(0, 1))[inside],
        )

    rgb, coverage = moved(OBJECT_MOTION_PX)
    on_object = (coverage == 1) & (after.coverage[inside] == 1)
    assert on_object.sum() > 500
    np.testing.assert_array_equal(rgb[on_object], after.rgb[inside][on_object])
    rgb, coverage = moved(BACKGROUND_MOTION_PX)
    behind = (coverage == 0) & (after.coverage[inside] == 0)
    np.testing.assert_array_equal(rgb[behind], after.rgb[inside][behind])
    # Control: the background has not moved as the object has.
    assert not np.array_equal(before.rgb[inside][behind], after.rgb[inside][behind])


def test_the_object_of_an_unknown_picture_is_in_the_middle() -> None:
    coverage = centred_coverage(SIZE_HW)
    y, x = np.nonzero(coverage > 0.5)
    assert abs(y.mean() - 64) < 6
    assert abs(x.mean() - 96) < 6
