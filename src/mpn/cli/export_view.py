"""Display of ``mpn export``: its steps, and the table at the end."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from mpn._common.closeable import Closeable
from mpn._common.console import PlainConsole
from mpn.cli.export import plan_text
from mpn.engines.directory.entries import ENGINE_SOURCE
from mpn.engines.spec import Role
from mpn.engines.tensorrt.plans.progress import PlanProgress
from mpn.export.options import ExportOptions
from mpn.export.progress import Progress, Step

if TYPE_CHECKING:  # they import torch, which int8 engines do not need
    from mpn.export.bundle import ExportedBundle
    from mpn.export.summary import RoleSummary

_DOING: dict[Step, str] = {
    "load": "loading weights",
    "prepare": "folding and casting",
    "trace": "tracing",
    "write": "writing",
    "verify": "comparing with PyTorch",
    "adapt": "deriving the fine-tuning step",
}
_DONE: dict[Step, str] = {
    "load": "weights loaded",
    "prepare": "folded and cast",
    "trace": "traced",
    "write": "written",
    "verify": "verified",
    "adapt": "step derived",
}
_MIB = 1 << 20


class ExportView(Progress, Closeable):
    """Display of each step on stderr: a spinner on a terminal, one line per step.

    Args:
        quiet: Show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = PlainConsole(stderr=True, quiet=quiet, highlight=False)
        self._live = Live(console=self._console, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.quiet:
            self._live.start()
        return self

    def close(self) -> None:
        """Remove the spinner; closing twice is allowed."""
        self._live.stop()

    def reading(self, path: Path) -> None:
        """Show that a checkpoint is being read."""
        self._show(f"reading {path.name}")

    def started(self, role: Role, step: Step) -> None:
        """Show the start of a step."""
        self._show(f"{role}: {_DOING[step]}")

    def finished(self, role: Role, step: Step, elapsed_s: float) -> None:
        """Show the successful end of a step."""
        self._console.print(Text(f"{role:12} {_DONE[step]:16} {elapsed_s:7.1f} s"))

    def reused(self, role: Role) -> None:
        """Show that a role of an interrupted export is used."""
        self._console.print(Text(f"{role:12} finished by an interrupted export, kept"))

    def plan(self, progress: PlanProgress) -> None:
        """Show the progress of a plan build."""
        self._show(plan_text(progress))

    def _show(self, text: str) -> None:
        self._live.update(Spinner("dots", Text(text)))


def print_bundle(bundle: ExportedBundle, options: ExportOptions) -> None:
    """Print the exported engines and their parity."""
    console = PlainConsole(highlight=False)
    # Two lines per role, to fit a terminal of 80 columns.
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("role\nnetwork", overflow="fold")
    for heading in ("params", "nodes", "MiB", "half\nweights", "secs"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("largest\ndifference", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for summary in bundle.roles:
        table.add_row(*(Text(cell) for cell in _cells(summary)))
    console.print(table)
    flow = bundle.manifest.flow
    if flow.source != ENGINE_SOURCE:
        console.print(
            f"flow: OpenCV DIS ({flow.preset}, scale {flow.scale:g}), since no flow network was "
            "exported"
        )
    steps = [
        f"{role} by {entry.adapt.optimizer}"
        for role, entry in bundle.manifest.roles.items()
        if entry.adapt is not None
    ]
    none = "none (--no-finetune)" if options.finetune is False else "none"
    console.print(f"fine-tuning on the given frame: {', '.join(steps) or none}")
    if options.verify:
        console.print(
            "verified: names, axes, shapes and values of every graph; see parity.json",
        )
    else:
        console.print("not verified: --no-verify was given")
    console.print(
        Text(f"{options.precision} engines in {bundle.directory} after {bundle.elapsed_s:.1f} s")
    )


def command_text() -> str:
    """Return this process's command line, with file names instead of paths."""
    program, *words = sys.argv
    name = "mpn" if Path(program).name == "__main__.py" else program
    return shlex.join(_without_folders(word) for word in (name, *words))


def _without_folders(word: str) -> str:
    option, equals, value = word.partition("=")
    if equals and option.startswith("-"):
        return f"{option}={_without_folders(value)}"
    return Path(word).name if "/" in word or "\\" in word else word


def _cells(summary: RoleSummary) -> tuple[str, ...]:
    verdict = "skipped" if summary.verify_s is None else "ok"
    return (
        f"{summary.role}\n{summary.variant}",
        _count(summary.parameters),
        str(summary.nodes),
        f"{summary.size_bytes / _MIB:.1f}",
        f"{summary.half_weights}/{summary.total_weights}",
        f"{summary.export_s:.1f}",
        (summary.largest_difference or "unknown").replace(" ", "\n"),
        f"{verdict}\nkept" if summary.reused else verdict,
    )


def _count(values: int) -> str:
    return f"{values / 1e6:.2f} M" if values >= 1e5 else str(values)
