"""Files of a run's folder: the recipe as used, and the checkpoint."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from mpn import __version__
from mpn._common.files import output_errors, write_text_atomically
from mpn.engines.spec import Role
from mpn.errors import TrainingError
from mpn.networks.checkpoint import save_checkpoint
from mpn.training.launch import is_first_process
from mpn.training.recipe_file import toml_from_recipe

RECIPE_FILE = "recipe.toml"
_OF_THE_MACHINE = frozenset(
    f"training.{name}"
    for name in ("threads", "workers", "device", "save_every_s", "log_every", "tensorboard")
)
"""Options that do not change the weights, or only their last digits."""


def keep_recipe(recipe: Any, role: str, out: Path, *, resume: bool) -> tuple[str, ...]:
    """Write ``out/recipe.toml``, which ``--config`` accepts.

    Args:
        recipe: The recipe with all its options.
        role: Network it trains.
        out: Folder of the run; created if missing.
        resume: Whether the folder may already hold a run.

    Returns:
        Differences from the previous recipe, as ``"training.steps: 6 -> 12"``, without options of
        the machine.

    Raises:
        TrainingError: If the folder holds a run and ``resume`` is not given.
        OutputError: If it cannot be written.
    """
    path = out / RECIPE_FILE
    if (out / "last.pth").exists() and not resume:
        raise TrainingError(f"{out} already holds a training run: add --resume, or choose another")
    text = toml_from_recipe(recipe, role)
    before = _flat(tomllib.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    now = _flat(tomllib.loads(text))
    with output_errors(path):
        out.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, text, durable=True)
    if not before:
        return ()
    keys = sorted((before.keys() | now.keys()) - _OF_THE_MACHINE)
    return tuple(
        f"{key}: {before.get(key, 'unset')} -> {now.get(key, 'unset')}"
        for key in keys
        if before.get(key) != now.get(key)
    )


def open_run(
    recipe: Any, role: str, out: Path, *, resume: bool, notice: Callable[[str], None]
) -> None:
    """Call :func:`keep_recipe` in the first process and report each change."""
    if is_first_process():
        for change in keep_recipe(recipe, role, out, resume=resume):
            notice(change)


def write_checkpoint(
    network: nn.Module, recipe: Any, role: Role, out: Path, data: Mapping[str, Any]
) -> Path:
    """Write ``out/<role>.pth`` with its provenance in the first process.

    Args:
        network: Network with the weights to write.
        recipe: The recipe.
        role: Role of the network.
        out: Folder of the run.
        data: Description of the training data.

    Returns:
        Path of the checkpoint, in every process.
    """
    path = out / f"{role}.pth"
    if is_first_process():
        save_checkpoint(path, {role: network}, provenance=provenance(recipe, data))
    return path


def provenance(recipe: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the origin of a checkpoint as JSON types, without paths.

    Args:
        recipe: The recipe.
        data: Description of the training data.
    """
    return {
        "tool": f"mpn-runtime {__version__}",
        "recipe": _without_paths(asdict(recipe)),
        "data": dict(data),
    }


def _flat(table: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in table.items():
        dotted = f"{where}{key}"
        out |= _flat(value, f"{dotted}.") if isinstance(value, Mapping) else {dotted: value}
    return out


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_paths(v) for k, v in value.items() if not isinstance(v, Path)}
    if isinstance(value, list | tuple):
        return [_without_paths(v) for v in value if not isinstance(v, Path)]
    return value
