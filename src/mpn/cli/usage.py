"""Format a usage error as one line: option, allowed values, given value."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import typer

from mpn._common.memory import check_memory
from mpn.errors import InputError

UsageError: type[typer.BadParameter] = typer.BadParameter.__mro__[1]
"""Click's class of all usage errors; newer versions of Typer bundle Click, older ones import it."""

EPILOG = "Add --debug to any command to see the traceback of an error."
"""Last line of every help text."""

_ALLOWED = (
    (r"greater than or equal to (\S+)", "at least {}"),
    (r"less than or equal to (\S+)", "at most {}"),
    (r"in the range x>=([^<\s]+?)\.?$", "at least {}"),
    (r"valid integer", "a whole number"),
    (r"valid (?:number|float)", "a number"),
    (r"not one of (.+?)\.?$", "one of {}"),
)
"""Pattern of a library's message -> what is allowed."""

_TORCH_NEED_MB = 1300
_NEED_MB = {
    "run": 900,
    "batch": 480,
    "demo": 900,
    "bench": 900,
    "studio": 900,
    "inspect": 580,
    "evaluate": 330,
    "convert": 480,
    "review": 480,
}
"""Address space of a command with the smallest input; with less, an import may crash."""

_FLAGS = {"finetune.seed": "--seed", "finetune.cache_dir": "--finetune-cache"}
"""Option of the runtime -> option of the command line, if the names differ."""


def usage_message(error: Any, arguments: Sequence[str]) -> str:
    """Format a usage error of Click without its box.

    Args:
        error: The error.
        arguments: The whole command line, which holds the given value.
    """
    names = getattr(getattr(error, "param", None), "opts", ())
    flags = [name for name in names if name.startswith("-")]
    if not flags or not error.message:
        text = str(error.message or error.format_message()).rstrip(".")
        if text.startswith("No such"):
            text += "; --help lists what there is"
        # Click begins its own sentences with a capital letter, this package with the subject.
        return re.sub(r"^(?:No|Option|Missing|Got)\b", lambda match: match[0].lower(), text)
    message = error.message.removeprefix("Value error, ").rstrip(".")
    value = _value_of(flags, arguments)
    given = "" if value is None else f", got '{value}'"
    for pattern, allowed in _ALLOWED:
        if match := re.search(pattern, error.message):
            return f"{flags[0]} must be {allowed.format(*match.groups())}{given}"
    return f"{flags[0]}: {message}{given}"


def with_home(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that checks folder and memory, with ``~`` in its paths.

    A shell replaces ``~`` at the start of a word, but not in ``--out=~/results``. Typer from 0.29
    on returns 130 for each KeyboardInterrupt, without its signal: it becomes an Abort before.
    """
    need_mb = _NEED_MB.get(command.__name__, _TORCH_NEED_MB)

    def expanded(value: Any) -> Any:
        if isinstance(value, Path):
            return Path(os.path.expanduser(value))
        return [expanded(each) for each in value] if isinstance(value, list) else value

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        _check_current_folder()
        check_memory(need_mb, "this command")
        try:
            command(*map(expanded, args), **{name: expanded(kwargs[name]) for name in kwargs})
        except KeyboardInterrupt as stop:
            raise typer.Abort from stop

    return run


def _check_current_folder() -> None:
    """Raise InputError if the current folder was deleted.

    Without one, absolute paths work, but not all libraries (torch ends the process).
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise InputError(
            "the current folder was deleted: change to another folder, and run again"
        ) from error


@contextmanager
def option_errors() -> Iterator[None]:
    """Raise an InputError about an option of the runtime as a usage error."""
    try:
        yield
    except InputError as error:
        raise typer.BadParameter(
            re.sub(r"^option ([\w.]+)", lambda match: _flag(match[1]), str(error))
        ) from error


def _flag(name: str) -> str:
    return _FLAGS.get(name, "--" + re.sub(r"[._]", "-", name))


def _value_of(flags: Sequence[str], arguments: Sequence[str]) -> str | None:
    """Return the last value that a command line gives to an option."""
    value = None
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        name, has_value, joined = argument.partition("=")
        if name in flags:
            value = joined if has_value else following
    return value
