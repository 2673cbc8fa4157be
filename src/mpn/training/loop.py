"""The loop around every trainer: log, validate, save, resume."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

import cv2
import torch

from mpn._common.files import output_errors, remove_temporaries
from mpn.errors import TrainingError
from mpn.networks.torch_file import write_torch_file
from mpn.training.log import RunLog
from mpn.training.loop_options import LoopOptions
from mpn.training.processes import Processes

STATE_FILE = "last.pth"


class Report(Protocol):
    """What is logged and shown; a dataclass of numbers and texts."""

    @property
    def step(self) -> int:
        """Steps done."""


_Report = TypeVar("_Report", bound=Report)
_Report_co = TypeVar("_Report_co", bound=Report, covariant=True)


class Trainee(Protocol[_Report_co]):
    """A trainer as the loop sees it."""

    step: int

    def train_step(self, pool: ThreadPoolExecutor) -> None:
        """One batch: forward, backward, update, average."""

    def take_report(self, scores: Mapping[str, float]) -> _Report_co:
        """The means since the last report, with what was just measured; all processes call it."""

    def state(self) -> dict[str, Any]:
        """Primitives and tensors; all processes call it, process 0's counts."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state`."""


def saved_state(out: Path, *, resume: bool) -> dict[str, Any] | None:
    """The state of the run in a folder; None where there is none yet.

    Raises:
        TrainingError: If there is one that is not to be resumed, or it cannot be read.
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
    """Refuse a state that another network, or another kind of run, has left.

    Args:
        state: What was saved.
        schema: Of the states that this trainer writes.
        network: The network's options, a dataclass.

    Raises:
        TrainingError: If they differ.
    """
    wanted = asdict(network)
    if state.get("schema") != schema or state["network"] != wanted:
        raise TrainingError(
            f"the run to resume has network {state.get('network')}, asked for {wanted}"
        )


def run_loop(
    trainer: Trainee[_Report],
    options: LoopOptions,
    steps: int,
    out: Path,
    *,
    processes: Processes,
    validate: Callable[[], Mapping[str, float]],
    report: Callable[[_Report], None],
) -> None:
    """Train to ``steps``, leaving ``last.pth`` and ``log.csv`` in ``out``.

    Args:
        trainer: Restored already where a run goes on.
        options: When to log, validate and save.
        steps: Steps altogether.
        out: Folder of the run.
        processes: Process 0 logs, validates and saves.
        validate: Scores of the averaged weights by name.
        report: Called with every line of the log.
    """
    cv2.setNumThreads(1)  # the data have threads of their own; OpenCV's would fight with torch's
    if processes.is_first:
        out.mkdir(parents=True, exist_ok=True)
        with output_errors(out):
            remove_temporaries(out / STATE_FILE)
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
                    write_torch_file(out / STATE_FILE, dict(state))
                saved_at = time.monotonic()
