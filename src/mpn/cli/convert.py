"""The ``mpn convert`` command, and the formats that ``mpn run --save`` takes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from mpn.cli.output import echo
from mpn.runtime.convert.formats import FORMATS


def format_names(texts: Sequence[str], option: str) -> list[str]:
    """Return the names of formats of an option that is repeated or has commas.

    Raises:
        typer.BadParameter: If there is no name, or one is unknown.
    """
    names = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    for name in names:
        if name not in FORMATS:
            raise typer.BadParameter(f"{option} takes {', '.join(FORMATS)}, not '{name}'")
    if not names:
        raise typer.BadParameter(f"{option} takes at least one of {', '.join(FORMATS)}")
    return names


def object_ids_from_text(text: str | None) -> list[int] | None:
    """Convert ``--objects``; None if it was not given."""
    if text is None:
        return None
    ids = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in ids):
        raise typer.BadParameter(f"--objects takes ids like 1,3, not '{text}'")
    return [int(part) for part in ids]


def convert(
    out: Path = typer.Argument(
        ..., metavar="OUT", help="Output folder of mpn-run.", show_default=False
    ),
    to: list[str] = typer.Option(
        ...,
        "--to",
        metavar="FORMAT",
        help="Convert to this format; repeat it for others.",
        show_default=False,
    ),
    target: Path = typer.Option(
        None,
        "--output",
        "-o",
        metavar="PATH",
        help="Write this file or folder; with several formats, a folder for all.",
        show_default="OUT/converted/FORMAT",
    ),
    objects: str = typer.Option(
        None, metavar="IDS", help="Convert these objects, such as 1,3.", show_default="all"
    ),
    start: int = typer.Option(
        None, metavar="FRAME", min=0, help="Start at this frame.", show_default="the first"
    ),
    end: int = typer.Option(
        None, metavar="FRAME", min=1, help="Stop before this frame.", show_default="the last"
    ),
    video: Path = typer.Option(
        None,
        metavar="PATH",
        help="The video of the run, if it was moved.",
        show_default="as in run.json",
    ),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
) -> None:
    """Convert the results in OUT to formats of other programs.

    Alpha is the probability of the objects if the run saved it (mpn-run --save probs), else their
    masks. Files in OUT/converted are replaced, other files never.

    Formats:
    """
    names = format_names(to, "--to")
    object_ids = object_ids_from_text(objects)
    if start is not None and end is not None and end <= start:
        raise typer.BadParameter(f"--end must be above --start, got {start} and {end}")

    paths = convert_with_progress(
        out,
        names,
        quiet=quiet,
        target=target,
        object_ids=object_ids,
        start=start,
        end=end,
        video=video,
    )
    if not quiet:
        for path in paths:
            echo(path)


convert.__doc__ = f"{(convert.__doc__ or '').rstrip()}\n\n" + "\n\n".join(
    f"    {name}: {kind.description}" for name, kind in FORMATS.items()
)


def convert_with_progress(
    out: Path, names: Sequence[str], *, quiet: bool, **how: Any
) -> list[Path]:
    """Convert results and show the number of frames on a terminal.

    Args:
        out: See :func:`mpn.runtime.convert.conversion.convert_results`.
        names: See the same.
        quiet: Show nothing.
        **how: See the same.
    """
    from mpn.runtime.convert.conversion import convert_results

    def on_note(text: str) -> None:
        if not quiet:
            echo(f"note: {text}", err=True)

    with _progress(quiet) as on_frame:
        return convert_results(out, names, on_frame=on_frame, on_note=on_note, **how)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[], None]]:
    if quiet or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.progress import Progress, TextColumn

    from mpn._common.console import PlainConsole

    column = TextColumn("converting: {task.completed:.0f} frames")
    with Progress(column, console=PlainConsole(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda: progress.advance(task)
