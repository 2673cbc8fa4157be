"""Options and reports of the training of the propagation network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mpn.engines.spec import PROPAGATION_INPUTS
from mpn.errors import TrainingError
from mpn.networks.propagation import PropagationConfig
from mpn.training.options import LoopOptions
from mpn.training.propagation.clips import ClipMix
from mpn.training.propagation.rollout import RolloutOptions
from mpn.training.propagation.scores import ScoreOptions


@dataclass(frozen=True, kw_only=True)
class PropagationTrainingOptions(LoopOptions):
    """Options of one training run; see :class:`LoopOptions` for the rest.

    Attributes:
        network: Shape of the network.
        rollout: Options of the rollouts.
        mix: Kinds of clips.
        score: Scores of the target model, if the network has five input channels.
        steps: Number of optimisation steps.
        decay_steps: Length of the final decay of the learning rate to zero. The rate is constant
            before it, so that a run can be prolonged by resuming it with more steps.
        warmup_steps: Length of the linear rise of the learning rate.
        batch: Rollouts per step; twice as many are played, in turns.
        learning_rate: Peak learning rate of AdamW.
        backbone_rate: Learning rate of the backbone as a share of it, above 0. The first layer has
            the whole rate.
        weight_decay: Weight decay of AdamW, on tensors of two or more axes.
        dice_weight: See :func:`mpn.training.losses.segmentation_loss`.
        curriculum_steps: Steps over which rollouts grow from one step to their full length.
        freeze_norm: Keep the statistics of batch normalisation, of all layers or only of the
            ``"backbone"``: for small batches that start from trained weights.
        validation_frames: Frames per held-out sequence.
    """

    network: PropagationConfig = field(
        default_factory=lambda: PropagationConfig(
            width=0.25, head_width=0.25, middle_blocks=6, dropout=False, prior_skip=True
        )
    )
    rollout: RolloutOptions = field(default_factory=RolloutOptions)
    mix: ClipMix = field(default_factory=ClipMix)
    score: ScoreOptions = field(default_factory=ScoreOptions)
    steps: int = 12000
    decay_steps: int = 4000
    warmup_steps: int = 300
    batch: int = 8
    learning_rate: float = 2e-3
    backbone_rate: float = 1.0
    weight_decay: float = 0.02
    dice_weight: float = 0.5
    curriculum_steps: int = 2500
    freeze_norm: Literal[False, True, "backbone"] = False
    validation_frames: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network.in_channels not in PROPAGATION_INPUTS:
            raise TrainingError(
                "rollouts have 4 input channels, RGB and the warped probability, or 5 with the "
                f"score of the target model, the network to train has {self.network.in_channels}: "
                "set training.network.in_channels=4 or 5"
            )
        if self.batch < 2 and self.freeze_norm is not True:
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
