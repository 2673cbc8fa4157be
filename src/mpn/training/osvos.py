"""Train OSVOS offline: salient-object images first, then sequences with their objects merged.

Resumable (``last.pth`` holds weights and optimiser; batches are functions of their number), seeded,
logged to ``log.csv``. While it is trained the network takes inputs of size 1; the weights handed
out take colours of 0..255 minus their mean, as :class:`mpn.networks.osvos_vgg.OsvosVgg` documents.
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
from mpn.networks.osvos_vgg import OsvosVgg
from mpn.training.datasets import DavisSequence, StillPair
from mpn.training.osvos_norm import normalised_network
from mpn.training.osvos_options import OsvosStage, OsvosTrainingOptions, OsvosTrainingReport
from mpn.training.osvos_samples import (
    INPUT_SCALE,
    CropSource,
    MaskedImages,
    MergedFrames,
    StillImages,
)
from mpn.training.osvos_scale import init_weights, weights_for_larger_input
from mpn.training.osvos_trainer import OsvosTrainer
from mpn.training.osvos_validation import mean_j

_LOG_EVERY_STEPS = 50
_SAVE_EVERY_S = 120.0
_VALIDATE_ONE_FRAME_IN = 8


def train_osvos(
    sequences: Sequence[DavisSequence],
    stills: Sequence[StillPair],
    out: Path,
    options: OsvosTrainingOptions,
    *,
    start_from: Mapping[str, Tensor] | None = None,
    resume: bool = False,
    report: Callable[[OsvosTrainingReport], None] = lambda _: None,
) -> dict[str, Tensor]:
    """Train, and leave ``last.pth`` and ``log.csv`` in ``out``.

    Args:
        sequences: All sequences; those named in ``options.holdout`` only validate.
        stills: Salient-object images, for stage 1 and a share of stage 2.
        out: Folder of the run.
        options: See :class:`OsvosTrainingOptions`.
        start_from: Weights to start from instead of random ones, for inputs of 0..255 minus the
            mean; what a resumed run had wins.
        resume: Go on from ``last.pth``.
        report: Called every few steps.

    Returns:
        The averaged state dict, for inputs of 0..255 minus the mean.

    Raises:
        TrainingError: If a stage has no data, the weights to start from do not fit, the loss is
            not finite (the last good state stays on disk), or the folder holds another run.
    """
    sources = _sources(sequences, stills, options)
    last = out / "last.pth"
    if last.exists() and not resume:
        raise TrainingError(f"{out} already holds a training run: add --resume, or choose another")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    state = torch.load(last, map_location="cpu", weights_only=True) if last.exists() else None
    network = _network(options, start_from, state)
    trainer = OsvosTrainer(network, sources, options)
    if state is not None:
        trainer.restore(state)
    held_out = MergedFrames(
        [s for s in sequences if s.name in options.holdout], every=_VALIDATE_ONE_FRAME_IN
    )
    out.mkdir(parents=True, exist_ok=True)
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
                        trainer.plain_network(),
                        held_out,
                        short_side_px=options.crop.size_px,
                        scale=INPUT_SCALE,
                    )
                entry = trainer.take_report(validation_j)
                log.write(entry)
                report(entry)
            if done or time.monotonic() - saved_at > _SAVE_EVERY_S:
                _save(trainer.state(), last)
                saved_at = time.monotonic()
    return weights_for_larger_input(trainer.plain_weights(), INPUT_SCALE)


def _sources(
    sequences: Sequence[DavisSequence],
    stills: Sequence[StillPair],
    options: OsvosTrainingOptions,
) -> dict[OsvosStage, CropSource]:
    trained = [s for s in sequences if s.name not in options.holdout]
    if options.steps < 1:
        raise TrainingError("both stages have 0 steps: give at least one of them some")
    if options.salient_steps and not stills:
        raise TrainingError("stage 1 needs salient-object images: name their folder with --stills")
    if options.davis_steps and not trained:
        raise TrainingError("no sequence is left to train on: all are held out for validation")
    still_images, frames = StillImages(stills), MergedFrames(trained)

    def crops(*shares: float) -> CropSource:
        images: tuple[MaskedImages, ...] = (still_images, frames)
        return CropSource(
            list(zip(images, shares, strict=True)),
            options.crop,
            batch=options.batch,
            seed=options.seed,
            scale=INPUT_SCALE,
        )

    sources: dict[OsvosStage, CropSource] = {}
    if options.salient_steps:
        sources["salient"] = crops(1.0, 0.0)
    if options.davis_steps:
        sources["davis"] = crops(options.salient_share, 1 - options.salient_share)
    return sources


def _network(
    options: OsvosTrainingOptions,
    start_from: Mapping[str, Tensor] | None,
    resumed: Mapping[str, Any] | None,
) -> OsvosVgg:
    """Random with batch normalisation, or the given weights without, or as the resumed run has."""
    normalised = bool(resumed["normalised"]) if resumed is not None else start_from is None
    network = normalised_network(options.network) if normalised else OsvosVgg(options.network)
    if start_from is None:
        init_weights(network)
    elif not normalised:
        _load_start(network, start_from)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _load_start(network: OsvosVgg, state: Mapping[str, Tensor]) -> None:
    own = network.state_dict()
    unfit = [k for k in state if k not in own or own[k].shape != state[k].shape]
    missing = [k for k in own if k not in state]
    if unfit or missing:
        raise TrainingError(
            f"the weights to start from do not fit the network at '{(unfit + missing)[0]}' "
            f"({len(unfit)} surplus or of another shape, {len(missing)} missing): ask for the "
            "width that they were trained with"
        )
    network.load_state_dict(weights_for_larger_input(state, 1 / INPUT_SCALE))


def _save(state: Mapping[str, Any], path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(dict(state), partial)
    os.replace(partial, path)


class _CsvLog:
    """Appends reports to a CSV file."""

    _COLUMNS = ("step", "seconds", "stage", "loss", "crop_iou", "learning_rate", "validation_j")

    def __init__(self, path: Path, *, resume: bool) -> None:
        fresh = not (resume and path.is_file())
        self._file = path.open("w" if fresh else "a", newline="")
        self._writer = csv.writer(self._file)
        self._start = time.monotonic()
        if fresh:
            self._writer.writerow(self._COLUMNS)

    def write(self, entry: OsvosTrainingReport) -> None:
        """One line."""
        j = "" if entry.validation_j is None else f"{entry.validation_j:.4f}"
        self._writer.writerow(
            (
                entry.step,
                f"{time.monotonic() - self._start:.1f}",
                entry.stage,
                f"{entry.loss:.5f}",
                f"{entry.crop_iou:.4f}",
                f"{entry.learning_rate:.3g}",
                j,
            )
        )
        self._file.flush()

    def __enter__(self) -> _CsvLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
