"""Draw reliability, area and states of one object over the frames as SVG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpn.runtime.review.series import GIVEN, LOST, REDETECTED, ObjectSeries, stretches
from mpn.runtime.review.worst import CHECK_BELOW

_WIDTH, _HEIGHT, _TOP = 1000, 96, 14
_MOST_COLUMNS = 500
"""Points of a curve. A point of a longer run is the lowest of its frames."""
_MOST_MARKS = 60


def timeline_svg(series: ObjectSeries, worst: Sequence[int], label: str) -> str:
    """Return an inline SVG element.

    Args:
        series: Figures of the object.
        worst: Positions of the frames that the page shows.
        label: Accessible name, escaped.
    """
    frames = len(series.state)
    scale = _WIDTH / max(frames, 1)
    parts = [
        f'<svg class="timeline" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
    ]
    for first, last in _longest(stretches(series.state, LOST)):
        width = max((last - first + 1) * scale, 2)
        parts.append(
            f'<rect class="lost" x="{first * scale:.1f}" y="{_TOP}" width="{width:.1f}" '
            f'height="{_HEIGHT - _TOP}"/>'
        )
    most = max(max(series.area_px, default=0), 1)
    area = _columns([value / most for value in series.area_px], frames, np.maximum)
    parts.append(f'<path class="area" d="M0 {_HEIGHT}{_points(area)}L{_WIDTH} {_HEIGHT}Z"/>')
    limit = _y(CHECK_BELOW)
    parts.append(f'<path class="limit" d="M0 {limit:.1f}H{_WIDTH}"/>')
    curve = _points(_columns(series.reliability, frames, np.minimum))
    parts.append(f'<path class="curve" d="M{curve[1:]}"/>')
    for position in worst:
        x = (position + 0.5) * scale
        parts.append(f'<path class="check" d="M{x:.1f} {_TOP}V{_HEIGHT}"/>')
    for state, shape in ((GIVEN, "l6 6-6 6-6-6z"), (REDETECTED, "l6 12h-12z")):
        for first, _ in _longest(stretches(series.state, state)):
            x = (first + 0.5) * scale
            parts.append(f'<path class="event" d="M{x:.1f} 1{shape}"/>')
    return "".join(parts) + "</svg>"


def _longest(found: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    return sorted(found, key=lambda span: span[0] - span[1])[:_MOST_MARKS]


def _columns(values: Sequence[float], frames: int, reduce: np.ufunc) -> list[tuple[float, float]]:
    """Return (x, value) of at most 500 points; each is the extreme of its frames."""
    per_column = -(-frames // _MOST_COLUMNS) if frames else 1
    starts = np.arange(0, frames, per_column)
    if not frames:
        return []
    reduced = reduce.reduceat(np.asarray(values, np.float64), starts)
    scale = _WIDTH / frames
    middles = (starts + np.minimum(starts + per_column, frames)) / 2 * scale
    points = list(zip(middles.tolist(), reduced.tolist(), strict=True))
    return [(0.0, points[0][1]), *points, (float(_WIDTH), points[-1][1])]


def _points(columns: Sequence[tuple[float, float]]) -> str:
    return "".join(f"L{x:.1f} {_y(value):.1f}" for x, value in columns)


def _y(value: float) -> float:
    return _HEIGHT - 1 - value * (_HEIGHT - _TOP - 2)
