"""The files of the page: colours that can be read, keys that exist."""

from __future__ import annotations

import re

import pytest

from mpn.studio.app import WEB_FOLDER

TEXT_RATIO = 4.5
"""Contrast of text, WCAG 2.2 level AA (1.4.3)."""
GRAPHIC_RATIO = 3.0
"""Contrast of controls and graphics, level AA (1.4.11)."""

SURFACES = ("--page", "--panel", "--row", "--hover")
TEXT = (
    *(("--text", surface) for surface in (*SURFACES, "--accent-soft", "--notice")),
    *(("--muted", surface) for surface in ("--page", "--panel", "--row")),
    ("--on-accent", "--accent"),
    ("--on-accent", "--accent-strong"),
)
GRAPHICS = (
    *(("--accent", surface) for surface in ("--panel", "--page", "--stage")),
    *((name, "--row") for name in ("--line", "--lost", "--found")),
    ("--warn", "--panel"),
    ("--control", "--panel"),
)


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"(--[\w-]+):\s*(#[0-9a-f]{6});", block))


def schemes() -> dict[str, dict[str, str]]:
    css = (WEB_FOLDER / "studio.css").read_text(encoding="utf-8")
    light, _, rest = css.partition("@media (prefers-color-scheme: dark)")
    dark = rest.partition("* { box-sizing")[0]
    return {"light": colours(light), "dark": colours(light) | colours(dark)}


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_and_white_is_21() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_of_level_aa(scheme: str) -> None:
    values = schemes()[scheme]
    too_low = {
        (name, surface): round(ratio, 2)
        for pairs, least in ((TEXT, TEXT_RATIO), (GRAPHICS, GRAPHIC_RATIO))
        for name, surface in pairs
        if (ratio := contrast(values[name], values[surface])) < least
    }
    assert too_low == {}


def test_each_element_of_the_scripts_is_on_the_page() -> None:
    page = (WEB_FOLDER / "index.html").read_text(encoding="utf-8")
    ids = set(re.findall(r'\bid="([\w-]+)"', page))
    used = set()
    for path in WEB_FOLDER.glob("*.js"):
        used |= set(re.findall(r'\$\("([\w-]+)"\)', path.read_text(encoding="utf-8")))
    assert len(used) > 30
    assert used - ids == set()
