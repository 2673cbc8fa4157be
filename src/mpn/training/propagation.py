"""Train the propagation network on rollouts of itself.

Resumable (``last.pth`` holds weights, optimiser and the state of every rollout), seeded, logged to
``log.csv``; the checkpoint to export is ``propagation.pth``, with the averaged weights.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor

from mpn.errors import TrainingError
from mpn.networks.deeplab_xception import DeepLabXception
from mpn.training.clips import Material
from mpn.training.datasets import DavisSequence
from mpn.training.options import PropagationTrainingOptions as PropagationTrainingOptions
from mpn.training.options import TrainingReport as TrainingReport
from mpn.training.trainer import Trainer
from mpn.training.validation import mean_j

_LOG_EVERY_STEPS = 50
_SAVE_EVERY_S = 120.0


def train_propagation(
    sequences: Sequence[DavisSequence],
    material: Material,
    out: Path,
    options: PropagationTrainingOptions,
    *,
    start_from: Mapping[str, Tensor] | None = None,
    resume: bool = False,
    report: Callable[[TrainingReport], None] = lambda _: None,
) -> dict[str, Tensor]:
    """Train, and leave ``last.pth``, ``log.csv`` and the averaged weights in ``out``.

    Args:
        sequences: All sequences; those named in ``options.holdout`` only validate.
        material: What clips are drawn from, without the held-out sequences.
        out: Folder of the run.
        options: See :class:`PropagationTrainingOptions`.
        start_from: Weights to start from instead of random ones; what a resumed run had wins. Only
            ``prior_gain`` may be missing.
        resume: Go on from ``last.pth``.
        report: Called every few steps.

    Returns:
        The averaged state dict.

    Raises:
        TrainingError: If the loss is not finite (the last good state stays on disk), the folder
            holds another run, or nothing is left to train on.
    """
    held_out = [s for s in sequences if s.name in options.holdout]
    if not material.sequences:
        raise TrainingError("no sequence is left to train on: all are held out for validation")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model = DeepLabXception(options.network)
    if start_from is not None:
        _load_start(model, start_from)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainer = Trainer(model, material, options)
    out.mkdir(parents=True, exist_ok=True)
    last = out / "last.pth"
    if resume and last.is_file():
        trainer.restore(torch.load(last, map_location="cpu", weights_only=True))
    elif last.exists():
        raise TrainingError(f"{out} already holds a training run: add --resume, or choose another")
    cv2.setNumThreads(1)  # the data has its own thread; OpenCV's would fight with torch's
    with _CsvLog(out / "log.csv", resume=resume) as log, ThreadPoolExecutor(1) as pool:
        saved_at = time.monotonic()
        while trainer.step < options.steps:
            trainer.train_step(pool)
            done = trainer.step == options.steps
            if trainer.step % _LOG_EVERY_STEPS == 0 or done:
                validation_j = None
                if trainer.step % options.validate_every == 0 or done:
                    validation_j = mean_j(
                        trainer.averaged_model(),
                        held_out,
                        options.rollout,
                        max_frames=options.validation_frames,
                    )
                entry = trainer.take_report(validation_j)
                log.write(entry)
                report(entry)
            if done or time.monotonic() - saved_at > _SAVE_EVERY_S:
                _save(trainer.state(), last)
                saved_at = time.monotonic()
    return trainer.averaged


def _load_start(model: DeepLabXception, state: Mapping[str, Tensor]) -> None:
    own = model.state_dict()
    unfit = [k for k in state if k not in own or own[k].shape != state[k].shape]
    missing = [k for k in own if k not in state and k != "prior_gain"]
    if unfit or missing:
        raise TrainingError(
            f"the weights to start from do not fit the network at '{(unfit + missing)[0]}' "
            f"({len(unfit)} surplus or of another shape, {len(missing)} missing): ask for the "
            "width, head width and middle blocks that they were trained with"
        )
    model.load_state_dict(state, strict=False)


def _save(state: Mapping[str, Any], path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(dict(state), partial)
    os.replace(partial, path)


class _CsvLog:
    """Appends reports to a CSV file."""

    _COLUMNS = (
        "step",
        "seconds",
        "loss",
        "crop_iou",
        "input_iou",
        "learning_rate",
        "validation_j",
    )

    def __init__(self, path: Path, *, resume: bool) -> None:
        fresh = not (resume and path.is_file())
        self._file = path.open("w" if fresh else "a", newline="")
        self._writer = csv.writer(self._file)
        self._start = time.monotonic()
        if fresh:
            self._writer.writerow(self._COLUMNS)

    def write(self, entry: TrainingReport) -> None:
        """One line."""
        j = "" if entry.validation_j is None else f"{entry.validation_j:.4f}"
        self._writer.writerow(
            (
                entry.step,
                f"{time.monotonic() - self._start:.1f}",
                f"{entry.loss:.5f}",
                f"{entry.crop_iou:.4f}",
                f"{entry.input_iou:.4f}",
                f"{entry.learning_rate:.3g}",
                j,
            )
        )
        self._file.flush()

    def __enter__(self) -> _CsvLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
