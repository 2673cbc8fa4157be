"""Training of the propagation network on rollouts of itself.

A run can be resumed: ``last.pth`` holds weights, optimiser and the state of every rollout. It is
seeded and logged to ``log.csv``. The checkpoint to export is ``propagation.pth``, with the averaged
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mpn.errors import TrainingError
from mpn.networks.deeplab import DeepLabConfig, DeepLabXception
from mpn.training.data import DavisSequence
from mpn.training.loop import LoopOptions, run_loop, saved_state, seeded_processes
from mpn.training.propagation.clips import ClipMix, ClipSources
from mpn.training.propagation.rollout import RolloutOptions
from mpn.training.propagation.trainer import Trainer
from mpn.training.propagation.validation import mean_j
from mpn.training.run_folder import load_start


@dataclass(frozen=True, kw_only=True)
class PropagationTrainingOptions(LoopOptions):
    """Options of one training run; see :class:`LoopOptions` for the rest.

    Attributes:
        network: Shape of the network.
        rollout: Options of the rollouts.
        mix: Kinds of clips.
        steps: Number of optimisation steps.
        decay_steps: Length of the final decay of the learning rate to zero. The rate is constant
            before it, so that a run can be prolonged by resuming it with more steps.
        warmup_steps: Length of the linear rise of the learning rate.
        batch: Rollouts per step; twice as many are played, in turns.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW, on tensors of two or more axes.
        dice_weight: See :func:`mpn.training.losses.segmentation_loss`.
        curriculum_steps: Steps over which rollouts grow from one step to their full length.
        freeze_norm: Keep the statistics of batch normalisation: for small batches that start from
            trained weights.
        validation_frames: Frames per held-out sequence.
    """

    network: DeepLabConfig = field(
        default_factory=lambda: DeepLabConfig(
            width=0.25, head_width=0.25, middle_blocks=6, dropout=False, prior_skip=True
        )
    )
    rollout: RolloutOptions = field(default_factory=RolloutOptions)
    mix: ClipMix = field(default_factory=ClipMix)
    steps: int = 12000
    decay_steps: int = 4000
    warmup_steps: int = 300
    batch: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    dice_weight: float = 0.5
    curriculum_steps: int = 2500
    freeze_norm: bool = False
    validation_frames: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch < 2 and not self.freeze_norm:
            raise TrainingError(
                f"batch normalisation needs at least 2 crops a step, got a batch of {self.batch}: "
                "take more, or freeze_norm=true"
            )


@dataclass(frozen=True)
class TrainingReport:
    """Figures of a progress display.

    Attributes:
        step: Steps done.
        steps: Steps in all.
        loss: Mean loss since the last report.
        crop_iou: Mean IoU of the network's output since the last report.
        input_iou: Mean IoU of its input, the warped probability.
        learning_rate: Learning rate of the last step.
        validation_j: Mean J of the held-out sequences, if just measured.
    """

    step: int
    steps: int
    loss: float
    crop_iou: float
    input_iou: float
    learning_rate: float
    validation_j: float | None = None


def train_propagation(
    sequences: Sequence[DavisSequence],
    material: ClipSources,
    out: Path,
    options: PropagationTrainingOptions,
    *,
    start_from: Mapping[str, Tensor] | None = None,
    resume: bool = False,
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
        resume: Continue from ``last.pth``.
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
        model = DeepLabXception(options.network)
        if start_from is not None:
            load_start(
                model,
                start_from,
                may_lack=("prior_gain",),
                advice="the width, head width and middle blocks that they were trained with",
            )
        model.to(processes.device)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        trainer = Trainer(model, material, options, processes)
        if state is not None:
            trainer.restore(state)

        def validate() -> dict[str, float]:
            j = mean_j(
                trainer.averaged_model(),
                held_out,
                options.rollout,
                max_frames=options.validation_frames,
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
