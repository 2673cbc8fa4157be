"""Find the usable cores, and limit libraries that count those of the host.

Imports no other package, so that the limit can be set before the libraries load.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")

_LIBRARY_VARIABLES = (
    "OMP_NUM_THREADS",  # PyTorch
    "OPENBLAS_NUM_THREADS",  # NumPy and SciPy
    "MKL_NUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",
)


def usable_cores() -> int:
    """Return the number of cores that this process may use.

    The smallest of its affinity and the CPU limits of its control groups, as in a container. A
    limit is rounded up: 1.5 cores are 2, and 0.5 are 1.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _cpu_quotas(_CGROUP, Path("/proc/self/cgroup")))]))


def _cpu_quotas(root: Path, membership: Path) -> Iterator[float]:
    """Yield the CPU limits of the control groups of this process, in cores.

    Args:
        root: Mount point of the control groups, version 1 or 2.
        membership: File that lists the groups of the process.
    """
    with suppress(OSError, ValueError):  # another system, or a sandbox
        for line in membership.read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = root if not controllers else root / "cpu"
            group = top / path.lstrip("/")
            # In a container the path may be that of the host: then only the root exists.
            for folder in (group, *group.parents):
                yield from _quota_of(folder)
                if folder == top:
                    break


def _quota_of(folder: Path) -> Iterator[float]:
    with suppress(OSError, ValueError):  # no limit here
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        yield int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota_us = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        if quota_us > 0:
            yield quota_us / int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))


def limited_cores() -> int | None:
    """Return the number of usable cores if the host has more, else None.

    None leaves a library its default, which may be better than the number of cores: one thread per
    physical core in onnxruntime.
    """
    usable = usable_cores()
    return usable if usable < (os.cpu_count() or 1) else None


def limit_library_threads() -> None:
    """Limit the threads of libraries that load later, also in child processes.

    Their defaults follow the cores of the host. Variables that are set stay.
    """
    cores = limited_cores()
    if cores is not None:
        for name in _LIBRARY_VARIABLES:
            os.environ.setdefault(name, str(cores))
