"""Training loop of every trainer: log, validate, save, resume."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

import cv2
import torch

from mpn.errors import TrainingError
from mpn.training.log import RunLog
from mpn.training.loop_options import LoopOptions
from mpn.training.processes import Processes

STATE_FILE = "last.pth"


class Report(Protocol):
    """Report that is logged and shown: a dataclass of numbers and texts."""

    @property
    def step(self) -> int:
        """Steps done."""


_Report = TypeVar("_Report", bound=Report)
_Report_co = TypeVar("_Report_co", bound=Report, covariant=True)


class TrainerProtocol(Protocol[_Report_co]):
    """Trainer as the loop uses it."""

    step: int

    def train_step(self, pool: ThreadPoolExecutor) -> None:
        """Train on one batch: forward, backward, update, average."""

    def take_report(self, scores: Mapping[str, float]) -> _Report_co:
        """Return the means since the last report, with the given scores.

        All processes call it.
        """

    def state(self) -> dict[str, Any]:
        """Return primitives and tensors.

        All processes call it; the state of process 0 is the complete one.
        """

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state of :meth:`state`."""


def saved_state(out: Path, *, resume: bool) -> dict[str, Any] | None:
    """Load the state of the run in a folder; None if there is none yet.

    Raises:
        TrainingError: If there is a state but ``resume`` is False, or it cannot be read.
    """
    path = out / STATE_FILE
    if not path.is_file():
        return None
    if not resume:
        raise TrainingError(f"{out} already holds a training run: add --resume, or choose another")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(f"{path} cannot be read as the state of a run: {reason}") from error
    return state


def check_same_network(state: Mapping[str, Any], schema: int, network: Any) -> None:
    """Refuse a state of another network or another kind of run.

    Args:
        state: The saved state.
        schema: Schema version of this trainer's states.
        network: The network's options, a dataclass.

    Raises:
        TrainingError: If they differ.
    """
    expected = asdict(network)
    if state.get("schema") != schema or state["network"] != expected:
        raise TrainingError(f"the run to resume has network {state.get('network')}, not {expected}")


def run_loop(
    trainer: TrainerProtocol[_Report],
    options: LoopOptions,
    steps: int,
    out: Path,
    *,
    processes: Processes,
    validate: Callable[[], Mapping[str, float]],
    report: Callable[[_Report], None],
) -> None:
    """Train to ``steps``, writing ``last.pth`` and ``log.csv`` to ``out``.

    Args:
        trainer: Already restored if a run is resumed.
        options: When to log, validate and save.
        steps: Number of optimisation steps in all.
        out: Folder of the run.
        processes: Process 0 logs, validates and saves.
        validate: Computes scores of the averaged weights by name.
        report: Called with every line of the log.
    """
    cv2.setNumThreads(1)  # data have their own threads; OpenCV's would compete with torch's
    if processes.is_first:
        out.mkdir(parents=True, exist_ok=True)
    with (
        RunLog(
            out,
            from_step=trainer.step,
            tensorboard=options.tensorboard,
            enabled=processes.is_first,
        ) as log,
        ThreadPoolExecutor(options.workers) as pool,
    ):
        saved_at = time.monotonic()
        while trainer.step < steps:
            trainer.train_step(pool)
            done = trainer.step == steps
            validated = done or trainer.step % options.validate_every == 0
            if validated or trainer.step % options.log_every == 0:
                scores: Mapping[str, float] = {}
                if validated:
                    scores = validate() if processes.is_first else {}
                    processes.wait()
                entry = trainer.take_report(scores)
                if processes.is_first:
                    log.write(entry)
                    report(entry)
            overdue = time.monotonic() - saved_at > options.save_every_s
            if done or processes.agree(overdue):
                state = trainer.state()
                if processes.is_first:
                    save_state(state, out / STATE_FILE)
                saved_at = time.monotonic()


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a state atomically: a killed process leaves the previous one."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as stream:
        torch.save(dict(state), stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)
