"""Write files atomically and compute their SHA-256.

A file is written under a random temporary name in the folder of its target and then renamed, so a
reader finds the old content or the complete new one. With ``durable=True`` the file and its folder
are also flushed to the disk (fsync): a power failure after the return cannot undo the write.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

from mpn.errors import OutputError

PARTIAL_SUFFIX = ".partial"
"""Suffix of every unfinished file."""

_CHUNK_BYTES = 1 << 20


def output_error(path: Path, error: OSError) -> OutputError:
    """Return the one-line error for a file or folder that cannot be written."""
    return OutputError(f"cannot write {path}: {error.strerror or error}")


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Convert an OSError of the block into an OutputError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error


def journal_path(path: Path) -> Path:
    """Return the fixed name of an unfinished file that a resumed run reads."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


def create_temporary(path: Path) -> Path:
    """Create an empty file with a random name in the folder of ``path``.

    The umask decides its permissions, unlike those of :mod:`tempfile`: the file becomes ``path``.

    Returns:
        Its path. Pass it to :func:`publish`, or unlink it.

    Raises:
        OSError: If it cannot be created.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL_SUFFIX}")
    temporary.open("xb").close()  # O_EXCL: never the file of another process
    return temporary


def remove_temporaries(path: Path) -> None:
    """Remove the unfinished files that killed processes left for ``path``.

    Call it only when no other process writes ``path``.

    Raises:
        OSError: If one cannot be removed.
    """
    for temporary in path.parent.glob(f".{escape(path.name)}.*{PARTIAL_SUFFIX}"):
        temporary.unlink(missing_ok=True)
    journal_path(path).unlink(missing_ok=True)


def publish(temporary: Path, path: Path, *, durable: bool = False) -> None:
    """Rename a finished file or folder to its final name.

    Args:
        temporary: A file, or a folder if ``path`` does not exist; in the same folder as ``path``.
        path: The final name. An existing file is replaced.
        durable: Flush the content before and the folder after the rename.

    Raises:
        OSError: If it cannot be flushed or renamed.
    """
    if durable:
        _flush_content(temporary)
    os.replace(temporary, path)
    if durable:
        _flush_folder(path.parent)


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary file that replaces ``path`` if the block succeeds.

    Args:
        path: The file to write. Its folder must exist.
        durable: Flush file and folder to the disk.

    Yields:
        The path of an empty file to fill, by name.

    Raises:
        OutputError: If an OSError occurs, also in the block. The temporary file is removed after
            every exception, KeyboardInterrupt included.
    """
    with output_errors(path):
        temporary = create_temporary(path)
        try:
            yield temporary
            publish(temporary, path, durable=durable)
        except BaseException:
            with suppress(OSError):  # the first error is the one to report
                temporary.unlink(missing_ok=True)
            raise


def write_atomically(
    path: Path, write: Callable[[BinaryIO], object], *, durable: bool = False
) -> None:
    """Replace ``path`` by the file that ``write`` fills.

    Args:
        path: The file. Its folder must exist.
        write: Called once with the open file.
        durable: Flush file and folder to the disk.

    Raises:
        OutputError: If it cannot be written. The old content is then unchanged.
    """
    with replacing(path, durable=durable) as temporary, temporary.open("r+b") as file:
        write(file)


def write_bytes_atomically(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Replace ``path`` by ``data``; see :func:`write_atomically`."""
    write_atomically(path, lambda file: file.write(data), durable=durable)


def write_text_atomically(path: Path, text: str, *, durable: bool = False) -> None:
    """Replace ``path`` by ``text`` in UTF-8; see :func:`write_atomically`."""
    write_bytes_atomically(path, text.encode(), durable=durable)


def save_json(path: Path, value: Any, *, durable: bool = False) -> None:
    """Replace ``path`` by ``value`` as indented JSON; see :func:`write_atomically`."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_text_atomically(path, text, durable=durable)


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 lower-case hexadecimal digits.

    Raises:
        OSError: If it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _flush_content(path: Path) -> None:
    """Flush a file, or every file and folder below a folder."""
    if path.is_symlink():
        return
    if not path.is_dir():
        with path.open("r+b") as file:
            os.fsync(file.fileno())
        return
    for entry in path.iterdir():
        _flush_content(entry)
    _flush_folder(path)


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # a folder cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)
