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

from mpn.errors import OutOfMemoryError

_MB = 1_000_000

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


def save_address_space() -> None:
    """Reserve less address space from now on, if it is limited.

    Each thread of malloc's and of OpenBLAS's reserves 64 MB and 40 MB. Call it before NumPy is
    imported.
    """
    if address_space_limit_mb() is None:
        return
    # The only large product, in the target model, runs on one thread anyway.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with suppress(AttributeError, OSError, TypeError):  # another C library than glibc
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


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
