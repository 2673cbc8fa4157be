"""Options about plans in ``mpn export`` and ``mpn run``, and their display."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from mpn.engines.plans.progress import PlanProgress
    from mpn.engines.plans.store import Plan
    from mpn.engines.trt_api import TrtBackend

_BACKENDS = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class PlanArguments:
    """Options about plans as given on the command line."""

    wanted: bool
    plans_for: str | None
    any_gpu: bool
    any_version: bool

    def are_of_a_directory(self, given: Sequence[Path]) -> bool:
        """Return whether an engine directory is given instead of checkpoints."""
        return self.wanted and len(given) == 1 and (given[0] / "manifest.json").is_file()

    def backend(self) -> TrtBackend | None:
        """Return the library to build with; None for the first that can.

        Raises:
            InputError: If it is unknown, or no plans are requested.
        """
        from mpn.engines.trt_api import TRT_BACKENDS
        from mpn.errors import InputError

        if self.plans_for is None and not (self.any_gpu or self.any_version):
            return None
        if not self.wanted:
            raise InputError(
                "no plans are built: leave out --plans-for, or add --build"
                if self.plans_for is not None
                else "no plans are built: leave out --any-gpu and --any-version, or add --build"
            )
        for name in TRT_BACKENDS:
            if self.plans_for == name:
                return name
        if self.plans_for is None:
            return None
        raise InputError(f"plans are built for {' or '.join(_BACKENDS)}, not '{self.plans_for}'")

    def check(self) -> None:
        """Raise an error if the requested plans cannot be built on this machine."""
        backend = self.backend()
        if self.wanted:
            from mpn.engines.build import builder_for

            builder_for(backend)

    def build(self, directory: Path, on_progress: Callable[[PlanProgress], None]) -> Sequence[Plan]:
        """Build the plans of a directory, if requested."""
        if not self.wanted:
            return ()
        from mpn.engines.build import build_plans
        from mpn.engines.plans.options import BuildOptions

        return build_plans(
            directory,
            backend=self.backend(),
            options=BuildOptions(
                hardware_compatible=self.any_gpu, version_compatible=self.any_version
            ),
            on_progress=on_progress,
        )

    def show(self, plans: Sequence[Plan]) -> None:
        """Print one line per built plan."""
        for plan in plans:
            exchange = ", weights can be exchanged" if plan.record.key.options.refittable else ""
            typer.echo(
                f"{plan.note}: {plan.record.nbytes / 1e6:.1f} MB, "
                f"{plan.record.precision.describe()}{exchange}"
            )


def build_alone(directory: Path, plans: PlanArguments, *, quiet: bool) -> None:
    """Build the plans of an existing engine directory; torch is not needed."""
    shown: set[str] = set()

    def on_progress(progress: PlanProgress) -> None:
        text = plan_text(progress)
        if quiet:
            return
        if sys.stderr.isatty():
            typer.echo(f"\r\x1b[K{text}", err=True, nl=False)
        elif progress.role not in shown:
            shown.add(progress.role)
            typer.echo(text, err=True)

    built = plans.build(directory, on_progress)
    if sys.stderr.isatty() and not quiet:
        typer.echo("", err=True)  # end the overwritten line
    plans.show(built)


def plan_text(progress: PlanProgress) -> str:
    """Format the progress of a build on one line."""
    eta = "" if progress.eta_s is None else f", about {progress.eta_s:.0f} s left"
    return f"{progress.role}: building the plan, {100 * progress.fraction:.0f} %{eta}"
