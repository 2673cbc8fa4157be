"""Start of a training process."""

from __future__ import annotations

import os
import sys

# By default glibc returns large tensors to the kernel at every step and page-faults them again.
# Keeping them made one step of a lite network 2.2 times faster on two cores.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def keep_freed_memory() -> None:
    """Restart this command with glibc set to keep freed memory, if it is not yet.

    glibc reads these variables when a process starts, so they cannot be set from within.
    """
    if not sys.platform.startswith("linux") or all(name in os.environ for name in _MALLOC):
        return
    os.environ.update({name: os.environ.get(name, value) for name, value in _MALLOC.items()})
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def is_first_process() -> bool:
    """Return whether this process writes files: a single one, or rank 0."""
    return os.environ.get("RANK", "0") == "0"
