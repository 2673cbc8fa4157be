"""Show the progress of ``mpn run`` on stderr: bars on a terminal, else lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpn.cli.export import plan_text
from mpn.cli.output import echo

if TYPE_CHECKING:
    from mpn.engines.tensorrt.plans.progress import PlanProgress
    from mpn.runtime.finetune.loop import FinetuneProgress
    from mpn.runtime.session.request import Progress

_PLAIN_PROGRESS_EVERY_S = 5.0
_SHOWN_PER_S = 10


@dataclass(frozen=True)
class ProgressDisplay:
    """Callbacks for the progress of a run.

    Attributes:
        frame: Called after each frame.
        finetune: Called after each step of fine-tuning.
        build: Called while a plan is built.
    """

    frame: Callable[[Progress], None]
    finetune: Callable[[FinetuneProgress], None]
    build: Callable[[PlanProgress], None]


@contextmanager
def progress_display(quiet: bool) -> Iterator[ProgressDisplay]:
    """Yield the callbacks for the progress of a run."""
    if quiet:
        yield ProgressDisplay(
            frame=lambda progress: None, finetune=lambda progress: None, build=lambda progress: None
        )
    elif sys.stderr.isatty():
        with _rich_display() as display:
            yield display
    else:
        yield _plain_display()


@dataclass(frozen=True)
class _Shown:
    """Figures of a pass that are shown.

    Attributes:
        name: The pass.
        done: Its finished frames.
        total: Its frames, which may be wrong; None if unknown.
        rate: Frames a second.
        eta: Text of the time left; empty if unknown.
    """

    name: str
    done: int
    total: int | None
    rate: float
    eta: str


class _FrameRate:
    """Frames a second of a pass since its first one, without the work before it."""

    def __init__(self) -> None:
        self._name = ""
        self._begun_s, self._begun_at = 0.0, 0

    def after(self, progress: Progress) -> _Shown:
        name, done, total, computed = "frames", progress.done, progress.expected, progress.computed
        if progress.backward is not None:
            one = progress.backward
            name, done, total = f"backward from frame {one.source}", one.done, one.count
            computed = done
        now_s = time.monotonic()
        if name != self._name:
            self._name, self._begun_s, self._begun_at = name, now_s, computed
        rate = (computed - self._begun_at) / max(now_s - self._begun_s, 1e-6)
        eta = "" if total is None or rate == 0 else f"ETA {max(total - done, 0) / rate:.0f} s"
        return _Shown(name, done, total, rate, eta)


@contextmanager
def _rich_display() -> Iterator[ProgressDisplay]:
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
    from rich.progress import Progress as Bars

    from mpn._common.console import PlainConsole

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[eta]}"),
        console=PlainConsole(stderr=True),
        refresh_per_second=_SHOWN_PER_S,
        transient=True,
    )
    tasks: dict[str, TaskID] = {}
    frame_rate = _FrameRate()

    def show(name: str, done: int, total: int | None, rate: str, eta: str) -> None:
        if name not in tasks:
            tasks[name] = bars.add_task(name, total=total, rate="", eta="")
        bars.update(tasks[name], completed=done, total=total, rate=rate, eta=eta)

    def frame(progress: Progress) -> None:
        shown = frame_rate.after(progress)
        # The container's count is a guess: a bar never runs over its end.
        total = None if shown.total is None else max(shown.total, shown.done)
        show(shown.name, shown.done, total, f"{shown.rate:.1f} FPS", shown.eta)

    def finetune(progress: FinetuneProgress) -> None:
        show(
            _finetune_name(progress),
            progress.step,
            progress.steps,
            f"loss {progress.loss:.3f}",
            f"ETA {progress.eta_s:.0f} s",
        )

    def build(progress: PlanProgress) -> None:
        eta = "" if progress.eta_s is None else f"ETA {progress.eta_s:.0f} s"
        percent = round(100 * progress.fraction)
        show(f"building the plan of {progress.role}", percent, 100, "", eta)

    with bars:
        yield ProgressDisplay(frame, finetune, build)


def _plain_display() -> ProgressDisplay:
    frame_rate = _FrameRate()
    shown_s = time.monotonic()

    def say(text: Callable[[], str]) -> None:
        nonlocal shown_s
        now_s = time.monotonic()
        if now_s - shown_s >= _PLAIN_PROGRESS_EVERY_S:
            shown_s = now_s
            echo(text(), err=True)

    def frame(progress: Progress) -> None:
        shown = frame_rate.after(progress)

        def text() -> str:
            name = "frame" if progress.backward is None else f"{shown.name}:"
            total = "" if shown.total is None else f" of {shown.total}"
            eta = f", {shown.eta}" if shown.eta else ""
            return f"{name} {shown.done}{total}{eta}, {shown.rate:.1f} FPS"

        say(text)

    def finetune(progress: FinetuneProgress) -> None:
        say(
            lambda: (
                f"{_finetune_name(progress)}: step {progress.step} of {progress.steps}, "
                f"ETA {progress.eta_s:.0f} s, loss {progress.loss:.3f}"
            )
        )

    def build(progress: PlanProgress) -> None:
        say(lambda: plan_text(progress))

    return ProgressDisplay(frame, finetune, build)


def _finetune_name(progress: FinetuneProgress) -> str:
    return f"fine-tuning object {progress.object_id} ({progress.role})"
