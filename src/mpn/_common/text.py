"""Shorten texts for error messages."""

from __future__ import annotations

import re

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def one_line(error: object, limit: int = 300) -> str:
    """Return the text of an error on one line, without terminal colours.

    Args:
        error: An exception, or any object with a text.
        limit: Largest number of characters; a longer text is cut and ends with ``...``.
    """
    text = _COLOUR.sub("", " ".join(str(error).split()))
    return text if len(text) <= limit else text[: limit - 3] + "..."
