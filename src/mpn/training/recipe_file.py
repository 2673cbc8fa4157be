"""Recipes as TOML files."""

from __future__ import annotations

import difflib
import os
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mpn._common.text import read_text
from mpn._common.validation import check_number
from mpn.errors import MpnError, TrainingError

_RECIPES = "recipes"

_Recipe = TypeVar("_Recipe")


def shipped_recipes(role: str) -> tuple[str, ...]:
    """List the recipes of a role in the package, for example ``("lite",)``."""
    folder = resources.files("mpn.training").joinpath(_RECIPES)
    names = (entry.name for entry in folder.iterdir())
    ours = (n for n in names if n.startswith(f"{role}-") and n.endswith(".toml"))
    return tuple(sorted(n.removeprefix(f"{role}-").removesuffix(".toml") for n in ours))


def load_table(role: str, *, name: str | None = None, path: Path | None = None) -> dict[str, Any]:
    """Load the table of a shipped recipe or of a file.

    Args:
        role: Network of the recipe, the value of its key ``role``.
        name: One of :func:`shipped_recipes`.
        path: A TOML file instead.

    Returns:
        Its tables, without ``role``; empty if neither is given.

    Raises:
        TrainingError: If both are given, the file cannot be read, or it is for another role.
    """
    if name is not None and path is not None:
        raise TrainingError(
            f"both the shipped recipe '{name}' and the file {path} are given: choose one"
        )
    if name is not None:
        if name not in shipped_recipes(role):
            raise TrainingError(
                f"there is no {role} recipe '{name}': there are "
                f"{', '.join(shipped_recipes(role))}; use --config for your own file"
            )
        file = resources.files("mpn.training").joinpath(_RECIPES, f"{role}-{name}.toml")
        text, where = file.read_text(encoding="utf-8"), f"recipe '{name}'"
    elif path is not None:
        where = str(path)
        try:
            text = read_text(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise TrainingError(f"{path} cannot be read as a recipe: {reason}") from error
    else:
        return {}
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TrainingError(f"{where} is not valid TOML: {error}") from error
    found = table.pop("role", None)
    if found != role:
        raise TrainingError(
            f"{where} is for {found!r}, this command trains {role}: its key role must be '{role}'"
        )
    return table


def overridden(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Replace some values of a table.

    Args:
        table: A table of :func:`load_table`; not changed.
        changes: Values by dotted key, such as ``"training.steps"``; None does not change a key.

    Raises:
        TrainingError: If a parent of a key is no table.
    """
    out: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in table.items()}
    for dotted, value in changes.items():
        if value is None:
            continue
        *parents, last = dotted.split(".")
        place = out
        for parent in parents:
            inner = place.get(parent, {})
            if not isinstance(inner, Mapping):
                raise TrainingError(f"'{dotted}' cannot be set: '{parent}' is no table of options")
            place[parent] = place = dict(inner)
        place[last] = value
    return out


def parsed_settings(settings: list[str]) -> dict[str, Any]:
    """Parse ``KEY=VALUE`` texts to changes for :func:`overridden`.

    Args:
        settings: Values in TOML's notation; a value that is no TOML is a text.

    Raises:
        TrainingError: If one has no ``=``.
    """
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise TrainingError(
                f"'{setting}' sets nothing: write KEY=VALUE, for example training.steps=8000"
            )
        try:
            changes[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            changes[key.strip()] = value.strip()
    return changes


def recipe_from_table(kind: type[_Recipe], table: Mapping[str, Any], where: str = "") -> _Recipe:
    """Build nested dataclasses from a table, with strict keys and types.

    Args:
        kind: A dataclass.
        table: Values by field.
        where: Dotted key of the table, for error messages.

    Raises:
        TrainingError: If a key is unknown or missing, a value has another type, or an option
            refuses its value.
    """
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in table.items():
        dotted = f"{where}.{key}" if where else key
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            meant = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}"
            raise TrainingError(f"unknown option '{dotted}' in the recipe: {meant}")
        values[key] = _converted(hints[key], value, dotted)
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise TrainingError(f"the recipe lacks '{where}.{name}'".replace("'.", "'"))
    try:
        return kind(**values)
    except MpnError as error:
        raise TrainingError(f"{where or 'recipe'}: {error}") from error


def _converted(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        given = next(a for a in arguments if a is not type(None))
        return _converted(given, value, where)
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise TrainingError(f"'{where}' must be a table of options, got {value!r}")
        return recipe_from_table(hint, value, where)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in arguments:
            shown = ", ".join(map(repr, arguments))
            raise TrainingError(f"'{where}' must be one of {shown}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TrainingError(f"'{where}' must be a list, got {value!r}")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise TrainingError(f"'{where}' must have {len(arguments)} values, got {value!r}")
        kinds = arguments if arguments[-1] is not Ellipsis else (arguments[0],) * len(value)
        return tuple(_converted(k, v, where) for k, v in zip(kinds, value, strict=True))
    if hint is Path and isinstance(value, str | Path):
        return Path(os.path.expanduser(value))
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return check_number(f"'{where}'", value, error=TrainingError)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise TrainingError(f"'{where}' must be {_name(hint)}, got {value!r}")
    return value


def _name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(hint, "a path")


def toml_from_recipe(recipe: Any, role: str) -> str:
    """Write a recipe as TOML; options that are None are left out."""
    lines = [f'role = "{role}"']
    _append_table(lines, recipe, "")
    return "\n".join(lines) + "\n"


def _append_table(lines: list[str], options: Any, where: str) -> None:
    inner: list[tuple[str, Any]] = []
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            inner.append((f"{where}.{field.name}".lstrip("."), value))
        elif value is not None:
            lines.append(f"{field.name} = {_toml_value(value)}")
    for dotted, value in inner:
        lines += ["", f"[{dotted}]"]
        _append_table(lines, value, dotted)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, int | float):
        return repr(value)
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
