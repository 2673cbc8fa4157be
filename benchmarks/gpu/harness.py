"""Share a guard, timers and sizes between the sections of gpu_check.py."""

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


def features_size_hw(frame_hw: tuple[int, int]) -> tuple[int, int]:
    """Return 0.8 of the frame for the features engine: 385x673 for 480x854."""
    height, width = (32 * max(round(0.8 * side / 32), 1) + 1 for side in frame_hw)
    return height, width


class CannotRunError(Exception):
    """Raised if a section or a part cannot run here; the message is the reason."""


@dataclass(frozen=True)
class Sizes:
    """Hold the sizes of the measurements.

    Attributes:
        frame_hw: Height and width of the frames.
        flow_hw: Input size of the flow network.
        roi: Side of the input of the propagation network.
        objects: Numbers of objects.
        frames: Timed frames per run.
        warmup: Frames before them.
        repeats: Runs of a kernel or a network.
        copy_mib: Size of the copy that measures the memory bandwidth.
        mask_frames: Frames of the mask comparison with the host.
        mask_hw: Height and width of these frames.
        crf_updates: Mean-field updates of the CRF.
        finetune_steps: Steps of fine-tuning.
        is_tiny: Whether the networks have only a few thousand weights.
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
    crf_updates: int = 5
    finetune_steps: int = 500
    is_tiny: bool = False


DRY = Sizes(
    frame_hw=(48, 64),
    flow_hw=(64, 64),
    roi=65,
    objects=(1, 2),
    frames=2,
    warmup=3,
    repeats=1,
    copy_mib=1,
    mask_frames=4,
    mask_hw=(96, 160),
    crf_updates=2,
    finetune_steps=2,
    is_tiny=True,
)
"""Sizes of --dry-run: seconds on a CPU, without meaningful figures."""


@dataclass
class Bench:
    """Hold the devices and engine directories of the sections.

    Attributes:
        sizes: Sizes of the measurements.
        is_dry: Whether the stream is the shim of the tests and torch runs on the CPU.
        stream: Stream of the device; None without a device.
        why_no_stream: Reason why there is none.
        engine_dirs: Engine directories to run; the shipped one is first.
        finetune_dirs: Engine directories for fine-tuning.
        copy_gb_s: Measured bandwidth of a copy, bytes read and written; None if unknown.
    """

    sizes: Sizes
    is_dry: bool
    stream: Stream | None
    why_no_stream: str
    engine_dirs: list[str]
    finetune_dirs: list[str]
    copy_gb_s: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def need_stream(self) -> Stream:
        """Return the stream of the device.

        Raises:
            CannotRunError: If there is none.
        """
        if self.stream is None:
            raise CannotRunError(self.why_no_stream)
        return self.stream

    def need_torch(self) -> Any:
        """Return torch.

        Raises:
            CannotRunError: If torch is not installed or finds no CUDA device.
        """
        try:
            import torch
        except ImportError as error:
            raise CannotRunError(f"PyTorch is not installed ({error})") from error
        if not self.is_dry and not torch.cuda.is_available():
            raise CannotRunError("PyTorch finds no CUDA device")
        return torch

    @property
    def torch_device(self) -> str:
        """Device of torch."""
        return "cpu" if self.is_dry else "cuda"

    def seconds(
        self, work: Callable[[], Any], *, repeats: int, stream: Stream | None = None
    ) -> list[float]:
        """Measure the device time of each run; one more warms up, unless it is dry."""
        stream = stream or self.need_stream()
        if not self.is_dry:
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
        """Measure each repetition in torch with CUDA events, or elapsed time on a CPU."""
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
    """Limit the time of a section, which checks it between its parts.

    Args:
        seconds: Time from now on.
    """

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    @property
    def is_spent(self) -> bool:
        """Whether no further part should start."""
        return time.monotonic() >= self._until


class Runner:
    """Run sections in sequence; a failure is recorded and the next section runs.

    Args:
        bench: Devices and sizes.
        total_s: Time of all sections together.
    """

    def __init__(self, bench: Bench, *, total_s: float) -> None:
        self._bench = bench
        self._until = time.monotonic() + total_s
        self.sections: dict[str, dict[str, Any]] = {}

    def run(self, name: str, section: Section, *, budget_s: float) -> None:
        """Run one section.

        Args:
            name: Key of its result.
            section: Returns its figures.
            budget_s: Time limit; the rest of the total time if that is shorter.
        """
        left = self._until - time.monotonic()
        started = time.perf_counter()
        if left <= 0 and not self._bench.is_dry:
            entry: dict[str, Any] = {"status": "not run", "why": "the total time is spent"}
        else:
            # A dry run runs everything without a limit.
            seconds = math.inf if self._bench.is_dry else min(budget_s, left)
            entry = guarded(lambda: section(self._bench, Budget(seconds)))
        entry["wall_s"] = round(time.perf_counter() - started, 2)
        self.sections[name] = entry
        print(
            f"{name}: {entry['status']} in {entry['wall_s']} s {entry.get('why', '')}", flush=True
        )

    def could_not_run(self) -> list[str]:
        """Return one line for each section and part that did not run."""
        lines = []
        for name, entry in self.sections.items():
            if entry["status"] != "done":
                lines.append(f"{name}: {entry['why']}")
            for part, figures in entry.items():
                if isinstance(figures, dict) and figures.get("status", "done") != "done":
                    lines.append(f"{name}, {part}: {figures['why']}")
        return lines


def guarded(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of a section or part, or the reason why there are none."""
    try:
        return {"status": "done", **work()}
    except (CannotRunError, BackendError, MissingExtraError) as error:
        return {"status": "cannot run", "why": one_line(error)}
    except Exception as error:  # any error: the other sections must run
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
    """Return the first 400 characters of a message in one line."""
    return " ".join(str(error).split())[:400]


def times(seconds: list[float]) -> dict[str, Any]:
    """Return ``n``, ``min_ms``, ``median_ms`` and ``p95_ms``."""
    return dict(summary_ms(seconds))


@contextmanager
def peak_memory(bench: Bench) -> Iterator[dict[str, Any]]:
    """Measure the device memory at the end of the block minus that at its start.

    The driver counts all processes on the device. Memory that is freed in the block is not counted.
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
    except Exception as error:  # one figure less
        print(f"device memory cannot be read: {one_line(error)}", file=sys.stderr)
        return None
    return (int(total) - int(free)) / 2**20 if int(status) == 0 else None
