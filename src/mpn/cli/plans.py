"""``--build`` of ``mpn export`` and of ``mpn run``: what is typed, and how building is shown."""

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
    """The options about plans as they were typed."""

    wanted: bool
    plans_for: str | None
    any_gpu: bool
    any_version: bool

    def are_of_a_directory(self, given: Sequence[Path]) -> bool:
        """Whether an engine directory was given instead of checkpoints, to build its plans."""
        return self.wanted and len(given) == 1 and (given[0] / "manifest.json").is_file()

    def backend(self) -> TrtBackend | None:
        """Which library; None for the first that can build.

        Raises:
            InputError: If it is none, or nothing is to be built.
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
        """Raise an error if what is wanted cannot be built here."""
        backend = self.backend()
        if self.wanted:
            from mpn.engines.build import builder_for

            builder_for(backend)

    def build(self, directory: Path, on_progress: Callable[[PlanProgress], None]) -> Sequence[Plan]:
        """Build the plans of a directory, if that is wanted."""
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
        """Print what was built, a line a plan."""
        for plan in plans:
            exchange = ", weights can be exchanged" if plan.record.key.options.refittable else ""
            typer.echo(
                f"{plan.note}: {plan.record.nbytes / 1e6:.1f} MB, "
                f"{plan.record.precision.describe()}{exchange}"
            )


def build_alone(directory: Path, plans: PlanArguments, *, quiet: bool) -> None:
    """Build the plans of a directory that was exported earlier: no torch is needed."""
    said: set[str] = set()

    def on_progress(progress: PlanProgress) -> None:
        text = plan_text(progress)
        if quiet:
            return
        if sys.stderr.isatty():
            typer.echo(f"\r\x1b[K{text}", err=True, nl=False)
        elif progress.role not in said:
            said.add(progress.role)
            typer.echo(text, err=True)

    built = plans.build(directory, on_progress)
    if sys.stderr.isatty() and not quiet:
        typer.echo("", err=True)  # behind the line that was written over
    plans.show(built)


def plan_text(progress: PlanProgress) -> str:
    """How far a build is, on one line."""
    eta = "" if progress.eta_s is None else f", about {progress.eta_s:.0f} s left"
    return f"{progress.role}: building the plan, {100 * progress.fraction:.0f} %{eta}"
