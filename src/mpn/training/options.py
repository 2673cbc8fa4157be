"""Options and reports of a training run."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from mpn.networks.deeplab_xception import DeepLabConfig
from mpn.training.clips import ClipMix
from mpn.training.rollout import RolloutOptions


@dataclass(frozen=True)
class PropagationTrainingOptions:
    """One training run.

    Attributes:
        network: Shape of the network.
        rollout: How rollouts are cut.
        mix: Kinds of clips.
        steps: Optimisation steps altogether.
        decay_steps: Length of the final decay of the learning rate to zero; constant before it, so
            that a run can be prolonged by resuming it with more steps.
        warmup_steps: Linear rise of the learning rate.
        batch: Rollouts in one step; twice as many are played, in turns.
        learning_rate: Peak, AdamW.
        weight_decay: AdamW's, on tensors of two or more axes.
        dice_weight: See :func:`mpn.training.losses.segmentation_loss`.
        ema_decay: Of the averaged weights.
        curriculum_steps: Rollouts grow from one step to their full length over so many steps.
        holdout: Names of the sequences kept for validation.
        validate_every: Steps between validations.
        validation_frames: Frames of each held-out sequence.
        seed: Decides everything random.
        threads: Of torch; one more prepares the data.
        bfloat16: Convolutions in bfloat16 (autocast) with float32 weights.
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
    ema_decay: float = 0.998
    curriculum_steps: int = 2500
    holdout: tuple[str, ...] = ("horsejump-low", "flamingo", "scooter-gray")
    validate_every: int = 1000
    validation_frames: int = 50
    seed: int = 0
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    bfloat16: bool = False


@dataclass(frozen=True)
class TrainingReport:
    """What a progress display shows.

    Attributes:
        step: Steps done.
        steps: Steps altogether.
        loss: Mean loss since the last report.
        crop_iou: Mean IoU of the crops' answers since the last report.
        input_iou: The same of the warped probability that went in.
        learning_rate: Of the last step.
        validation_j: Mean J of the held-out sequences, where just measured.
    """

    step: int
    steps: int
    loss: float
    crop_iou: float
    input_iou: float
    learning_rate: float
    validation_j: float | None = None
