"""Compare memory limits with a need, and recognise that memory ran out.

Under a limit of the address space (``ulimit -v``) the libraries of this package fail in any way:
with a dozen different exceptions, an exit or a crash inside of OpenBLAS, or without an end (the
import of SciPy 1.16 at 200 MB). The need is therefore compared first, before their import.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mpn.errors import OutOfMemoryError

_MB = 1_000_000
_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")

_M_ARENA_MAX = -8
"""Constant of mallopt(3)."""

_TEXTS = (
    "bad_alloc",  # C++, through onnxruntime and OpenCV
    "can't allocate memory",  # torch
    "cannot allocate",
    "failed to allocate",  # OpenCV
    "failed to map segment",  # the loader of shared libraries
    "insufficient memory",
    "can't start new thread",  # its stack is address space
)
_ERRORS_WITH_TEXT = (ImportError, RuntimeError)
"""Classes of the standard library with no other sign than their text."""


def address_space_limit_mb() -> int | None:
    """Return the limit of ``ulimit -v`` in MB; None if there is none."""
    if sys.platform == "win32":
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit // _MB


def available_memory_mb() -> int | None:
    """Return the memory in MB that this process can still use; None if it is unknown.

    The limit of its control group, as in a container, counts.
    """
    found = [_meminfo_mb(Path("/proc/meminfo")), *_group_memory_mb(_CGROUP, _MEMBERSHIP)]
    known = [value for value in found if value is not None]
    return max(min(known), 0) if known else None


def _meminfo_mb(path: Path) -> int | None:
    with suppress(OSError, ValueError):  # another system
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024 // _MB
    return None


def _group_memory_mb(root: Path, membership: Path) -> Iterator[int]:
    """Yield what the control groups of this process leave to it, version 2 or 1."""
    with suppress(OSError, ValueError):
        for line in membership.read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            top = root if not controllers else root / "memory"
            names = ("memory.max", "memory.current", "inactive_file")
            if controllers:
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):
                with suppress(OSError, ValueError):  # "max": no limit here
                    limit = int((folder / names[0]).read_text(encoding="ascii"))
                    used = int((folder / names[1]).read_text(encoding="ascii"))
                    # Files that are only cached count as used, but are dropped when needed.
                    stat = (folder / "memory.stat").read_text(encoding="ascii").split()
                    cached = dict(zip(stat[::2], stat[1::2], strict=False)).get(names[2], "0")
                    yield (limit - used + int(cached)) // _MB
                if folder == top:
                    break


def save_address_space() -> None:
    """Reserve less address space from now on, if it is limited.

    Each thread of malloc's and of OpenBLAS's reserves 64 MB and 40 MB. Call it before NumPy is
    imported.
    """
    if address_space_limit_mb() is None:
        return
    # The only large product, in the target model, runs on one thread anyway.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    limit_arenas(1)


def limit_arenas(count: int) -> None:
    """Let malloc have this number of arenas, before threads are started.

    It has 8 per core otherwise. Memory that was freed in one is not used by another, so that a
    process that starts many threads grows.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library than glibc
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, count)


def return_freed_memory() -> None:
    """Give memory that was freed back to the system.

    glibc keeps a part of it.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def check_memory(need_mb: int, what: str) -> None:
    """Check that the limit in force is not below a need.

    Args:
        need_mb: Address space in MB.
        what: Subject of the message, for example ``"mpn eval"``.

    Raises:
        OutOfMemoryError: If the limit is lower.
    """
    limit_mb = address_space_limit_mb()
    if limit_mb is not None and limit_mb < need_mb:
        raise OutOfMemoryError(
            f"not enough memory: {what} needs at least {need_mb} MB, but the limit in force "
            f"(ulimit -v) is {limit_mb} MB: raise the limit"
        )


@contextmanager
def memory_errors(what: str, need_mb: int | None = None) -> Iterator[None]:
    """Convert errors of the block that mean that memory ran out.

    Args:
        what: Subject of the message.
        need_mb: Address space that it needs in MB; None if unknown.

    Raises:
        OutOfMemoryError: For MemoryError and all errors that libraries raise instead.
    """
    try:
        yield
    except Exception as error:
        has_message = isinstance(error, OutOfMemoryError) and need_mb is None
        if has_message or not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(out_of_memory_message(what, need_mb)) from error


def out_of_memory_message(what: str, need_mb: int | None = None) -> str:
    """Return the message of an OutOfMemoryError: need and limit in force."""
    limit_mb = address_space_limit_mb()
    if limit_mb is None:
        return (
            f"memory ran out: {what} needs more than there is: close other programs, or use a "
            "machine with more memory"
        )
    need = "more" if need_mb is None or need_mb <= limit_mb else f"about {need_mb} MB"
    return (
        f"memory ran out: the limit in force (ulimit -v) is {limit_mb} MB, and {what} needs {need}"
    )


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one that caused it, means that memory ran out.

    Memory of a GPU is another memory, and has its own errors.
    """
    known: set[int] = set()
    while error is not None and id(error) not in known:
        known.add(id(error))
        if _means_out_of_memory(error):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def _means_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    # The classes of OpenCV and onnxruntime are not imported here.
    library, text = type(error).__module__.split(".")[0], str(error).lower()
    if library == "onnxruntime":  # "Failed to allocate" may be the memory of a GPU
        return "bad_alloc" in text
    return (library == "cv2" or isinstance(error, _ERRORS_WITH_TEXT)) and any(
        known in text for known in _TEXTS
    )
