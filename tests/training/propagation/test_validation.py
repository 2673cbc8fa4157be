from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mpn.training.propagation.clips import ClipSources
from mpn.training.propagation.rollout import RolloutOptions
from mpn.training.propagation.validation import mean_j

OPTIONS = RolloutOptions(roi_size=65)


class _Identity(nn.Module):
    """Network that returns its input probability."""

    def forward(self, rgb_prob: Tensor) -> Tensor:
        margin = 20 * (rgb_prob[:, 3:4] - 0.5)
        return torch.cat([-margin / 2, margin / 2], dim=1)


class _Silent(nn.Module):
    """Find nothing."""

    def forward(self, rgb_prob: Tensor) -> Tensor:
        empty = torch.zeros_like(rgb_prob[:, :1])
        return torch.cat([empty + 5, empty - 5], dim=1)


def test_mean_j_scores_identity_above_empty_network(
    material: ClipSources,
) -> None:
    assert mean_j(_Identity(), material.sequences, OPTIONS, max_frames=6) > 0.6
    assert mean_j(_Silent(), material.sequences, OPTIONS, max_frames=6) == 0.0


def test_without_sequences_there_is_no_score() -> None:
    assert math.isnan(mean_j(_Identity(), [], OPTIONS, max_frames=6))
