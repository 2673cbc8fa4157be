"""Texts of error messages."""

from __future__ import annotations

from mpn._common.text import one_line


def test_one_line_joins_cuts_and_drops_colours() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line("\x1b[31mred\x1b[0m text") == "red text"
    assert one_line("x" * 20, limit=10) == "x" * 7 + "..."
    assert one_line("x" * 10, limit=10) == "x" * 10
