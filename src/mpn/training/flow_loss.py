"""Multi-scale endpoint error of FlowNet's training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mpn.errors import InputError

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
