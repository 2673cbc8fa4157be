"""Lock folders, and remove temporary folders of killed processes.

The kernel releases a lock when its process ends, however it ends. Locks are advisory: only
processes of this package respect them.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from mpn._common.closeable import Closeable
from mpn._common.files import output_errors
from mpn.errors import FolderInUseError

LOCK_NAME = ".mpn-lock"
"""File in a folder that a running process locks; it holds the process id."""

TEMPORARY_PREFIX = "mpn-runtime-"
"""Begin of the name of each folder of this package in the system's temporary folder."""

_PID_BYTES = 32
_TOKEN_BYTES = 8


class FolderLock(Closeable):
    """The right to write results to a folder, until it is closed.

    Args:
        folder: Created if it is missing, and removed again at the end if it is empty.
        lock_file: The file to lock; None for :data:`LOCK_NAME` in the folder.
        subject: The folder for the message; None for ``folder``.

    Raises:
        FolderInUseError: If another process or another lock of this process has the folder.
        OutputError: If the lock cannot be created.
    """

    def __init__(
        self, folder: Path, *, lock_file: Path | None = None, subject: Path | None = None
    ) -> None:
        self._subject = folder if subject is None else subject
        self._path = folder / LOCK_NAME if lock_file is None else lock_file
        self._descriptor: int | None = None
        self._made: list[Path] = []
        with output_errors(folder):
            for path in reversed([folder, *folder.parents]):
                if not path.exists():
                    with suppress(FileExistsError):  # another process was faster
                        path.mkdir()
                        self._made.insert(0, path)
        try:
            self._descriptor = self._locked()
        except BaseException:
            self._remove_folders()
            raise

    def _locked(self) -> int:
        while True:
            with output_errors(self._path):
                # Never through a link: the pid is written into the file.
                flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
                descriptor = os.open(self._path, flags, 0o644)
            try:
                if not try_lock(descriptor):
                    pid = os.pread(descriptor, _PID_BYTES, 0).decode(errors="replace").strip()
                    raise FolderInUseError(
                        f"{self._subject} is in use by another run (process {pid or 'unknown'}): "
                        "wait for its end, or choose another folder with -o"
                    )
                if _is_same_file(descriptor, self._path):
                    with output_errors(self._path):
                        os.ftruncate(descriptor, 0)
                        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # its owner has just removed it

    def close(self) -> None:
        """Release the lock and remove its file. A second call does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        with suppress(OSError):  # still locked, so no other process has it
            self._path.unlink(missing_ok=True)
        os.close(descriptor)
        self._remove_folders()

    def _remove_folders(self) -> None:
        for path in self._made:
            with suppress(OSError):  # not empty
                path.rmdir()


class TemporaryFolder(Closeable):
    """A new folder that only this user can read; close removes it.

    It is locked. Each new folder first removes those with the same prefix whose process was killed,
    so a kill leaves nothing for longer than until the next run.

    Args:
        parent: An existing folder; None for the system's temporary folder.
        prefix: Begin of its name; 16 hexadecimal digits follow.

    Attributes:
        path: The folder.

    Raises:
        OSError: If it cannot be created.
    """

    def __init__(
        self, parent: str | os.PathLike[str] | None = None, *, prefix: str = TEMPORARY_PREFIX
    ) -> None:
        above = Path(tempfile.gettempdir() if parent is None else parent)
        remove_abandoned_folders(above, prefix=prefix)
        while True:
            self.path = above / f"{prefix}{secrets.token_hex(_TOKEN_BYTES)}"
            self.path.mkdir(mode=0o700)
            self._descriptor: int | None = None
            # A process that cleans up may be faster, before the folder is open and before its lock.
            try:
                self._descriptor = _open_folder(self.path)
            except FileNotFoundError:
                continue
            if self._descriptor is None or (
                try_lock(self._descriptor) and _is_same_file(self._descriptor, self.path)
            ):
                return
            os.close(self._descriptor)

    def close(self) -> None:
        """Remove the folder. A second call does nothing."""
        shutil.rmtree(self.path, ignore_errors=True)
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file without waiting.

    Args:
        descriptor: The open file.
        shared: Allow other shared locks of the file.

    Returns:
        False if another open file has the lock. True if the system or the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network file system without locks
        return True
    return True


def is_locked(path: Path) -> bool:
    """Return whether a process has a lock file; False if it cannot be read.

    The file is locked for a moment, together with other calls of this function.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError:
        return False
    try:
        return not try_lock(descriptor, shared=True)
    finally:
        os.close(descriptor)


def _open_folder(path: Path) -> int | None:
    if os.name == "nt":  # a folder cannot be opened there
        return None
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def remove_abandoned_folders(
    parent: str | os.PathLike[str] | None = None, *, prefix: str = TEMPORARY_PREFIX
) -> None:
    """Remove the folders of :class:`TemporaryFolder` whose process was killed."""
    if os.name == "nt":
        return
    above = Path(tempfile.gettempdir() if parent is None else parent)
    own_name = re.compile(re.escape(prefix) + f"[0-9a-f]{{{2 * _TOKEN_BYTES}}}")
    for path in above.iterdir() if above.is_dir() else ():
        if not own_name.fullmatch(path.name):
            continue
        with suppress(OSError):  # it belongs to another user, or is gone
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
            try:
                is_own = os.fstat(descriptor).st_uid == os.geteuid()
                if is_own and try_lock(descriptor):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
