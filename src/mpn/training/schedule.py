"""Learning rate schedules."""

from __future__ import annotations

import math


def warmed_up(step: int, warmup_steps: int) -> float:
    """Compute the linear rise to 1 over the warm-up; ``step`` counts from 0."""
    return min(1.0, (step + 1) / max(1, warmup_steps))


def cosine(done: int, steps: int) -> float:
    """Compute half a cosine from 1 at 0 to 0 at ``steps``; 1 before, 0 after."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0, done) / max(1, steps))))
