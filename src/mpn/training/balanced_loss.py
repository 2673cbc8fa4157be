"""Class-balanced cross-entropy of OSVOS."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from mpn.errors import InputError

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
