"""Text files, and texts of error messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpn._common.console import PlainConsole
from mpn._common.text import one_line, printable, read_text


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07a\x1b[2K", r"\u001b]0;title\u0007a\u001b[2K"),
        ("a\rb\nc", r"a\u000db\u000ac"),
        ("\x9b31m\x7f", r"\u009b31m\u007f"),
        ("gpj.\u202egnp", r"gpj.\u202egnp"),
        ("caf\udce9", r"caf\udce9"),
        ("[bold] ü 猫 🎬 עברית", "[bold] ü 猫 🎬 עברית"),
    ],
)
def test_printable_escapes_control_characters(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert json.loads(f'"{shown}"') == text  # a JSON document stays the same document


def test_console_escapes_texts_and_not_its_own_codes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("name")
    table.add_row("x\x1b[2Ky")
    console = PlainConsole(force_terminal=True, width=60, color_system="standard", highlight=False)
    console.print(table)
    console.print("[red]a\x1b]0;t\x07[/red]")
    console.print(Text("b\x1b[2Kc"))
    out = capsys.readouterr().out
    assert r"x\u001b[2Ky" in out
    assert r"a\u001b]0;t" in out
    assert r"b\u001b[2Kc" in out
    assert "\x1b[31m" in out  # control: its own colour
    assert "\x1b[2K" not in out
    assert "\x1b]" not in out
