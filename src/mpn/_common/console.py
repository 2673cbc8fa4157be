"""The console of rich, without control characters of the printed texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.text import Text

from mpn._common.text import printable


class PlainConsole(Console):
    """A console that escapes control characters in texts, but not its own.

    Rich removes a few of them and prints the others, among them ESC.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Convert to Text; see :meth:`rich.console.Console.render_str`.

        Escapes are here first, before widths are measured.
        """
        return super().render_str(printable(text, keep="\n"), **options)

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render to segments; see :meth:`rich.console.Console.render`."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text, keep="\n"), segment.style)
