"""Options and reports of the training of the propagation network."""

from __future__ import annotations

from dataclasses import dataclass, field

from mpn.errors import TrainingError
from mpn.networks.fit import PROPAGATION_CHANNELS
from mpn.networks.propagation import PropagationConfig
from mpn.training.options import LoopOptions
from mpn.training.propagation.clips import ClipMix
from mpn.training.propagation.rollout import RolloutOptions


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

    network: PropagationConfig = field(
        default_factory=lambda: PropagationConfig(
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
        if self.network.in_channels != PROPAGATION_CHANNELS:
            raise TrainingError(
                "rollouts have 4 input channels, RGB and the warped probability, the network to "
                f"train has {self.network.in_channels}: set training.network.in_channels=4"
            )
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
