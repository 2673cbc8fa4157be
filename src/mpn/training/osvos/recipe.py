"""Offline training of OSVOS: salient-object images first, then merged sequences.

A run can be resumed: ``last.pth`` holds weights and optimiser, and batches are functions of their
number. It is seeded and logged to ``log.csv``. In training the network takes inputs of size 1; the
exported weights take colours of 0..255 minus their mean, as
:class:`mpn.networks.osvos.OsvosVgg` documents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mpn.errors import TrainingError
from mpn.networks.osvos import OsvosVgg
from mpn.training.data import DataOptions, DavisSequence, StillPair
from mpn.training.loop import run_loop, saved_state, seeded_processes
from mpn.training.osvos.options import OsvosStage, OsvosTrainingOptions, OsvosTrainingReport
from mpn.training.osvos.samples import (
    INPUT_SCALE,
    CropSource,
    MaskedImages,
    MergedFrames,
    StillImages,
    init_weights,
    normalised_network,
    weights_for_larger_input,
)
from mpn.training.osvos.trainer import OsvosTrainer, mean_j
from mpn.training.run_folder import load_start, open_run, osvos_start, write_checkpoint

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
    """Train, and write ``last.pth`` and ``log.csv`` to ``out``.

    Args:
        sequences: All sequences; those named in ``options.holdout`` are for validation only.
        stills: Salient-object images, for stage 1 and a share of stage 2.
        out: See :func:`mpn.training.propagation.recipe.train_propagation`.
        options: See :class:`OsvosTrainingOptions`.
        start_from: Weights to start from instead of random ones, for inputs of 0..255 minus the
            mean; those of a resumed run win.
        resume: As for ``out``.
        report: As for ``out``.

    Returns:
        The averaged state dict, for inputs of 0..255 minus the mean.

    Raises:
        TrainingError: If a stage has no data, the initial weights do not fit, the loss is not
            finite (the last good state stays on disk), or the folder holds another run.
    """
    sources = _sources(sequences, stills, options)
    state = saved_state(out, resume=resume)
    held_out = MergedFrames(
        [s for s in sequences if s.name in options.holdout], every=_VALIDATE_ONE_FRAME_IN
    )
    with seeded_processes(options) as processes:
        network = _network(options, start_from, state).to(processes.device)
        trainer = OsvosTrainer(network, sources, options, processes)
        if state is not None:
            trainer.restore(state)

        def validate() -> dict[str, float]:
            j = mean_j(
                trainer.plain_network(),
                held_out,
                short_side_px=options.crop.size_px,
                scale=INPUT_SCALE,
            )
            return {"validation_j": j}

        run_loop(
            trainer,
            options,
            options.steps,
            out,
            processes=processes,
            validate=validate,
            report=report,
        )
        return weights_for_larger_input(trainer.plain_weights(), INPUT_SCALE)


def _sources(
    sequences: Sequence[DavisSequence],
    stills: Sequence[StillPair],
    options: OsvosTrainingOptions,
) -> dict[OsvosStage, CropSource]:
    trained = [s for s in sequences if s.name not in options.holdout]
    if options.steps < 1:
        raise TrainingError("both stages have 0 steps: at least one needs some")
    if options.salient_steps and not stills:
        raise TrainingError("stage 1 needs salient-object images: add --stills")
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
    """Create the network: random with batch normalisation, or given, or resumed.

    Given weights have no batch normalisation; a resumed run keeps its own choice.
    """
    normalised = bool(resumed["normalised"]) if resumed is not None else start_from is None
    network = normalised_network(options.network) if normalised else OsvosVgg(options.network)
    if start_from is None:
        init_weights(network)
    elif not normalised:
        load_start(
            network,
            weights_for_larger_input(start_from, 1 / INPUT_SCALE),
            advice="the width that they were trained with",
        )
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


Stages = Literal["both", "salient", "davis"]


@dataclass(frozen=True, kw_only=True)
class OsvosRecipe:
    """Data, options and initial weights of a run.

    Attributes:
        stages: Offline stages to train: ``"salient"`` on still images, ``"davis"`` on sequences.
        data: Folders of the training material.
        training: Options of the run; the steps of a skipped stage do not count.
        start_from: Checkpoint of the initial weights, or None: OSVOS in the project's or
            the public format, or torchvision's VGG16.
    """

    stages: Stages = "both"
    data: DataOptions = field(default_factory=DataOptions)
    training: OsvosTrainingOptions = field(default_factory=OsvosTrainingOptions)
    start_from: Path | None = None

    def __post_init__(self) -> None:
        size = self.training.crop.size_px
        if size % 16 or size < 64:
            raise TrainingError(
                f"the crop size must be a multiple of 16 and at least 64 (192, 224, 256), "
                f"got {size}"
            )
        if self.stages != "davis" and not self.data.stills:
            raise TrainingError(
                "stage 1 is trained on salient-object images: add --stills, or "
                "train --stage davis alone"
            )
        if self.stages != "salient" and self.data.davis_root is None:
            raise TrainingError(
                "stage 2 is trained on a DAVIS folder: add --davis-root, or train "
                "--stage salient alone"
            )

    def options(self) -> OsvosTrainingOptions:
        """Return the options of the training loop, without skipped stages."""
        return replace(
            self.training,
            salient_steps=0 if self.stages == "davis" else self.training.salient_steps,
            davis_steps=0 if self.stages == "salient" else self.training.davis_steps,
        )


def run_osvos_recipe(
    recipe: OsvosRecipe,
    out: Path,
    *,
    resume: bool = False,
    notice: Callable[[str], None] = lambda _: None,
    report: Callable[[OsvosTrainingReport], None] = lambda _: None,
) -> Path:
    """Read the data, train, and write the averaged weights as ``out/osvos.pth``.

    See :func:`mpn.training.recipe.run_propagation_recipe` for arguments, result and errors.
    """
    options = recipe.options()
    start = None
    if recipe.start_from is not None:
        start = osvos_start(recipe.start_from, options.network, seed=options.seed)
    sequences, stills = recipe.data.sequences(), recipe.data.still_pairs()
    with open_run(recipe, "osvos", out, resume=resume, notice=notice):
        weights = train_osvos(
            sequences, stills, out, options, start_from=start, resume=resume, report=report
        )
        network = OsvosVgg(options.network)
        network.load_state_dict(weights)
        data = osvos_data(options, sequences, stills)
        return write_checkpoint(network, recipe, "osvos", out, data)


def osvos_data(
    options: OsvosTrainingOptions, sequences: list[DavisSequence], stills: list[StillPair]
) -> dict[str, Any]:
    """Describe the training data as JSON types."""
    trained = [s.name for s in sequences if s.name not in options.holdout]
    return {
        "davis_sequences": trained if options.davis_steps else [],
        "held_out": list(options.holdout),
        "still_pairs": len(stills),
    }
