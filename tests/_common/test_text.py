"""Text files, and texts of error messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpn._common.text import one_line, read_text


def test_one_line_joins_cuts_and_drops_colours() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line("\x1b[31mred\x1b[0m text") == "red text"
    assert one_line("x" * 20, limit=10) == "x" * 7 + "..."
    assert one_line("x" * 10, limit=10) == "x" * 10


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_read_by_its_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("größe\r\nzwei\r\n".encode(encoding))
    assert read_text(path).split() == ["größe", "zwei"]


@pytest.mark.parametrize("data", [b"\xff\xfea", b"d\0i\0s\0c\0", b"\xe4"])
def test_text_of_no_known_encoding_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="no text in UTF-8, nor in UTF-16"):
        read_text(path)
