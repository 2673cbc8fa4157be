"""Losses of the propagation network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

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
