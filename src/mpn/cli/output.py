"""Print texts that hold names and values of others."""

from __future__ import annotations

import typer

from mpn._common.text import printable


def echo(text: object, *, err: bool = False) -> None:
    """Print one line, with control characters as escapes."""
    typer.echo(printable(str(text)), err=err)


def echo_document(text: str, *, err: bool = False) -> None:
    """Print lines, with control characters as escapes that are valid in JSON."""
    typer.echo(printable(text, keep="\n"), err=err)
