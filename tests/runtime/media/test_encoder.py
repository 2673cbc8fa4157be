from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpn.runtime.media.encoder import BT709, Colour, picture_from_rgb
from tests.builders.clips import texture


def planes(picture: Any) -> list[bytes]:
    """Return the planes without what is beyond the end of their lines."""
    value_bytes = 2 if "10" in picture.format.name else 1
    lines = [np.frombuffer(plane, np.uint8).reshape(plane.height, -1) for plane in picture.planes]
    return [
        data[:, : plane.width * value_bytes].tobytes()
        for data, plane in zip(lines, picture.planes, strict=True)
    ]


def test_picture_from_rgb_repeated_is_equal() -> None:
    """With several threads of swscale, a sixth of the planes of 10 bits differed."""
    pix_fmt = "yuva444p10le"
    x, y = np.arange(854, dtype=np.float32)[None], np.arange(480, dtype=np.float32)[:, None]
    rgb = (255 * texture(x, y, seed=1)).astype(np.uint8)
    first = planes(picture_from_rgb(rgb, pix_fmt))
    for _ in range(20):
        assert planes(picture_from_rgb(rgb, pix_fmt)) == first
    assert planes(picture_from_rgb(rgb[::-1].copy(), pix_fmt)) != first


@pytest.mark.parametrize("colour", [BT709, Colour(5, 1, 6), Colour(9, 16, 9)])
def test_picture_from_rgb_has_the_levels_of_its_matrix(colour: Colour) -> None:
    """Luma of pure red is 64 + 876 Kr in 10 bits (ITU-R BT.709, BT.601, BT.2020)."""
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    picture = picture_from_rgb(red, "yuva444p10le", colour)
    luma = np.frombuffer(picture.planes[0], np.uint16)[0]
    kr = {1: 0.2126, 6: 0.299, 9: 0.2627}[colour.matrix]
    assert abs(int(luma) - (64 + 876 * kr)) <= 1
