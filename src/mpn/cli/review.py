"""The ``mpn review`` command."""

from __future__ import annotations

from pathlib import Path

import typer

from mpn.cli.output import echo


def review(
    out: Path = typer.Argument(
        ..., metavar="OUT", help="Output folder of mpn-run.", show_default=False
    ),
    target: Path = typer.Option(
        None,
        "--output",
        "-o",
        metavar="FILE",
        help="Write this HTML file.",
        show_default="OUT/review.html",
    ),
    video: Path = typer.Option(
        None,
        metavar="PATH",
        help="The video of the run, if it was moved.",
        show_default="as in run.json",
    ),
) -> None:
    """Write a page with the frames of OUT to check, and the command that mends each.

    The page is one HTML file that needs no server and no network. mpn-run writes it too.
    """
    from mpn.runtime.results_review import write_review

    def on_note(text: str) -> None:
        echo(f"note: {text}", err=True)

    echo(write_review(out, target, video=video, on_note=on_note))
