from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from mpn.training.propagation.clips import ClipSources
from mpn.training.propagation.features import load_features
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


class _Score(nn.Module):
    """Network that returns the score of the target model."""

    def forward(self, rgb_prob_score: Tensor) -> Tensor:
        assert rgb_prob_score.shape[1] == 5
        margin = 20 * (rgb_prob_score[:, 4:5] - 0.5)
        return torch.cat([-margin / 2, margin / 2], dim=1)


def test_mean_j_runs_the_target_model(material: ClipSources, features_file: Path) -> None:
    features = load_features(features_file)
    j = mean_j(
        _Score(),
        material.sequences[:1],
        OPTIONS,
        max_frames=5,
        features=features,
        features_size_hw=(97, 129),
    )
    assert j > 0.3


def test_without_sequences_there_is_no_score() -> None:
    assert math.isnan(mean_j(_Identity(), [], OPTIONS, max_frames=6))
