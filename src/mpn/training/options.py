"""Options and reports of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field

from mpn.errors import TrainingError
from mpn.networks.deeplab_xception import DeepLabConfig
from mpn.training.draw import ClipMix
from mpn.training.loop_options import LoopOptions
from mpn.training.rollout import RolloutOptions


@dataclass(frozen=True, kw_only=True)
class PropagationTrainingOptions(LoopOptions):
    """One training run; see :class:`LoopOptions` for what all networks have.

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
        curriculum_steps: Rollouts grow from one step to their full length over so many steps.
        freeze_norm: Batch normalisation keeps its statistics: for small batches that go on from
            trained weights.
        validation_frames: Frames of each held-out sequence.
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
