"""Read text files of any system, shorten texts, escape control characters."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, and the codecs that remove them."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line ends, changes of the writing direction, and bytes that are no UTF-8."""


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, or in the encoding of its byte order mark.

    Editors and shells of Windows write UTF-8 with a mark and UTF-16.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no such text.
    """
    data = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError("it is no text in UTF-8, nor in UTF-16 with a byte order mark")
    return text


LONGEST_MESSAGE = 1000
"""Characters of a message about a file that others made: it can hold a text of any length."""


def one_line(error: object, limit: int = 300) -> str:
    """Return the text of an error on one line, without terminal colours.

    Args:
        error: An exception, or any object with a text.
        limit: Largest number of characters; a longer text is cut and ends with ``...``.
    """
    text = _COLOUR.sub("", " ".join(str(error).split()))
    return text if len(text) <= limit else text[: limit - 3] + "..."


def printable(text: str, *, keep: str = "") -> str:
    r"""Replace characters that control a terminal by escapes such as ``\u001b``.

    Names of files and texts in manifests come from others. Their escape sequences could move the
    cursor, forge lines or set the title of the window.

    Args:
        text: Any text.
        keep: Characters that stay, such as a line feed.
    """

    def escape(match: re.Match[str]) -> str:
        char = match[0]
        return char if char in keep else f"\\u{ord(char):04x}"  # as in JSON

    return _UNPRINTABLE.sub(escape, text)
