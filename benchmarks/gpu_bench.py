"""What the sections of gpu_check.py share: a guard, a clock, and the sizes of what they try."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mpn.cuda.api import Stream
from mpn.errors import BackendError, MissingExtraError
from mpn.runtime.bench.result import summary_ms

PAPER_HW, PAPER_FLOW_HW, PAPER_ROI = (480, 854), (512, 896), 513


class CannotRunError(Exception):
    """A section, or a part of it, has nothing to run on here; the message says why."""


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
        frame_hw: Of the frames.
        flow_hw: Of the flow network.
        roi: Side of the propagation network's input.
        objects: Numbers of objects.
        frames: Timed frames a run.
        warmup: Frames before them.
        repeats: Of a kernel or a network.
        copy_mib: Of the copy that the memory bandwidth is measured with.
        mask_frames: Frames of the comparison with the host's masks.
        mask_hw: Their size.
        adapt_steps: Of fine-tuning.
        is_tiny: Networks of a few thousand weights.
    """

    frame_hw: tuple[int, int] = PAPER_HW
    flow_hw: tuple[int, int] = PAPER_FLOW_HW
    roi: int = PAPER_ROI
    objects: tuple[int, ...] = (1, 2, 3, 5)
    frames: int = 40
    warmup: int = 6
    repeats: int = 20
    copy_mib: int = 2048
    mask_frames: int = 30
    mask_hw: tuple[int, int] = (240, 432)
    adapt_steps: int = 500
    is_tiny: bool = False


DRY = Sizes(
    frame_hw=(48, 64),
    flow_hw=(64, 64),
    roi=65,
    objects=(1, 2),
    frames=2,
    warmup=3,
    repeats=2,
    copy_mib=1,
    mask_frames=4,
    mask_hw=(96, 160),
    adapt_steps=2,
    is_tiny=True,
)
"""For --dry-run: seconds on a CPU, and no figure that means anything."""


@dataclass
class Bench:
    """Where the sections run.

    Attributes:
        sizes: How much is done.
        is_dry: The stream is the tests' shim, and torch runs on the CPU.
        stream: Of the device; None where there is none.
        why_no_stream: Why.
        engine_dirs: Engine directories to run, the one that ships first.
        adapt_dirs: Those to fine-tune with.
        copy_gb_s: Measured bandwidth of a copy, bytes read and written; None before.
    """

    sizes: Sizes
    is_dry: bool
    stream: Stream | None
    why_no_stream: str
    engine_dirs: list[str]
    adapt_dirs: list[str]
    copy_gb_s: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def need_stream(self) -> Stream:
        """The stream.

        Raises:
            CannotRunError: If there is none.
        """
        if self.stream is None:
            raise CannotRunError(self.why_no_stream)
        return self.stream

    def need_torch(self) -> Any:
        """torch, with a device that it sees.

        Raises:
            CannotRunError: If it is not installed, or sees no device.
        """
        try:
            import torch
        except ImportError as error:
            raise CannotRunError(f"PyTorch is not installed ({error})") from error
        if not self.is_dry and not torch.cuda.is_available():
            raise CannotRunError("PyTorch sees no CUDA device")
        return torch

    @property
    def torch_device(self) -> str:
        """Where torch works."""
        return "cpu" if self.is_dry else "cuda"

    def seconds(
        self, work: Callable[[], Any], *, repeats: int, stream: Stream | None = None
    ) -> list[float]:
        """Device time of each repetition, after one that does not count."""
        stream = stream or self.need_stream()
        work()
        taken = []
        for _ in range(repeats):
            start = stream.record(timing=True)
            work()
            end = stream.record(timing=True)
            end.sync()
            taken.append(end.elapsed_s(start))
        return taken

    def torch_seconds(self, work: Callable[[], Any], *, repeats: int) -> list[float]:
        """Time of each repetition of torch's work, by its events; by the clock on a CPU."""
        torch = self.need_torch()
        for _ in range(3 if not self.is_dry else 1):
            work()
        taken = []
        for _ in range(repeats):
            if self.is_dry:
                before = time.perf_counter()
                work()
                taken.append(time.perf_counter() - before)
                continue
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            taken.append(start.elapsed_time(end) / 1e3)
        return taken


Section = Callable[[Bench, "Budget"], dict[str, Any]]


class Budget:
    """How long a section may take; it looks at this between its parts.

    Args:
        seconds: From now on.
    """

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    @property
    def is_spent(self) -> bool:
        """Whether no further part should begin."""
        return time.monotonic() >= self._until


class Runner:
    """Runs sections one after the other; what fails is recorded, and the rest goes on.

    Args:
        bench: Where.
        total_s: All sections together.
    """

    def __init__(self, bench: Bench, *, total_s: float) -> None:
        self._bench = bench
        self._until = time.monotonic() + total_s
        self.sections: dict[str, dict[str, Any]] = {}

    def run(self, name: str, section: Section, *, budget_s: float) -> None:
        """Run one.

        Args:
            name: Key of its result.
            section: Gives its figures.
            budget_s: At most; less if less is left of the whole.
        """
        left = self._until - time.monotonic()
        started = time.perf_counter()
        if left <= 0 and not self._bench.is_dry:
            entry: dict[str, Any] = {"status": "not run", "why": "the time for all was spent"}
        else:
            # A dry run shows that all of it runs, however long that takes here.
            seconds = math.inf if self._bench.is_dry else min(budget_s, left)
            entry = guarded(lambda: section(self._bench, Budget(seconds)))
        entry["wall_s"] = round(time.perf_counter() - started, 2)
        self.sections[name] = entry
        print(
            f"{name}: {entry['status']} in {entry['wall_s']} s {entry.get('why', '')}", flush=True
        )

    def could_not_run(self) -> list[str]:
        """A line for everything that did not run, in whole or in part."""
        lines = []
        for name, entry in self.sections.items():
            if entry["status"] != "done":
                lines.append(f"{name}: {entry['why']}")
            for part, figures in entry.items():
                if isinstance(figures, dict) and figures.get("status", "done") != "done":
                    lines.append(f"{name}, {part}: {figures['why']}")
        return lines


def guarded(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures of a section or a part of it, or why there are none."""
    try:
        return {"status": "done", **work()}
    except (CannotRunError, BackendError, MissingExtraError) as error:
        return {"status": "cannot run", "why": one_line(error)}
    except Exception as error:  # whatever it is, the other sections must run
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = (
            ""
            if where is None
            else f" ({where.tb_frame.f_code.co_filename.rpartition('/')[2]}:{where.tb_lineno})"
        )
        return {"status": "failed", "why": f"{type(error).__name__}: {one_line(error)}{place}"}


def one_line(error: BaseException) -> str:
    """The first 400 characters of a message, in one line."""
    return " ".join(str(error).split())[:400]


def times(seconds: list[float]) -> dict[str, Any]:
    """``n``, ``min_ms``, ``median_ms`` and ``p95_ms``."""
    return dict(summary_ms(seconds))


@contextmanager
def peak_memory(bench: Bench) -> Iterator[dict[str, Any]]:
    """How much device memory is taken at the end of what happens inside, more than at its start.

    The driver's count, of all processes on the device; memory that is given back inside is missed.
    """
    figures: dict[str, Any] = {}
    before = _used_mib(bench)
    yield figures
    after = _used_mib(bench)
    figures["memory_mib"] = None if before is None or after is None else round(after - before, 1)


def _used_mib(bench: Bench) -> float | None:
    if bench.is_dry or bench.stream is None:
        return None
    try:
        from cuda.bindings import driver

        status, free, total = driver.cuMemGetInfo()
    except Exception as error:  # a figure less, and the rest goes on
        print(f"device memory cannot be read: {one_line(error)}", file=sys.stderr)
        return None
    return (int(total) - int(free)) / 2**20 if int(status) == 0 else None
