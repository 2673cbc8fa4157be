"""Training loop of every trainer: log, validate, save, resume."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import cv2
import torch
from torch import Tensor, nn

from mpn._common.closeable import Closeable
from mpn._common.files import (
    is_nonempty_file,
    output_errors,
    remove_temporaries,
    write_text_atomically,
)
from mpn.errors import CheckpointError, TrainingError, import_or_explain
from mpn.networks.checkpoint import read_torch_file, write_torch_file
from mpn.training.optimisation import AveragedWeights, MixedPrecision
from mpn.training.options import LoopOptions
from mpn.training.processes import Processes, joined_processes

LOG_FILE = "log.csv"
_DIGITS = {"loss": ".5f", "learning_rate": ".3g"}


class RunLog(Closeable):
    """CSV log of reports, one column per field, after the step and the seconds.

    Args:
        out: Folder of the run; exists if the log is enabled.
        from_step: Step to resume from. Lines of later steps were written after the last saved state
            by a process that was then killed. They are dropped, because these steps run again.
        tensorboard: Also write event files to ``out/tensorboard``.
        enabled: False writes nothing: there is one log for several processes.

    Raises:
        MissingExtraError: If TensorBoard is requested and not installed.
    """

    def __init__(self, out: Path, *, from_step: int, tensorboard: bool, enabled: bool) -> None:
        self._path, self._enabled = out / LOG_FILE, enabled
        self._board: Any = None
        self._seconds_before = 0.0
        self._start = time.monotonic()
        if not enabled:
            return
        if tensorboard:
            module = import_or_explain(
                "torch.utils.tensorboard", extra="tensorboard", purpose="--tensorboard"
            )
            self._board = module.SummaryWriter(str(out / "tensorboard"), purge_step=from_step + 1)
        text = io.StringIO(newline="")
        csv.writer(text).writerows(self._kept_lines(from_step))
        write_text_atomically(self._path, text.getvalue())  # a full disk leaves the old log

    def _kept_lines(self, from_step: int) -> list[list[str]]:
        if not from_step or not self._path.is_file():
            return []
        with output_errors(self._path), self._path.open(newline="", encoding="utf-8") as file:
            header, *lines = list(csv.reader(file)) or [[]]
        # A line that a full disk cut off is dropped.
        kept = [
            line
            for line in lines
            if len(line) == len(header) and line[0].isdecimal() and int(line[0]) <= from_step
        ]
        if kept:
            self._seconds_before = float(kept[-1][1])
        return [header, *kept] if header else []

    def write(self, entry: Any) -> None:
        """Append one line: a dataclass with a field ``step``; None is an empty cell."""
        if not self._enabled:
            return
        values = {f.name: getattr(entry, f.name) for f in fields(entry)}
        step = values.pop("step")
        values.pop("steps", None)
        seconds = self._seconds_before + time.monotonic() - self._start
        with output_errors(self._path):
            fresh = self._path.stat().st_size == 0
            with self._path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                if fresh:
                    writer.writerow(["step", "seconds", *values])
                writer.writerow(
                    [step, f"{seconds:.1f}", *(_cell(name, v) for name, v in values.items())]
                )
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close TensorBoard's files; closing twice is allowed."""
        board, self._board = self._board, None
        if board is not None:
            board.close()


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    return format(value, _DIGITS.get(name, ".4f")) if isinstance(value, float) else str(value)


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
    if not is_nonempty_file(path):
        return None
    if not resume:
        raise TrainingError(f"{out} already holds a training run: add --resume, or choose another")
    try:
        state = read_torch_file(path)  # checks the checksums, which torch.load does not do
    except CheckpointError as error:
        raise TrainingError(f"the run cannot be resumed: {error}") from error
    if not isinstance(state, dict) or not {"step", "model"} <= set(state):
        raise TrainingError(f"{path} is not the state of a run: it holds no step and no model")
    return state


class ResumableTrainer:
    """Base of trainers that saves and restores their common parts.

    See :class:`TrainerProtocol`.

    Attributes:
        schema: Of the states that it writes.
        step: Steps done.
        network: The network in training.
        optimiser: Its optimiser.
        average: Its averaged weights.
        precision: Autocast and loss scale.
        options: The options of the run, with ``network``.
    """

    schema: ClassVar[int]
    step: int
    network: nn.Module
    optimiser: torch.optim.Optimizer
    average: AveragedWeights
    precision: MixedPrecision
    options: Any

    def state(self) -> dict[str, Any]:
        """Return primitives and tensors, loadable with ``weights_only=True``."""
        return {
            "schema": self.schema,
            "network": asdict(self.options.network),
            "step": self.step,
            "model": self.network.state_dict(),
            "averaged": self.average.state,
            "optimiser": self.optimiser.state_dict(),
            "scale": self.precision.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state of :meth:`state`.

        Raises:
            TrainingError: If the state belongs to another network, or to another kind of run.
        """
        expected = asdict(self.options.network)
        if state.get("schema") != self.schema or state["network"] != expected:
            raise TrainingError(
                f"the run to resume has network {state.get('network')}, not {expected}"
            )
        self.step = int(state["step"])
        self.network.load_state_dict(state["model"])
        self.average.restore(state["averaged"])
        try:
            self.optimiser.load_state_dict(state["optimiser"])
        except ValueError as error:
            raise TrainingError(
                "the run to resume has other groups of parameters: resume it with the same "
                f"options of the optimiser ({error})"
            ) from error
        self.precision.restore(state.get("scale", {}))

    def check_finite(self, loss: Tensor) -> None:
        """Raise TrainingError unless the loss of this step is finite."""
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {float(loss.detach())} at step {self.step}: the last state saved is "
                f"kept in {STATE_FILE}; resume with a lower learning rate"
            )


@contextmanager
def seeded_processes(options: LoopOptions) -> Iterator[Processes]:
    """Join the processes of a run and set the threads and the seed of torch in each."""
    with joined_processes(options.device) as processes:
        torch.set_num_threads(options.threads)
        torch.manual_seed(options.seed + processes.rank)
        yield processes


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
