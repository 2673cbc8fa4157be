"""Common part of the ``mpn train`` commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

DEFAULT_RECIPE = "lite"
"""Recipe without ``--recipe`` and ``--config``."""


def launch() -> None:
    """Check that torch is installed, and restart with freed memory kept."""
    from mpn.errors import import_or_explain

    import_or_explain("torch", extra="export", purpose="mpn train")
    from mpn.training import launch as launching

    launching.keep_freed_memory()


def build_recipe(
    kind: Any,
    role: str,
    name: str | None,
    path: Path | None,
    settings: list[str] | None,
    changes: Mapping[str, Any],
) -> Any:
    """Build the recipe of a command line.

    A file or a shipped recipe is overridden by ``--set``, and then by the other options.
    """
    from mpn.training.recipe_file import (
        load_table,
        overridden,
        parsed_settings,
        recipe_from_table,
    )

    if name is None and path is None:
        name = DEFAULT_RECIPE
    table = overridden(load_table(role, name=name, path=path), parsed_settings(settings or []))
    plain = {k: str(v) if isinstance(v, StrEnum) else v for k, v in changes.items()}
    return recipe_from_table(kind, overridden(table, plain))


def run_with_progress(run: Callable[..., Path], recipe: Any, out: Path, *, resume: bool) -> Path:
    """Train by a function such as ``run_flow_recipe`` with a progress display.

    Returns:
        The checkpoint.
    """
    from mpn.training.progress import TrainingProgress

    with TrainingProgress() as progress:
        return run(recipe, out, resume=resume, notice=print_change, report=progress.report)


def print_next(checkpoint: Path, command: str) -> None:
    """Print the path of the weights and the command for the next step.

    Only the first process prints.
    """
    from mpn.training.launch import is_first_process

    if not is_first_process():
        return
    typer.echo(f"averaged weights: {checkpoint}")
    typer.echo(f"next: {command}")


def print_change(change: str) -> None:
    """Print an option that a resumed run changes."""
    typer.echo(f"changed since the run began: {change}")
