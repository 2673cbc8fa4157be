"""Run units in actors of a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from os import path
from typing import Any, Protocol

from mpn import __version__
from mpn._common.storage import is_remote
from mpn.batch.manifest import Unit
from mpn.batch.outcome import Settings, UnitOutcome
from mpn.batch.runner import Attempt, Feed, OnProgress, UnitProgress, lost_outcome
from mpn.batch.runners.local import WORKER_MB
from mpn.batch.runners.process import error_of_event
from mpn.batch.runners.ray_cluster import Resources
from mpn.engines.open import HOST_BACKENDS
from mpn.errors import EngineError, InputError

_POLL_S = 0.5
"""Longest wait that a stop signal cannot interrupt."""
_STOP_S = 30.0
"""Longest wait for workers that stop: they finish the files of the frames that are done."""
_MOST_FAILED_STARTS = 3
"""Actors that may fail one after the other before they can run anything."""
_NO_ROOM_S = 300.0
"""Longest wait without any worker; a cluster may add a node in this time."""


class Cluster(Protocol):
    """Calls of ``ray_cluster.RayCluster`` that the runner makes."""

    def has_gpus(self) -> bool:
        """Return whether a node has a GPU."""

    def capacity(self, need: Resources) -> int:
        """Return how many workers fit on the nodes."""

    def start(self, settings: dict[str, Any], name: str, need: Resources) -> Any:
        """Start an actor."""

    def call(self, actor: Any, method: str, *arguments: Any) -> Future[Any]:
        """Call a method of an actor, and return its result to come."""

    def lost_reason(self, error: BaseException) -> str | None:
        """Return one line if an error means that the actor ended; otherwise None."""

    def kill(self, actor: Any) -> None:
        """End an actor at once."""


class RayRunner:
    """Run attempts in actors, one attempt at a time in each.

    Only units, settings, progress and outcomes cross the network. Paths must exist on each node;
    those of a unit are made absolute.

    Args:
        cluster: The cluster.
        settings: Settings of the batch; its threads are those of one worker.
        need: Resources of one worker.
        workers: Number of actors, at least 1.
    """

    def __init__(
        self, cluster: Cluster, settings: Settings, workers: int, *, need: Resources
    ) -> None:
        self._cluster, self._need = cluster, need
        self._settings = settings.as_json()
        self._slots = [_Slot(index) for index in range(workers)]
        self._failed_starts = 0

    @property
    def workers(self) -> int:
        """See :attr:`mpn.batch.runner.Runner.workers`."""
        return len(self._slots)

    def run(self, feed: Feed, on_progress: OnProgress) -> Generator[UnitOutcome, None, None]:
        """See :meth:`mpn.batch.runner.Runner.run`."""
        held: Attempt | None = None
        worked_s = time.monotonic()
        try:
            while True:
                held = held or feed.take()
                idle = next((slot for slot in self._slots if slot.is_idle), None)
                if held is not None and idle is not None:
                    self._give(idle, held)
                    held = None
                    continue
                is_running = any(slot.attempt is not None for slot in self._slots)
                if held is not None:
                    self._start_missing()
                elif not is_running:
                    return
                if is_running:
                    worked_s = time.monotonic()
                elif time.monotonic() - worked_s > _NO_ROOM_S:
                    raise EngineError(
                        f"no node of the Ray cluster had {self._need} free for a worker in "
                        f"{_NO_ROOM_S:g} s: run the batch again when there is one"
                    )
                yield from self._outcomes(on_progress)
        finally:
            self._stop()

    def _give(self, slot: _Slot, attempt: Attempt) -> None:
        slot.attempt, slot.started_s = attempt, time.perf_counter()
        value = {"unit": _absolute(attempt.unit).as_json(), "number": attempt.number}
        slot.call = self._cluster.call(slot.actor, "run", value)
        slot.progress = self._cluster.call(slot.actor, "progress")

    def _start_missing(self) -> None:
        for slot in self._slots:
            if slot.actor is None:
                slot.actor = self._cluster.start(self._settings, slot.place, self._need)
                slot.call = self._cluster.call(slot.actor, "describe")

    def _outcomes(self, on_progress: OnProgress) -> Iterator[UnitOutcome]:
        """Wait for results of calls, and yield the outcomes among them."""
        calls = [call for slot in self._slots for call in (slot.call, slot.progress) if call]
        wait(calls, _POLL_S, FIRST_COMPLETED)
        for slot in self._slots:
            if slot.progress is not None and slot.progress.done():
                self._report(slot, on_progress)
            if slot.call is not None and slot.call.done():
                outcome = self._handle(slot)
                if outcome is not None:
                    yield outcome

    def _report(self, slot: _Slot, on_progress: OnProgress) -> None:
        call, slot.progress = slot.progress, None
        if call is None or call.exception() is not None:  # that of the attempt has the reason
            return
        if slot.attempt is None:
            return
        if event := call.result():
            name = slot.attempt.unit.name
            on_progress(UnitProgress(name, slot.name, event["done"], event["expected"]))
        slot.progress = self._cluster.call(slot.actor, "progress")

    def _handle(self, slot: _Slot) -> UnitOutcome | None:
        """Use the result of the call that a slot waits for."""
        attempt, call = slot.attempt, slot.call
        slot.attempt = slot.call = None
        assert call is not None
        if (error := call.exception()) is not None:
            reason = self._cluster.lost_reason(error)
            if reason is None:
                raise error
            self._cluster.kill(slot.actor)
            slot.actor = slot.progress = None
            if attempt is not None:
                return _lost(slot, attempt, reason)
            self._count_failed_start(reason)
            return None
        event = call.result()
        if attempt is None:
            slot.name = event["name"]
            self._check_version(event)
            return None
        self._failed_starts = 0
        if event["type"] == "outcome":
            return UnitOutcome.from_json(event["outcome"])
        if event["type"] == "fatal":
            fatal = error_of_event(event)
            raise type(fatal)(f"{slot.name}: {fatal}")
        return _lost(slot, attempt, event.get("reason", "it was stopped"))

    def _count_failed_start(self, reason: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= _MOST_FAILED_STARTS * self.workers:
            raise EngineError(f"no worker starts on the Ray cluster: {reason}")

    def _check_version(self, event: dict[str, Any]) -> None:
        if event["version"] != __version__:
            raise InputError(
                f"node {event['host']} has mpn-runtime {event['version']}, this machine has "
                f"{__version__}: install the same version"
            )

    def _stop(self) -> None:
        """Stop all workers as Ctrl-C does, and end those that need longer."""
        running = [slot for slot in self._slots if slot.attempt is not None]
        try:
            for slot in running:
                self._cluster.call(slot.actor, "stop")
            wait([slot.call for slot in running if slot.call is not None], _STOP_S)
        finally:  # also after a second Ctrl-C
            for slot in self._slots:
                if slot.actor is not None:
                    self._cluster.kill(slot.actor)
                slot.actor = slot.attempt = slot.call = slot.progress = None


def ray_runner(
    cluster: Cluster, settings: Settings, videos: int, *, workers: int | None = None
) -> RayRunner:
    """Return a runner with as many workers as the cluster can run at once.

    A worker reserves its threads as CPU cores, 1 unless the settings have more, and its memory;
    with a backend that may use a GPU, on a cluster that has GPUs, one GPU too.

    Args:
        cluster: The cluster.
        settings: Settings of the batch.
        videos: Number of videos: more workers would do nothing.
        workers: Number of workers. None: as many as the nodes have room for now.

    Raises:
        InputError: If ``workers`` is None and no node has room for one.
    """
    gpus = int(settings.backend not in ("auto", *HOST_BACKENDS))
    if settings.backend == "auto" and cluster.has_gpus():
        gpus = 1
    threads = settings.threads or 1
    need = Resources(cpus=threads, gpus=gpus, memory_bytes=WORKER_MB * 1_000_000)
    if workers is None:
        workers = cluster.capacity(need)
        if workers < 1:
            raise InputError(
                f"no node of the Ray cluster has {need}, as a worker needs: add a node, give "
                "fewer --threads, or give --workers to wait for a node"
            )
    workers = max(1, min(workers, videos))
    engine_dir = settings.engine_dir and _full(settings.engine_dir)
    settings = replace(settings, threads=threads, engine_dir=engine_dir)
    return RayRunner(cluster, settings, workers, need=need)


class _Slot:
    """Place of one actor, which may be replaced."""

    def __init__(self, index: int) -> None:
        self.place = f"worker-{index + 1}"
        self.name = self.place  # with its node when the actor runs
        self.actor: Any = None
        self.attempt: Attempt | None = None
        self.started_s = 0.0
        self.call: Future[Any] | None = None
        self.progress: Future[Any] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether its actor runs on a node, and has nothing to do."""
        return self.actor is not None and self.attempt is None and self.call is None


def _lost(slot: _Slot, attempt: Attempt, reason: str) -> UnitOutcome:
    wall_s = time.perf_counter() - slot.started_s
    return lost_outcome(attempt, reason, worker=slot.name, wall_s=wall_s)


def _absolute(unit: Unit) -> Unit:
    """Return a unit whose paths do not depend on the current folder."""
    cache = unit.options.finetune_cache
    return replace(
        unit,
        video=_full(unit.video),
        masks={index: _full(text) for index, text in unit.masks.items()},
        out=_full(unit.out),
        options=unit.options
        if cache is None
        else replace(unit.options, finetune_cache=_full(cache)),
    )


def _full(text: str) -> str:
    return text if is_remote(text) else path.abspath(path.expanduser(text))
