"""A page of SVG: the same calls give the same bytes, and no plotting library is needed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Literal

Anchor = Literal["start", "middle", "end"]

FONT = "'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"
INK, FAINT, GRID, STRIPE, PAPER = "#222222", "#666666", "#dddddd", "#f6f6f6", "#ffffff"
COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6d31", "#999999",
    "#f0e442", "#5e4fa2", "#1b1b1b",
)  # fmt: skip
"""Okabe and Ito's colours, which colour-blind readers can tell apart, and a few more."""


class Svg:
    """A page to draw on; (0, 0) is the upper left corner, units are pixels.

    Args:
        width_px: Width of the page.
        height_px: Its height.
        title: What it shows, for those who cannot see it.
    """

    def __init__(self, width_px: float, height_px: float, title: str) -> None:
        self._lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_number(width_px)} '
            f'{_number(height_px)}" width="{_number(width_px)}" height="{_number(height_px)}" '
            f'font-family="{FONT}" role="img">',
            f"<title>{escape(title)}</title>",
            f'<rect width="100%" height="100%" fill="{PAPER}"/>',
        ]

    def line(
        self, points: Sequence[tuple[float, float]], *, colour: str = INK, width_px: float = 1
    ) -> None:
        """A line through points (x, y)."""
        path = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
        self._lines.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" '
            f'stroke-width="{_number(width_px)}" stroke-linejoin="round"/>'
        )

    def rectangle(self, x: float, y: float, width: float, height: float, *, colour: str) -> None:
        """A filled rectangle from its upper left corner."""
        self._lines.append(
            f'<rect x="{_number(x)}" y="{_number(y)}" width="{_number(width)}" '
            f'height="{_number(height)}" fill="{colour}"/>'
        )

    def dot(self, x: float, y: float, *, colour: str, radius_px: float = 4) -> None:
        """A filled circle."""
        self._lines.append(
            f'<circle cx="{_number(x)}" cy="{_number(y)}" r="{_number(radius_px)}" '
            f'fill="{colour}" stroke="{PAPER}" stroke-width="1"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size_px: float = 12,
        anchor: Anchor = "start",
        colour: str = INK,
        bold: bool = False,
        upright: bool = True,
    ) -> None:
        """A line of text whose baseline is at ``y``; not ``upright``: it runs upwards."""
        turned = "" if upright else f' transform="rotate(-90 {_number(x)} {_number(y)})"'
        weight = ' font-weight="bold"' if bold else ""
        self._lines.append(
            f'<text x="{_number(x)}" y="{_number(y)}" font-size="{_number(size_px)}" '
            f'text-anchor="{anchor}" fill="{colour}"{weight}{turned}>{escape(text)}</text>'
        )

    def as_text(self) -> str:
        """The file."""
        return "\n".join([*self._lines, "</svg>"]) + "\n"


def text_width_px(text: str, size_px: float = 12) -> float:
    """About how wide a text will be: fonts differ, so leave room."""
    return 0.58 * size_px * len(text)


def wrapped(text: str, width_px: float, size_px: float = 12) -> list[str]:
    """The text in lines that fit a width."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width_px(f"{lines[-1]} {word}", size_px) <= width_px:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
