"""How ``mpn run`` shows where it stands: a bar on a terminal, plain lines elsewhere, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from mpn.runtime.request import Progress

_PLAIN_PROGRESS_EVERY_S = 5.0
_SHOWN_PER_S = 10


@contextmanager
def progress_display(quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """What to call with the progress of a run while the ``with`` statement lasts."""
    if quiet:
        yield lambda progress: None
    elif sys.stderr.isatty():
        with _rich_progress() as show:
            yield show
    else:
        yield _plain_progress()


@contextmanager
def _rich_progress() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("frames"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        refresh_per_second=_SHOWN_PER_S,
        transient=True,
    )
    with bar:
        task = bar.add_task("frames", total=None, rate="")
        begun_s = time.monotonic()

        def show(progress: Progress) -> None:
            # The container's count is a guess: a bar never runs over its end.
            total = None if progress.expected is None else max(progress.expected, progress.done)
            rate = progress.computed / max(time.monotonic() - begun_s, 1e-6)
            bar.update(task, completed=progress.done, total=total, rate=f"{rate:.1f} FPS")

        yield show


def _plain_progress() -> Callable[[Progress], None]:
    begun_s = shown_s = time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal shown_s
        now_s = time.monotonic()
        if now_s - shown_s < _PLAIN_PROGRESS_EVERY_S:
            return
        shown_s = now_s
        rate = progress.computed / (now_s - begun_s)
        text = f"frame {progress.done}"
        if progress.expected is not None:
            left = max(progress.expected - progress.done, 0)
            text += f" of {progress.expected}, ETA {left / max(rate, 1e-6):.0f} s"
        typer.echo(f"{text}, {rate:.1f} FPS", err=True)

    return show
