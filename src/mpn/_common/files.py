"""Writing files so that nothing half-written ever stands under a final name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mpn.errors import OutputError

PARTIAL_SUFFIX = ".partial"


def partial_path(path: Path) -> Path:
    """Where the file is written before it is renamed: beside it, so that renaming is atomic."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of what happens inside into an OutputError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error


def output_error(path: Path, error: OSError) -> OutputError:
    """The one line for a file or folder that cannot be written."""
    reason = error.strerror or str(error)
    return OutputError(f"cannot write {path}: {reason}")


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a file that gets its name only when it is whole.

    Raises:
        OutputError: If it cannot be written; nothing is left behind then.
    """
    partial = partial_path(path)
    with output_errors(path):
        try:
            with partial.open("wb") as file:
                write(file)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def save_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
