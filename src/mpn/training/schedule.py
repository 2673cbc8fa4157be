"""Build the optimiser and compute learning rates by step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn


def warmed_up(step: int, warmup_steps: int) -> float:
    """Compute the linear rise to 1 over the warm-up; ``step`` counts from 0."""
    return min(1.0, (step + 1) / max(1, warmup_steps))


def cosine(done: int, steps: int) -> float:
    """Compute half a cosine from 1 at 0 to 0 at ``steps``; 1 before, 0 after."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0, done) / max(1, steps))))


def adamw(parameters: Iterable[nn.Parameter], *, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW with weight decay on tensors of two or more axes only.

    The learning rate is to be set before each step.
    """
    given = list(parameters)
    return torch.optim.AdamW(
        [
            {"params": [p for p in given if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in given if p.ndim < 2], "weight_decay": 0.0},
        ]
    )
