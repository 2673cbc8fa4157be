"""Write files atomically and compute their SHA-256.

A file is written under a random temporary name in the folder of its target and then renamed, so a
reader finds the old content or the complete new one. With ``durable=True`` the file and its folder
are also flushed to the disk (fsync): a power failure after the return cannot undo the write.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import io
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

from mpn.errors import OutputError

PARTIAL_SUFFIX = ".partial"
"""Suffix of every unfinished file."""

_CHUNK_BYTES = 1 << 20

_TOKEN_BYTES = 8
_NAME_MAX_BYTES = 255
"""Longest file name of common file systems."""

_OLD_SUFFIX = ".old"
_OLD_TOKEN_BYTES = 4

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
"""Constants of renameat2(2)."""

_FLUSH_THREADS = 8
"""Flushes at once: a journalling file system commits them together."""


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
    token = secrets.token_hex(_TOKEN_BYTES)
    temporary = path.with_name(f".{_temporary_stem(path)}.{token}{PARTIAL_SUFFIX}")
    temporary.open("xb").close()  # O_EXCL: never the file of another process, never a link
    return temporary


def _temporary_stem(path: Path) -> str:
    """Return the name of ``path``, short enough for a temporary name."""
    used = len(f"..{PARTIAL_SUFFIX}") + 2 * _TOKEN_BYTES
    # Bytes count, and a name need not be UTF-8. A letter that is cut in half does no harm.
    return os.fsdecode(os.fsencode(path.name)[: _NAME_MAX_BYTES - used])


def open_journal(path: Path, head: bytes = b"") -> BinaryIO:
    """Open the journal of ``path`` unbuffered, in place of an earlier one.

    It is created under a random name and then renamed, so a link with its name is replaced and
    never followed, and the lines of a killed run are not lost before the new journal has them.

    Args:
        path: The final file.
        head: First bytes of the journal.

    Raises:
        OSError: If it cannot be written.
    """
    temporary = create_temporary(path)
    file = temporary.open("r+b", buffering=0)
    try:
        while head:
            head = head[file.write(head) :]
        os.replace(temporary, journal_path(path))
    except BaseException:
        file.close()
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return file


def is_nonempty_file(path: Path) -> bool:
    """Return whether a file exists and has content.

    A power failure can leave a file of 0 bytes, which holds nothing: it counts as absent.
    """
    try:
        return path.is_file() and path.stat().st_size > 0
    except OSError:
        return False


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """List the files of a folder that match a pattern, by name, without hidden files.

    macOS writes ``._NAME`` next to each ``NAME`` on file systems of other systems.

    Args:
        folder: The folder; the list is empty if it does not exist.
        pattern: Pattern of :meth:`pathlib.Path.glob` for the name.
    """
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def remove_temporaries(path: Path, *, with_journal: bool = True) -> None:
    """Remove the unfinished files that killed processes left for ``path``.

    Call it only when no other process writes ``path``.

    Args:
        path: The final file.
        with_journal: Also remove its journal.

    Raises:
        OSError: If one cannot be removed.
    """
    stem = escape(_temporary_stem(path))
    for temporary in path.parent.glob(f".{stem}.{'[0-9a-f]' * 2 * _TOKEN_BYTES}{PARTIAL_SUFFIX}"):
        temporary.unlink(missing_ok=True)
    if with_journal:
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
        flush_folder(path.parent)


def publish_folder(temporary: Path, path: Path) -> Path | None:
    """Give a finished folder its final name, in place of an old folder.

    All content is on the disk before the old folder loses its name. On Linux both names are
    exchanged at once; a kill elsewhere can come between two renames, and the old folder then has
    the name that :func:`restore_folder` reads.

    Args:
        temporary: The folder, next to ``path``.
        path: The final name.

    Returns:
        The old folder under another name, to be removed by the caller; None if there was none.

    Raises:
        OSError: If it cannot be flushed or renamed. The old folder then has its name.
    """
    _flush_content(temporary)
    if not path.exists():
        os.replace(temporary, path)
        flush_folder(path.parent)
        return None
    old = path.with_name(f".{path.name}.{secrets.token_hex(_OLD_TOKEN_BYTES)}{_OLD_SUFFIX}")
    if _exchange(temporary, path):
        os.replace(temporary, old)
    else:
        os.replace(path, old)
        try:
            os.replace(temporary, path)
        except BaseException:
            os.replace(old, path)
            raise
    flush_folder(path.parent)
    return old


def restore_folder(path: Path) -> list[Path]:
    """Rename the folder that a killed :func:`publish_folder` has left unnamed.

    Call it only when no other process publishes ``path``.

    Returns:
        Old folders that were replaced and not removed.

    Raises:
        OSError: If it cannot be renamed.
    """
    name = re.compile(
        re.escape(f".{path.name}.") + f"[0-9a-f]{{{2 * _OLD_TOKEN_BYTES}}}" + re.escape(_OLD_SUFFIX)
    )
    old = [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)]
    old.sort(key=lambda entry: entry.stat().st_mtime)
    if old and not path.exists():
        os.replace(old.pop(), path)
    return old


def _exchange(left: Path, right: Path) -> bool:
    """Exchange two names in one step; return False if the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # only Linux has it
        return False
    at = ctypes.c_int(_AT_FDCWD)
    flags = ctypes.c_uint(_RENAME_EXCHANGE)
    return bool(renameat2(at, os.fsencode(left), at, os.fsencode(right), flags) == 0)


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
    write_text_atomically(path, json_text(value, indent=2) + "\n", durable=durable)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return ``value`` as JSON that UTF-8 can encode.

    A file name need not be UTF-8. Python then has lone surrogates in it; JSON gets them as escapes,
    which Python reads back as the same name.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def check_plain_file(path: Path) -> None:
    """Raise OSError if a path is no plain file, or does not exist.

    Opening a pipe waits for a writer without end, and a device may have no end.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a plain file", str(path))


class SizedFile(io.BufferedReader):
    """A file that gives at most its own bytes.

    Python allocates all bytes of a ``read`` before it reads. Pillow and pickles take the number
    from the file: a PNG of 157 bytes would need an address space of 4 GiB.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._length = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most ``size`` bytes; all that are left if it is negative or None."""
        left = max(self._length - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def read_plain_file(path: Path, most_bytes: int) -> bytes:
    """Read a whole file, see :func:`check_plain_file`.

    Args:
        path: The file.
        most_bytes: Largest size that a valid file of this kind has.

    Raises:
        OSError: If it is no plain file, cannot be read or is larger.
    """
    check_plain_file(path)
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"it has more than {most_bytes} bytes", str(path))
    return content


def first_bytes(path: Path, count: int) -> bytes:
    """Read the first bytes of a plain file; none if it cannot be read."""
    try:
        check_plain_file(path)
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 lower-case hexadecimal digits.

    Raises:
        OSError: If it is no plain file or cannot be read.
    """
    check_plain_file(path)
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def flush_files(paths: Iterable[Path]) -> None:
    """Flush files to the disk, then the folders that hold them.

    Args:
        paths: Existing files. Many at once are faster than one after another.

    Raises:
        OSError: If one cannot be flushed.
    """
    files = list(paths)
    with ThreadPoolExecutor(_FLUSH_THREADS) as pool:
        list(pool.map(_flush_content, files))
    for folder in dict.fromkeys(path.parent for path in files):
        flush_folder(folder)


def _flush_content(path: Path) -> None:
    """Flush a file, or every file and folder below a folder."""
    if path.is_symlink():
        return
    if not path.is_dir():
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return
    for entry in path.iterdir():
        _flush_content(entry)
    flush_folder(path)


def flush_folder(folder: Path) -> None:
    """Flush a folder: its list of names, not the files in it.

    Raises:
        OSError: If it cannot be flushed.
    """
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
