"""Polygons that would take minutes or gigabytes."""

from __future__ import annotations

import math

import pytest

from mpn.formats import polygons
from mpn.formats.polygons import draw_on_centres, draw_on_edges

SIZE_HW = (48, 64)


def test_edges_of_200_turns_around_the_image_are_the_limit() -> None:
    """66 corners at 1e5 pixels took a minute and 4.7 GB."""
    far = [(2000.0 * (-1) ** k, float(k)) for k in range(10)]
    assert draw_on_edges(far, SIZE_HW).any()  # control: 40,000 pixels
    with pytest.raises(ValueError, match="the edges of its polygon are too long"):
        draw_on_edges([(x * 2, y) for x, y in far], SIZE_HW)


def test_corners_by_rows_of_the_image_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    circle = [(32 + 20 * math.cos(k), 24 + 20 * math.sin(k)) for k in range(100)]
    monkeypatch.setattr(polygons, "_MOST_EDGE_ROWS", 100 * SIZE_HW[0])
    assert draw_on_centres(circle, SIZE_HW).any()  # control
    with pytest.raises(ValueError, match=r"too many corners \(101\)"):
        draw_on_centres([*circle, circle[0]], SIZE_HW)
