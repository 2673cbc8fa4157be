"""Processes of one training run: a single one, or one per GPU under torchrun.

Every process computes its share of each batch; DistributedDataParallel averages the gradients.
Process 0 writes files, validates and reports.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from mpn.errors import TrainingError

_Item = TypeVar("_Item")
_LONGEST_WAIT = datetime.timedelta(hours=2)
"""The others wait while process 0 validates."""


@dataclass(frozen=True)
class Processes:
    """Rank and device of this process in a run.

    Attributes:
        rank: Index of this process.
        count: Number of processes.
        device: Device of its network.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this process writes files, validates and reports."""
        return self.rank == 0

    def share(self, items: Sequence[_Item]) -> list[_Item]:
        """Return this process's part of a batch: every ``count``-th item.

        Raises:
            TrainingError: If the batch cannot be divided evenly.
        """
        if len(items) % self.count:
            raise TrainingError(
                f"a batch of {len(items)} cannot be divided evenly among {self.count} processes: "
                f"take a multiple of {self.count}"
            )
        return list(items[self.rank :: self.count])

    def parallel(self, network: nn.Module, *, all_used: bool = True) -> nn.Module:
        """Wrap a network so that its gradients are averaged over the processes.

        A single process gets the network itself.

        Args:
            network: On its device already; all processes start from the weights of process 0.
            all_used: Whether every trainable parameter has a gradient in every step.
        """
        if self.count == 1:
            return network
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            network, device_ids=ids, find_unused_parameters=not all_used
        )

    def synchronised_norm(self, network: nn.Module) -> nn.Module:
        """Synchronise batch normalisation over all processes, on GPUs.

        On CPUs torch has no such layer, and each process normalises by its own share of the batch.
        """
        if self.count == 1 or self.device.type != "cuda":
            return network
        convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
        return convert(network)

    def agree(self, choice: bool) -> bool:
        """Return process 0's choice in every process."""
        if self.count == 1:
            return choice
        shared = torch.tensor([int(choice)], device=self.device)
        dist.broadcast(shared, src=0)
        return bool(shared.item())

    def gathered(self, item: _Item) -> list[_Item]:
        """Gather every process's item in process 0, by rank; empty in the others."""
        if self.count == 1:
            return [item]
        items: list[Any] | None = [None] * self.count if self.is_first else None
        dist.gather_object(item, items, dst=0)
        return items or []

    def mean(self, values: Sequence[float]) -> list[float]:
        """Average numbers over all processes."""
        if self.count == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        return [float(v) / self.count for v in summed.cpu()]

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.count > 1:
            self.mean([0.0])


@contextmanager
def joined_processes(device: str) -> Iterator[Processes]:
    """Join the process group that torchrun's environment describes.

    Args:
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Raises:
        TrainingError: If a GPU is requested and there is none for this process.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and gpus <= local:
        raise TrainingError(
            f"a GPU is required, but process {rank} finds {gpus} of them: train with "
            "--device cpu, or start at most one process per GPU"
        )
    on_gpu = device == "cuda" or (device == "auto" and gpus > local)
    place = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(place)
    if count == 1:
        yield Processes(device=place)
        return
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=_LONGEST_WAIT)
    try:
        yield Processes(rank, count, place)
    finally:
        dist.destroy_process_group()


# By default glibc returns large tensors to the kernel at every step and page-faults them again.
# Keeping them made one step of a lite network 2.2 times faster on two cores.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}

# The data threads solve classifiers of the target model. OpenBLAS's own threads wait actively: on
# two busy cores they made a solve 90 times slower (2.7 s instead of 30 ms).
_BLAS = {"OPENBLAS_NUM_THREADS": "1"}


def keep_freed_memory() -> None:
    """Restart this command with glibc set to keep freed memory, if it is not yet.

    The restarted command has one BLAS thread, too, unless the environment has another number. Both
    libraries read their variables when a process starts, so they cannot be set from within.
    """
    if not sys.platform.startswith("linux") or all(name in os.environ for name in _MALLOC):
        return
    os.environ.update(_MALLOC | _BLAS | os.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def is_first_process() -> bool:
    """Return whether this process writes files: a single one, or rank 0."""
    return os.environ.get("RANK", "0") == "0"
