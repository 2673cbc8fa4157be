"""Training of the propagation network on rollouts of itself.

A run can be resumed: ``last.pth`` holds weights, optimiser and the state of every rollout. It is
seeded and logged to ``log.csv``. The checkpoint to export is ``propagation.pth``, with the averaged
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mpn.errors import TrainingError
from mpn.networks.features import FeaturesNet
from mpn.networks.propagation import PropagationNet
from mpn.training.data import DavisSequence
from mpn.training.loop import run_loop, saved_state, seeded_processes
from mpn.training.processes import Processes
from mpn.training.propagation.clips import ClipSources
from mpn.training.propagation.features import ClipFeatures
from mpn.training.propagation.options import PropagationTrainingOptions, TrainingReport
from mpn.training.propagation.scores import ScoreSource
from mpn.training.propagation.trainer import Trainer
from mpn.training.propagation.validation import mean_j
from mpn.training.run_folder import load_start


def train_propagation(
    sequences: Sequence[DavisSequence],
    material: ClipSources,
    out: Path,
    options: PropagationTrainingOptions,
    *,
    start_from: Mapping[str, Tensor] | None = None,
    features: FeaturesNet | None = None,
    features_cache: Path | None = None,
    resume: bool = False,
    notice: Callable[[str], None] = lambda _: None,
    report: Callable[[TrainingReport], None] = lambda _: None,
) -> dict[str, Tensor]:
    """Train, and write ``last.pth`` and ``log.csv`` to ``out``.

    Args:
        sequences: All sequences; those named in ``options.holdout`` are for validation only.
        material: Sources that clips are sampled from, without the held-out sequences.
        out: Folder of the run.
        options: See :class:`PropagationTrainingOptions`.
        start_from: Initial weights instead of random ones; ignored if a run is resumed. Only
            ``prior_gain`` may be missing.
        features: Frozen network of the target model, for a network of five input channels.
        features_cache: Folder of the features of the sequences; None: ``out/features``.
        resume: Continue from ``last.pth``.
        notice: Called with the size of the cache of features.
        report: Called every few steps.

    Returns:
        The averaged state dict, on the CPU; the same in every process.

    Raises:
        TrainingError: If the loss is not finite (the last good state stays on disk), the folder
            holds another run, or no sequence is left to train on.
    """
    held_out = [s for s in sequences if s.name in options.holdout]
    if not material.sequences:
        raise TrainingError("no sequence is left to train on: all are held out for validation")
    state = saved_state(out, resume=resume)
    with seeded_processes(options) as processes:
        model = PropagationNet(options.network)
        if start_from is not None:
            load_start(
                model,
                start_from,
                may_lack=("prior_gain",),
                advice="the width, head width and middle blocks that they were trained with",
            )
        model.to(processes.device)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        scores = None
        if features is not None:
            cache = features_cache or out / "features"
            scores = _score_source(features, material, options, processes, cache, notice)
        trainer = Trainer(model, material, options, processes, scores)
        if state is not None:
            trainer.restore(state)

        def validate() -> dict[str, float]:
            j = mean_j(
                trainer.averaged_model(),
                held_out,
                options.rollout,
                max_frames=options.validation_frames,
                features=features,
                features_size_hw=options.score.size_hw,
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
        return trainer.averaged


def _score_source(
    features: FeaturesNet,
    material: ClipSources,
    options: PropagationTrainingOptions,
    processes: Processes,
    cache: Path,
    notice: Callable[[str], None],
) -> ScoreSource:
    """Return the source of the scores; the first process fills its cache."""
    features.to(processes.device)
    features.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    size = options.score
    clips = ClipFeatures(features, size.size_hw, size.short_side_px, cache)
    if processes.is_first:
        clips.fill(material.sequences, notice)
    processes.wait()
    return ScoreSource(clips, material.sequences, size)
