"""Losses of the propagation network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mpn.errors import InputError

_DICE_EPSILON = 1.0


def segmentation_loss(logits: Tensor, target: Tensor, *, dice_weight: float) -> Tensor:
    """Compute pixel cross-entropy plus a weighted soft Dice loss.

    Cross-entropy alone loses small objects; Dice alone is noisy on empty targets. The sum is the
    usual choice (F. Milletari et al., "V-Net", 3DV 2016, for the Dice term).

    Args:
        logits: (B, 2, S, S) background and foreground, any floating dtype.
        target: (B, S, S) float32 foreground share of each pixel, 0..1.
        dice_weight: Weight of the Dice term.

    Returns:
        Scalar float32.
    """
    margin = (logits[:, 1] - logits[:, 0]).float()
    cross_entropy = F.binary_cross_entropy_with_logits(margin, target)
    prob = margin.sigmoid()
    overlap = (prob * target).sum(dim=(1, 2))
    total = prob.sum(dim=(1, 2)) + target.sum(dim=(1, 2))
    dice = 1 - (2 * overlap + _DICE_EPSILON) / (total + _DICE_EPSILON)
    return cross_entropy + dice_weight * dice.mean()


Reduction = Literal["sum", "mean"]
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)


def class_balanced_loss(logits: Tensor, mask: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Compute a cross-entropy that weighs object and background the same.

    Per image, with N+ pixels in the object, N- outside and N in all: N-/N times the cross-entropy
    summed over the object plus N+/N times that summed over the background (S. Xie and Z. Tu,
    "Holistically-Nested Edge Detection", ICCV 2015, equation 2; S. Caelles et al., "One-Shot Video
    Object Segmentation", CVPR 2017). An image without object, or without background, has loss 0.

    Args:
        logits: (B, 1, H, W), any floating dtype; computed in float32.
        mask: (B, 1, H, W) float32; a pixel of at least 0.5 belongs to the object.
        reduction: ``"sum"`` is over pixels, as published, with learning rates of the order 1e-8.
            ``"mean"`` divides it by N, so that one learning rate suits every size of image.

    Returns:
        Scalar float32, the mean over the images.

    Raises:
        InputError: If the shapes differ or the reduction is unknown.
    """
    if logits.shape != mask.shape or logits.ndim != 4 or logits.shape[1] != 1:
        raise InputError(
            f"the loss takes logits and masks of one shape (B, 1, H, W), got {tuple(logits.shape)} "
            f"and {tuple(mask.shape)}"
        )
    if reduction not in REDUCTIONS:
        raise InputError(f"unknown reduction '{reduction}': there are {', '.join(REDUCTIONS)}")
    inside = (mask >= 0.5).float()
    object_share = inside.mean(dim=(1, 2, 3), keepdim=True)
    weights = inside * (1 - object_share) + (1 - inside) * object_share
    cross_entropy = F.binary_cross_entropy_with_logits(logits.float(), inside, reduction="none")
    weighted = weights * cross_entropy
    per_image = weighted.sum(dim=(1, 2, 3)) if reduction == "sum" else weighted.mean(dim=(1, 2, 3))
    return per_image.mean()


PUBLISHED_WEIGHTS = (0.32, 0.08, 0.02, 0.01, 0.005)
"""Weights of the levels from 1/64 to 1/4 (A. Dosovitskiy et al., "FlowNet", ICCV 2015, and its
public training definitions)."""
UNIT_PX = 20.0
"""Unit of the errors: the networks predict flow / 20."""


def multiscale_epe(
    flows_px: Sequence[Tensor], target_px: Tensor, valid: Tensor, weights: Sequence[float]
) -> Tensor:
    """Sum the weighted endpoint errors of all levels per pixel of the finest.

    The published loss sums over the pixels of each level, so a weight counts for more on larger
    images. Dividing by the number of pixels of the finest level keeps a learning rate valid for
    every size. The target of a level is the mean of the valid flows of each cell.

    Args:
        flows_px: (B, 2, h, w) each, from coarse to fine, in pixels of the full size.
        target_px: (B, 2, H, W) float32, sides multiples of every level's.
        valid: (B, H, W) bool.
        weights: One per level.

    Returns:
        Scalar float32, in units of 20 pixels; 0 if no pixel is valid.

    Raises:
        InputError: If levels and weights do not pair.
    """
    if len(flows_px) != len(weights):
        raise InputError(
            f"the loss takes one weight per level, got {len(weights)} for {len(flows_px)} levels"
        )
    known = valid[:, None].float()
    total = target_px.new_zeros(())
    finest = flows_px[-1].shape[-2] * flows_px[-1].shape[-1]
    for flow_px, weight in zip(flows_px, weights, strict=True):
        size = (flow_px.shape[-2], flow_px.shape[-1])
        share = F.adaptive_avg_pool2d(known, size)
        mean = F.adaptive_avg_pool2d(target_px * known, size) / share.clamp(min=1e-6)
        error = torch.linalg.vector_norm((flow_px.float() - mean) / UNIT_PX, dim=1)
        is_valid = (share[:, 0] > 0.5).float()
        total = total + weight * (error * is_valid).sum() / (finest * len(flow_px))
    return total


def mean_epe_px(flow_px: Tensor, target_px: Tensor, valid: Tensor) -> Tensor:
    """Compute the mean endpoint error over valid pixels; 0 if there is none.

    Args:
        flow_px: (B, 2, H, W).
        target_px: The same.
        valid: (B, H, W) bool.
    """
    error: Tensor = torch.linalg.vector_norm(flow_px - target_px, dim=1)
    return (error * valid).sum() / valid.sum().clamp(min=1)
