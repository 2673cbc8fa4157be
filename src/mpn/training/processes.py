"""The processes of one training run: one alone, or several under torchrun, each with a GPU.

Every process computes its share of each batch; gradients are averaged by DistributedDataParallel.
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
    """This process among all of a run.

    Attributes:
        rank: Its number.
        count: How many there are.
        device: Where its network is.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files, validates and reports."""
        return self.rank == 0

    def share(self, items: Sequence[_Item]) -> list[_Item]:
        """What of a batch is this process's: every ``count``-th.

        Raises:
            TrainingError: If the batch cannot be shared out evenly.
        """
        if len(items) % self.count:
            raise TrainingError(
                f"a batch of {len(items)} cannot be shared out to {self.count} processes evenly: "
                f"take a multiple of {self.count}"
            )
        return list(items[self.rank :: self.count])

    def parallel(self, network: nn.Module, *, all_used: bool = True) -> nn.Module:
        """The network as its gradients are averaged over the processes; itself if alone.

        Args:
            network: On the device already; process 0's weights become everybody's.
            all_used: Whether every trainable parameter has a gradient in every step.
        """
        if self.count == 1:
            return network
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            network, device_ids=ids, find_unused_parameters=not all_used
        )

    def synchronised_norm(self, network: nn.Module) -> nn.Module:
        """Batch normalisation over all processes' samples, where torch has it: on GPUs.

        On CPUs each process normalises by its own share of the batch.
        """
        if self.count == 1 or self.device.type != "cuda":
            return network
        convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
        return convert(network)

    def agree(self, choice: bool) -> bool:
        """Process 0's choice, known to all."""
        if self.count == 1:
            return choice
        told = torch.tensor([int(choice)], device=self.device)
        dist.broadcast(told, src=0)
        return bool(told.item())

    def gathered(self, item: _Item) -> list[_Item]:
        """Every process's item, by rank; empty but for process 0."""
        if self.count == 1:
            return [item]
        items: list[Any] | None = [None] * self.count if self.is_first else None
        dist.gather_object(item, items, dst=0)
        return items or []

    def mean(self, values: Sequence[float]) -> list[float]:
        """The means of some numbers over all processes."""
        if self.count == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        return [float(v) / self.count for v in summed.cpu()]

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            self.mean([0.0])


@contextmanager
def joined_processes(device: str) -> Iterator[Processes]:
    """This process's place in the run, from the environment that torchrun sets.

    Args:
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Raises:
        TrainingError: If a GPU is asked for and there is none for this process.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and gpus <= local:
        raise TrainingError(
            f"a GPU was asked for, but process {rank} finds {gpus} of them: train with "
            "--device cpu, or start at most one process a GPU"
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


# glibc hands large tensors back to the kernel at every step and faults them in again; keeping them
# made one step of a lite network 2.2 times faster on two cores.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def keep_freed_memory() -> None:
    """Start this very command again with glibc told to keep freed memory, if it is not yet.

    glibc reads these variables when a process starts, so they cannot be set from within.
    """
    if not sys.platform.startswith("linux") or all(name in os.environ for name in _MALLOC):
        return
    os.environ.update({name: os.environ.get(name, value) for name, value in _MALLOC.items()})
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def is_first_process() -> bool:
    """Whether this process writes and reports: alone, or number 0 of those torchrun started."""
    return os.environ.get("RANK", "0") == "0"
