"""Options and reports of the training of the flow network."""

from __future__ import annotations

from dataclasses import dataclass, field

from mpn._common.validation import check_number
from mpn.errors import TrainingError
from mpn.networks.flownet2 import SIZE_MULTIPLE, FlowNet2Config
from mpn.training.flow.crop import FlowCropOptions
from mpn.training.flow.synthetic import SyntheticFlowOptions
from mpn.training.losses import PUBLISHED_WEIGHTS
from mpn.training.options import LoopOptions

MEMBERS = ("flownetc", "flownets_1", "flownets_2", "flownets_d", "flownetfusion")
"""In training order; the single networks C, S and SD have one stage with an empty name."""


@dataclass(frozen=True, kw_only=True)
class FlowTrainingOptions(LoopOptions):
    """Options of one training run, one member of the network after the other.

    See :class:`LoopOptions` for the options of all networks.

    Attributes:
        network: Shape of the network.
        size_hw: Height and width of the crops, multiples of 64.
        synthetic: Options of pairs made from still images.
        crop: Options of crops from pairs with true flow.
        true_share: Share of samples from pairs with true flow, if there are any.
        steps_by_member: Optimisation steps of each member, in the order of
            :attr:`mpn.networks.flownet2.FlowNet2.members`; 0 does not train a member.
        batch: Samples per step, of all processes.
        learning_rate: Peak of every stage, AdamW: warm-up, then a cosine to zero.
        warmup_steps: Length of the linear rise at the start of each stage.
        weight_decay: Weight decay of AdamW, on tensors of two or more axes.
        clip_norm: Bound of the gradient's norm.
        level_weights: Weights of the losses from 1/64 to 1/4, as published.
        fusion_weights: Weights of the fusion's losses at 1/4, 1/2 and full size. Not published;
            they continue those of the other members.
        holdout_pairs: Pairs with true flow for validation only.
        synthetic_validation: Synthetic pairs for validation if no true ones are held out.
        validation_hw: Frame size for the flow of the held-out sequences.
        validation_frames: Frames per sequence; 0 does not compute J.
    """

    network: FlowNet2Config = field(default_factory=lambda: FlowNet2Config("FlowNet2S", 0.25))
    size_hw: tuple[int, int] = (256, 320)
    synthetic: SyntheticFlowOptions = field(default_factory=SyntheticFlowOptions)
    crop: FlowCropOptions = field(default_factory=FlowCropOptions)
    true_share: float = 0.25
    steps_by_member: tuple[int, ...] = (20000,)
    batch: int = 8
    learning_rate: float = 5e-4
    warmup_steps: int = 500
    weight_decay: float = 4e-4
    clip_norm: float = 1.0
    level_weights: tuple[float, ...] = PUBLISHED_WEIGHTS
    fusion_weights: tuple[float, ...] = (0.02, 0.01, 0.005)
    holdout_pairs: int = 1
    synthetic_validation: int = 32
    validation_hw: tuple[int, int] = (256, 448)
    validation_frames: int = 12

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("size_hw", "validation_hw"):
            size = getattr(self, name)
            if min(size) <= 0 or any(side % SIZE_MULTIPLE for side in size):
                raise TrainingError(
                    f"{name} must be two multiples of {SIZE_MULTIPLE}, got {size[0]}, {size[1]}"
                )
        if len(self.steps_by_member) != self.member_count or self.steps < 1:
            raise TrainingError(
                f"steps_by_member needs {self.member_count} numbers for "
                f"{self.network.variant}, not all 0, got {list(self.steps_by_member)}"
            )
        check_number("true_share", self.true_share, least=0, most=1, error=TrainingError)

    @property
    def member_count(self) -> int:
        """Members of the network; one for the single networks C, S and SD."""
        return {"FlowNet2": 5, "FlowNet2CSS": 3, "FlowNet2CS": 2}.get(self.network.variant, 1)

    @property
    def members(self) -> tuple[str, ...]:
        """See :attr:`mpn.networks.flownet2.FlowNet2.members`."""
        return ("",) if self.member_count == 1 else MEMBERS[: self.member_count]

    @property
    def steps(self) -> int:
        """Optimisation steps in all."""
        return sum(self.steps_by_member)

    def stage_at(self, step: int) -> tuple[str, int, int]:
        """Return the member of ``step``, its number there, and the stage's steps."""
        done = step
        for member, steps in zip(self.members, self.steps_by_member, strict=True):
            if done < steps:
                return member, done, steps
            done -= steps
        return self.members[-1], self.steps_by_member[-1], self.steps_by_member[-1]

    def weights_of(self, member: str) -> tuple[float, ...]:
        """Return the loss weights of a member's levels."""
        return self.fusion_weights if member == "flownetfusion" else self.level_weights


@dataclass(frozen=True)
class FlowTrainingReport:
    """Figures of a progress display.

    Attributes:
        step: Steps done.
        steps: Steps in all.
        stage: The member of the last step, or ``"alone"``.
        loss: Mean loss since the last report.
        epe_px: Mean endpoint error of the finest level since the last report.
        learning_rate: Learning rate of the last step.
        validation_epe_px: Endpoint error on held-out pairs, if just measured.
        validation_j: Mean J of the held-out sequences, if just measured: their first masks are only
            warped from frame to frame by this flow.
    """

    step: int
    steps: int
    stage: str
    loss: float
    epe_px: float
    learning_rate: float
    validation_epe_px: float | None = None
    validation_j: float | None = None
