"""Fine-tune OSVOS on one frame in torch, the reference of the torch-free step.

A step is a forward pass, the class-balanced loss of the fused output only, a backward pass and an
update. All randomness comes from the seed: the same frame, mask and options give the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mpn.errors import InputError
from mpn.networks.osvos import OsvosVgg
from mpn.training.losses import Reduction, class_balanced_loss
from mpn.training.osvos.samples import CropOptions, CropSource
from mpn.types import BoolArray, UInt8Array

Optimizer = Literal["sgd", "adamw"]
Scope = Literal["all", "head"]


@dataclass(frozen=True)
class OsvosFinetuneOptions:
    """Options of OSVOS fine-tuning.

    The groups of learning rates are the published ones: biases twice the rate, the fusing layer a
    hundredth, no weight decay on biases. The score layers of the side branches and the fixed
    upsampling are not trained.

    Attributes:
        steps: Optimisation steps.
        batch: Crops per step.
        crop: Options of the crops; colours are not changed.
        optimizer: ``"sgd"``: with momentum, as published. ``"adamw"``: decoupled weight decay,
            betas 0.9 and 0.999.
        learning_rate: Highest rate, of the weights of trunk and side branches. The default suits
            AdamW; SGD needs about 1e-2 with the loss's mean.
        warmup_steps: Steps of the linear rise, before the rate falls to zero along a cosine.
        momentum: Momentum of SGD.
        weight_decay: Decay of the weights.
        bias_rate: Factor of the rate for biases.
        fuse_rate: Factor of the rate for the fusing layer.
        scope: ``"all"``: every layer. ``"head"``: side branches and fusing layer alone.
        reduction: See :func:`mpn.training.losses.class_balanced_loss`.
        seed: Seed of all random choices.
    """

    steps: int = 80
    batch: int = 4
    crop: CropOptions = field(
        default_factory=lambda: CropOptions(size_px=192, rotation_deg=10.0, recolour=0.0)
    )
    optimizer: Optimizer = "adamw"
    learning_rate: float = 3e-4
    warmup_steps: int = 5
    momentum: float = 0.9
    weight_decay: float = 2e-4
    bias_rate: float = 2.0
    fuse_rate: float = 0.01
    scope: Scope = "all"
    reduction: Reduction = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in get_args(Optimizer):
            raise InputError(
                f"unknown optimizer '{self.optimizer}': there are {', '.join(get_args(Optimizer))}"
            )
        if self.scope not in get_args(Scope):
            raise InputError(
                f"unknown scope '{self.scope}': there are {', '.join(get_args(Scope))}"
            )
        if self.steps < 1 or self.batch < 1:
            raise InputError(
                f"fine-tuning takes at least 1 step of 1 crop, got {self.steps} of {self.batch}"
            )

    def learning_rate_at(self, step: int) -> float:
        """Compute the rate of a step: linear rise, cosine fall to zero."""
        rise = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True)
class FinetunedOsvos:
    """Result of fine-tuning.

    Attributes:
        state_dict: The weights.
        losses: Loss of every step, before its update.
        stopped: Reason if it ended before its last step, or None. The weights are then those before
            the failed step.
    """

    state_dict: Mapping[str, Tensor]
    losses: tuple[float, ...]
    stopped: str | None = None


def finetune_osvos(
    network: OsvosVgg,
    rgb: UInt8Array,
    mask: BoolArray,
    options: OsvosFinetuneOptions,
    *,
    after_step: Callable[[int, OsvosVgg], None] = lambda _step, _network: None,
) -> FinetunedOsvos:
    """Fine-tune a network in place on crops of one frame.

    Args:
        network: Takes BGR in 0..255 minus the mean.
        rgb: (H, W, 3) uint8.
        mask: (H, W) bool, the object.
        options: See :class:`OsvosFinetuneOptions`.
        after_step: Called with the steps done and the network after each.

    Returns:
        Weights and losses.

    Raises:
        InputError: If the mask is empty or its size is not the frame's.
    """
    if rgb.shape[:2] != mask.shape or not mask.any():
        raise InputError(
            f"the frame is {rgb.shape[:2]} and its mask {mask.shape} with {int(mask.sum())} "
            "object pixels: they must be of one size, and the object visible"
        )
    crops = CropSource(
        [(_OneFrame(rgb, mask), 1.0)], options.crop, batch=options.batch, seed=options.seed
    )
    optimiser = finetune_optimiser(network, options)
    losses: list[float] = []
    for step in range(options.steps):
        images, masks = crops.batch(step)
        loss = finetune_step(
            network, optimiser, images, masks, options, rate=options.learning_rate_at(step)
        )
        if not math.isfinite(loss):
            stopped = f"the loss is {loss} at step {step}"
            return FinetunedOsvos(network.state_dict(), tuple(losses), stopped)
        losses.append(loss)
        after_step(step + 1, network)
    return FinetunedOsvos(network.state_dict(), tuple(losses))


def finetune_optimiser(network: OsvosVgg, options: OsvosFinetuneOptions) -> torch.optim.Optimizer:
    """Create the optimiser with its groups of rates.

    Switches off the gradients of all other parameters.
    """
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    parts = ("side_prep", "fuse") if options.scope == "head" else ("stages", "side_prep", "fuse")
    for name, parameter in network.named_parameters():
        part = name.split(".")[0]
        parameter.requires_grad_(part in parts)
        if part in parts:
            groups.setdefault((part == "fuse", name.endswith(".bias")), []).append(parameter)
    settings: list[dict[str, Any]] = [
        {
            "params": parameters,
            "weight_decay": 0.0 if is_bias else options.weight_decay,
            "rate": (options.fuse_rate if is_fuse else 1.0)
            * (options.bias_rate if is_bias else 1.0),
        }
        for (is_fuse, is_bias), parameters in groups.items()
    ]
    if options.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=0.0, momentum=options.momentum)
    return torch.optim.AdamW(settings, lr=0.0)


def finetune_step(
    network: OsvosVgg,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    masks: Tensor,
    options: OsvosFinetuneOptions,
    *,
    rate: float,
) -> float:
    """Run one step; the weights do not change if the loss is not finite.

    Args:
        network: The network to train.
        optimiser: Of :func:`finetune_optimiser`.
        images: (B, 3, H, W) BGR in 0..255 minus the mean.
        masks: (B, 1, H, W) float32, object if at least 0.5.
        options: Those of the optimiser.
        rate: Learning rate of this step, before the factors of the groups.

    Returns:
        The loss before the update.
    """
    loss = class_balanced_loss(network.logits(images), masks, reduction=options.reduction)
    value = float(loss.detach())
    if not math.isfinite(value):
        return value
    for group in optimiser.param_groups:
        group["lr"] = rate * group["rate"]
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return value


class _OneFrame:
    """Single masked image."""

    def __init__(self, rgb: UInt8Array, mask: BoolArray) -> None:
        self._pair = rgb, mask

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[UInt8Array, BoolArray]:
        return self._pair
