"""Options and reports of the offline training of OSVOS."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mpn.networks.osvos import OsvosConfig
from mpn.training.options import LoopOptions
from mpn.training.osvos.samples import (
    CropOptions,
)

OsvosStage = Literal["salient", "davis"]


@dataclass(frozen=True, kw_only=True)
class OsvosTrainingOptions(LoopOptions):
    """Options of a training run: stage 1 on salient images, stage 2 on sequences.

    See :class:`LoopOptions` for the options of all networks.

    Attributes:
        network: Shape of the network.
        crop: Options of the crops.
        salient_steps: Optimisation steps of stage 1; 0 skips it.
        davis_steps: Optimisation steps of stage 2; 0 skips it.
        salient_share: Share of still images in stage 2's crops. A few sequences show few objects,
            and a small network overfits to them.
        batch: Crops per step.
        salient_rate: Peak learning rate of stage 1, AdamW.
        davis_rate: Peak learning rate of stage 2.
        warmup_steps: Length of the linear rise at the start of each stage. After it the rate falls
            along a cosine, to a tenth at the end of stage 1 and to zero at the end of stage 2.
        weight_decay: Weight decay of AdamW, on tensors of two or more axes.
        side_weights: Weights of the six losses: side branches from fine to coarse, then the fused
            output. Those of the sides fall linearly to zero over each stage.
        clip_norm: Bound of the gradient's norm.
    """

    network: OsvosConfig = field(default_factory=lambda: OsvosConfig(width=0.25))
    crop: CropOptions = field(default_factory=CropOptions)
    salient_steps: int = 5500
    davis_steps: int = 6500
    salient_share: float = 0.3
    batch: int = 8
    salient_rate: float = 2e-3
    davis_rate: float = 1.2e-3
    warmup_steps: int = 300
    weight_decay: float = 0.02
    side_weights: tuple[float, ...] = (1.0,) * 6
    clip_norm: float = 1.0
    validate_every: int = 500

    @property
    def steps(self) -> int:
        """Optimisation steps in all."""
        return self.salient_steps + self.davis_steps

    def stage_at(self, step: int) -> tuple[OsvosStage, int, int]:
        """Return the stage of ``step``, its number there, and the stage's steps."""
        if step < self.salient_steps:
            return "salient", step, self.salient_steps
        return "davis", step - self.salient_steps, self.davis_steps


@dataclass(frozen=True)
class OsvosTrainingReport:
    """Figures of a progress display.

    Attributes:
        step: Steps done.
        steps: Steps in all.
        stage: The stage of the last step.
        loss: Mean loss of the fused output since the last report.
        crop_iou: Mean IoU of the fused output since the last report.
        learning_rate: Learning rate of the last step.
        validation_j: Mean J of the held-out sequences without fine-tuning, if just measured.
    """

    step: int
    steps: int
    stage: OsvosStage
    loss: float
    crop_iou: float
    learning_rate: float
    validation_j: float | None = None
