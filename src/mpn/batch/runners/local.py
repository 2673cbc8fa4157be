"""Run units in processes of this machine."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from mpn._common.cores import usable_cores
from mpn._common.memory import available_memory_mb
from mpn.batch.outcome import Settings, UnitOutcome
from mpn.batch.runner import Attempt, Feed, OnProgress, UnitProgress, lost_outcome
from mpn.batch.runners.process import WorkerProcess, error_of_event
from mpn.cuda.device import gpu_count
from mpn.engines.open import HOST_BACKENDS
from mpn.errors import EngineError, MpnWarning

_STOP_S = 30.0
"""Longest wait for workers that stop: they finish the files of the frames that are done."""
_POLL_S = 0.5
"""A wait without a timeout cannot be interrupted by Ctrl-C on Windows."""
_MOST_EARLY_ENDS = 3
"""Times that each worker may end before its first frame, without an outcome in between."""
WORKER_MB = 900
"""Memory of a worker at 480p with a few objects."""


class LocalRunner:
    """Run attempts in child processes, one attempt at a time in each.

    Args:
        settings: Settings of the batch; its threads are those of one worker.
        workers: Number of processes, at least 1.
        gpus: Values of CUDA_VISIBLE_DEVICES, one per worker; None leaves it alone.
    """

    def __init__(
        self, settings: Settings, workers: int, *, gpus: Sequence[str] | None = None
    ) -> None:
        self._settings = settings
        self._gpus = gpus
        self._slots = [_Slot(index) for index in range(workers)]
        self._events: queue.Queue[tuple[_Slot, WorkerProcess, dict[str, Any] | None]] = (
            queue.Queue()
        )
        self._early_ends = 0

    @property
    def workers(self) -> int:
        """See :attr:`mpn.batch.runner.Runner.workers`."""
        return len(self._slots)

    def run(self, feed: Feed, on_progress: OnProgress) -> Generator[UnitOutcome, None, None]:
        """See :meth:`mpn.batch.runner.Runner.run`."""
        try:
            while self._fill(feed):
                try:
                    slot, worker, event = self._events.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
                if slot.worker is not worker:  # the end of a worker that was replaced
                    continue
                outcome = self._handle(slot, worker, event, on_progress)
                if outcome is not None:
                    yield outcome
        finally:
            self._stop()

    def _fill(self, feed: Feed) -> bool:
        """Start an attempt in each free slot; return whether one runs."""
        for slot in self._slots:
            if slot.attempt is None:
                attempt = feed.take()
                if attempt is None:
                    break
                slot.attempt, slot.started_s = attempt, time.perf_counter()
                if slot.worker is None:
                    slot.worker = self._started(slot)
                slot.worker.send({"unit": attempt.unit.as_json(), "number": attempt.number})
        return any(slot.attempt is not None for slot in self._slots)

    def _started(self, slot: _Slot) -> WorkerProcess:
        environment = dict(os.environ)
        if self._gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot.index]
        worker = WorkerProcess(environment)
        worker.send({"settings": self._settings.as_json(), "worker": slot.name})
        thread = threading.Thread(target=self._read, args=(slot, worker), daemon=True)
        thread.start()
        return worker

    def _read(self, slot: _Slot, worker: WorkerProcess) -> None:
        """Queue the events of a worker, and None at its end."""
        with suppress(OSError, ValueError):
            for line in worker.stdout:
                self._events.put((slot, worker, json.loads(line)))
        self._events.put((slot, worker, None))

    def _handle(
        self,
        slot: _Slot,
        worker: WorkerProcess,
        event: dict[str, Any] | None,
        on_progress: OnProgress,
    ) -> UnitOutcome | None:
        attempt = slot.attempt
        if event is None:
            slot.worker = slot.attempt = None
            reason = worker.end()
            return None if attempt is None else self._lost(slot, attempt, reason)
        kind = event["type"]
        if kind == "fatal":
            raise error_of_event(event)
        if kind == "progress" and attempt is not None:
            self._early_ends = 0
            on_progress(
                UnitProgress(attempt.unit.name, slot.name, event["done"], event["expected"])
            )
        if kind == "outcome":
            slot.attempt = None
            self._early_ends = 0
            return UnitOutcome.from_json(event["outcome"])
        return None

    def _lost(self, slot: _Slot, attempt: Attempt, reason: str) -> UnitOutcome:
        # A long video may need more memory than there is, and the others less.
        self._early_ends += not reason.startswith("SIGKILL")
        if self._early_ends >= _MOST_EARLY_ENDS * self.workers:
            raise EngineError(f"the worker processes end before they complete a video: {reason}")
        wall_s = time.perf_counter() - slot.started_s
        return lost_outcome(attempt, reason, worker=slot.name, wall_s=wall_s)

    def _stop(self) -> None:
        """Stop all workers as Ctrl-C does, and kill those that do not end."""
        workers = [slot.worker for slot in self._slots if slot.worker is not None]
        for slot in self._slots:
            slot.worker = slot.attempt = None
        try:
            for worker in workers:
                worker.close_input()
            until_s = time.monotonic() + _STOP_S
            for worker in workers:
                worker.wait(max(until_s - time.monotonic(), 0.0))
        finally:  # also after a second Ctrl-C
            for worker in workers:
                worker.end()


class _Slot:
    """Place of one worker: the process in it may be replaced."""

    def __init__(self, index: int) -> None:
        self.index, self.name = index, f"worker-{index + 1}"
        self.worker: WorkerProcess | None = None
        self.attempt: Attempt | None = None
        self.started_s = 0.0


def local_runner(settings: Settings, videos: int, *, workers: int | None = None) -> LocalRunner:
    """Return a runner with as many workers as this machine can run at once.

    Args:
        settings: Settings of the batch. If its threads are None, each worker gets its share of the
            usable cores.
        videos: Number of videos: more workers would do nothing.
        workers: Number of workers; None for as many as fit cores and memory, or one per GPU.
    """
    cores = usable_cores()
    gpus = None if settings.backend in HOST_BACKENDS else visible_gpus()
    if workers is None:
        memory_mb = available_memory_mb()
        fitting = cores if memory_mb is None else memory_mb // WORKER_MB
        workers = len(gpus) if gpus else min(max(1, cores // (settings.threads or 1)), fitting)
    workers = max(1, min(workers, videos))
    share = max(1, cores // workers)
    threads = settings.threads or share
    if threads > share:
        warnings.warn(
            f"{workers} x {threads} threads (workers x threads) are more than the {cores} cores "
            f"that this process may use: each worker uses {share}",
            MpnWarning,
            stacklevel=2,
        )
        threads = share
    of_worker = [gpus[index % len(gpus)] for index in range(workers)] if gpus else None
    return LocalRunner(replace(settings, threads=threads), workers, gpus=of_worker)


def visible_gpus() -> list[str]:
    """Return a value of CUDA_VISIBLE_DEVICES for each GPU that this process may use."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [each.strip() for each in given.split(",") if each.strip() not in ("", "-1")]
    return [str(index) for index in range(gpu_count())]
