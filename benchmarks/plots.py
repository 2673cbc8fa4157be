"""Three kinds of plots as SVG: lines over a whole number, stacked bars, and dots in rows.

Each has a title, axes with units, a legend and a caption that says how it was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from svg import COLOURS, FAINT, GRID, INK, STRIPE, Svg, text_width_px, wrapped

WIDTH_PX = 760
_MARGIN_PX = 20
_TITLE_PX, _CAPTION_PX, _LABEL_PX = 16, 11, 12
_LINE_PX = 16


@dataclass(frozen=True)
class Panel:
    """One of several line plots side by side.

    Attributes:
        name: Its heading.
        series: By name the points (x, y), in the order of x.
    """

    name: str
    series: Mapping[str, Sequence[tuple[int, float]]]


def line_panels(
    title: str, caption: str, panels: Sequence[Panel], *, x_label: str, y_label: str
) -> str:
    """Line plots side by side, each with its own y axis from 0; every point has its value."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    colours = dict(zip(names, COLOURS, strict=False))
    plot_height, top = 230, 92
    page = _Page(title, caption, top + plot_height + 48)
    page.legend(colours)
    gap = 56
    width = (WIDTH_PX - 2 * _MARGIN_PX - gap * len(panels)) / len(panels)
    for number, panel in enumerate(panels):
        left = _MARGIN_PX + gap + number * (width + gap)
        _lines(page.svg, panel, colours, (left, top, width, plot_height), x_label)
        if number == 0:
            page.svg.text(
                _MARGIN_PX + 8, top + plot_height / 2, y_label,
                size_px=_LABEL_PX, anchor="middle", colour=FAINT, upright=False,
            )  # fmt: skip
    return page.svg.as_text()


def _lines(
    svg: Svg,
    panel: Panel,
    colours: Mapping[str, str],
    box: tuple[float, float, float, float],
    x_label: str,
) -> None:
    left, top, width, height = box
    xs = sorted({x for points in panel.series.values() for x, _ in points})
    ticks = ticks_to(max(y for points in panel.series.values() for _, y in points))

    def place_x(x: float) -> float:
        return left + width * (0.08 + 0.84 * (x - xs[0]) / max(xs[-1] - xs[0], 1))

    def place_y(y: float) -> float:
        return top + height * (1 - y / ticks[-1])

    svg.text(left + width / 2, top - 10, panel.name, size_px=13, anchor="middle", bold=True)
    for tick in ticks:
        svg.line([(left, place_y(tick)), (left + width, place_y(tick))], colour=GRID)
        svg.text(left - 6, place_y(tick) + 4, short(tick), size_px=11, anchor="end", colour=FAINT)
    for x in xs:
        svg.text(place_x(x), top + height + 18, f"{x:g}", size_px=11, anchor="middle", colour=FAINT)
    svg.line([(left, top + height), (left + width, top + height)])
    svg.text(
        left + width / 2, top + height + 38, x_label,
        size_px=_LABEL_PX, anchor="middle", colour=FAINT,
    )  # fmt: skip
    # A value is written above its dot or below it, where no other dot or text is.
    taken = {
        x: [place_y(y) for points in panel.series.values() for at, y in points if at == x]
        for x in xs
    }
    for name, points in panel.series.items():
        svg.line([(place_x(x), place_y(y)) for x, y in points], colour=colours[name], width_px=2.5)
    for name, points in panel.series.items():
        for x, y in points:
            svg.dot(place_x(x), place_y(y), colour=colours[name])
            for middle in (place_y(y) - 13, place_y(y) + 14):
                if middle < top + height - 6 and all(
                    abs(middle - other) >= 12 for other in taken[x]
                ):
                    taken[x].append(middle)
                    svg.text(
                        place_x(x), middle + 4, short(y),
                        size_px=11, anchor="middle", colour=colours[name],
                    )  # fmt: skip
                    break


def stacked_bars(
    title: str,
    caption: str,
    rows: Sequence[tuple[str, Mapping[str, float]]],
    *,
    x_label: str,
    total: str,
) -> str:
    """Horizontal bars made of parts, with the sum at their end.

    Args:
        title: Of the plot.
        caption: How it was measured.
        rows: Label and parts of each bar, in order; an empty label is a gap.
        x_label: Of the axis, with its unit.
        total: Unit of the sum, written behind it.
    """
    names = list(dict.fromkeys(name for _, parts in rows for name in parts))
    colours = dict(zip(names, COLOURS, strict=False))
    row_height, top = 24, 84
    bottom = top + row_height * len(rows)
    page = _Page(title, caption, bottom + 44)
    page.legend(colours)
    svg = page.svg
    left = _MARGIN_PX + 14 + max(text_width_px(label) for label, _ in rows)
    width = WIDTH_PX - left - _MARGIN_PX - 64
    ticks = ticks_to(max(sum(parts.values()) for _, parts in rows))
    scale = width / ticks[-1]
    _x_axis(svg, ticks, left, scale, (top, bottom), x_label)
    for number, (label, parts) in enumerate(rows):
        y = top + number * row_height
        svg.text(left - 8, y + 16, label, size_px=_LABEL_PX, anchor="end")
        x = left
        for name in filter(parts.get, names):
            svg.rectangle(x, y + 4, parts[name] * scale, row_height - 8, colour=colours[name])
            x += parts[name] * scale
        if parts:
            told = f"{short(sum(parts.values()))} {total}"
            svg.text(x + 6, y + 16, told, size_px=11, colour=FAINT)
    return svg.as_text()


def grouped_bars(
    title: str,
    caption: str,
    groups: Sequence[tuple[str, Mapping[str, float], str]],
    *,
    x_label: str,
) -> str:
    """Horizontal bars in groups, one bar a side, and a remark beside each group.

    Args:
        title: Of the plot.
        caption: How it was measured.
        groups: Label, value by side, and remark of each.
        x_label: Of the axis, with its unit.
    """
    names = list(dict.fromkeys(name for _, sides, _ in groups for name in sides))
    colours = dict(zip(names, COLOURS, strict=False))
    bar_height, gap, top = 13, 12, 84
    bottom = top + sum(len(sides) * bar_height + gap for _, sides, _ in groups)
    page = _Page(title, caption, bottom + 44)
    page.legend(colours)
    svg = page.svg
    left = _MARGIN_PX + 14 + max(text_width_px(label) for label, _, _ in groups)
    width = WIDTH_PX - left - _MARGIN_PX - 110
    ticks = ticks_to(max(value for _, sides, _ in groups for value in sides.values()))
    scale = width / ticks[-1]
    _x_axis(svg, ticks, left, scale, (top, bottom), x_label)
    y: float = top + gap / 2
    for label, sides, remark in groups:
        height = len(sides) * bar_height
        svg.text(left - 8, y + height / 2 + 4, label, size_px=_LABEL_PX, anchor="end")
        for number, (name, value) in enumerate(sides.items()):
            bar_y = y + number * bar_height
            svg.rectangle(left, bar_y, value * scale, bar_height - 2, colour=colours[name])
            svg.text(left + value * scale + 5, bar_y + 10, short(value), size_px=10, colour=FAINT)
        svg.text(
            WIDTH_PX - _MARGIN_PX, y + height / 2 + 4, remark, size_px=_LABEL_PX, anchor="end",
            bold=True,
        )  # fmt: skip
        y += height + gap
    return svg.as_text()


def dot_rows(
    title: str,
    caption: str,
    rows: Sequence[tuple[str, Mapping[str, float]]],
    *,
    x_label: str,
) -> str:
    """One row a thing, one dot a kind of value of 0..1 in it; a row named in capitals is bold.

    Dots of one row lie a little above each other, in the order of the legend, so that none hides
    another.
    """
    names = list(dict.fromkeys(name for _, values in rows for name in values))
    colours = dict(zip(names, COLOURS, strict=False))
    lane_px, top = 7, 84
    row_height = max(24, lane_px * len(names) + 10)
    bottom = top + row_height * len(rows)
    page = _Page(title, caption, bottom + 44)
    page.legend(colours)
    svg = page.svg
    left = _MARGIN_PX + 14 + max(text_width_px(label) for label, _ in rows)
    width = WIDTH_PX - left - _MARGIN_PX - 10
    for number in range(0, len(rows), 2):
        svg.rectangle(left, top + number * row_height, width, row_height, colour=STRIPE)
    _x_axis(svg, [0, 0.2, 0.4, 0.6, 0.8, 1], left, width, (top, bottom), x_label)
    for number, (label, values) in enumerate(rows):
        y = top + (number + 0.5) * row_height
        svg.text(left - 8, y + 4, label, size_px=_LABEL_PX, anchor="end", bold=label.isupper())
        for name, value in values.items():
            lane = names.index(name) - (len(names) - 1) / 2
            svg.dot(left + value * width, y + lane * lane_px, colour=colours[name])
    return svg.as_text()


def ticks_to(largest: float) -> list[float]:
    """Round values from 0 to at least ``largest``, four to eight of them."""
    if largest <= 0:
        return [0, 1]
    power = 10.0 ** math.floor(math.log10(largest / 4))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if largest / (s * power) <= 6)
    return [i * step for i in range(math.ceil(largest / step - 1e-9) + 1)]


def short(value: float) -> str:
    """Two or three digits, as many as a reader needs."""
    if value >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


class _Page:
    """A page with title and caption; the legend stands below the title."""

    def __init__(self, title: str, caption: str, caption_top: float) -> None:
        lines = wrapped(caption, WIDTH_PX - 2 * _MARGIN_PX, _CAPTION_PX)
        self.svg = Svg(WIDTH_PX, caption_top + 12 + len(lines) * _LINE_PX, title)
        self.svg.text(_MARGIN_PX, 30, title, size_px=_TITLE_PX, bold=True)
        for number, line in enumerate(lines):
            self.svg.text(
                _MARGIN_PX, caption_top + 12 + number * _LINE_PX, line,
                size_px=_CAPTION_PX, colour=FAINT,
            )  # fmt: skip

    def legend(self, colours: Mapping[str, str]) -> None:
        """Names beside their colours, in one line."""
        x: float = _MARGIN_PX
        for name, colour in colours.items():
            self.svg.rectangle(x, 45, 11, 11, colour=colour)
            self.svg.text(x + 16, 55, name, size_px=_LABEL_PX, colour=INK)
            x += 16 + text_width_px(name) + 14


def _x_axis(
    svg: Svg,
    ticks: Sequence[float],
    left: float,
    scale: float,
    top_bottom: tuple[float, float],
    label: str,
) -> None:
    top, bottom = top_bottom
    for tick in ticks:
        x = left + tick * scale
        svg.line([(x, top), (x, bottom)], colour=GRID)
        svg.text(x, bottom + 16, short(tick), size_px=11, anchor="middle", colour=FAINT)
    svg.line([(left, top), (left, bottom)])
    middle = left + ticks[-1] * scale / 2
    svg.text(middle, bottom + 34, label, size_px=_LABEL_PX, anchor="middle", colour=FAINT)
