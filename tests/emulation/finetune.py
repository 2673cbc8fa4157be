"""Fake fine-tuning engine with one weight that scales its input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpn._common.closeable import Closeable
from mpn.engines.directory.entries import FinetuneScope
from mpn.engines.spec import Role
from mpn.errors import EngineError
from mpn.types import Float32Array


class FakeFinetuneEngine(Closeable):
    """Network ``prob = scale * last input channel``, trained on the squared error.

    Args:
        role: Role of the network.
        scope: Layers that are trained.
        bad_at: Number of the step, from 1, whose loss is ``bad``; 0: none.
        bad: Loss of this step.

    Attributes:
        losses: Loss of each step.
        rates: Learning rates, in order.
        history: Weight after 0, 1, 2, ... steps.
        batches: Shapes of the inputs, in order.
        is_closed: Whether it was closed.
    """

    optimizer = "sgd"

    def __init__(
        self,
        role: Role = "propagation",
        *,
        scope: FinetuneScope = "all",
        bad_at: int = 0,
        bad: float = math.nan,
    ) -> None:
        self.role, self.scope = role, scope
        self._bad_at, self._bad = bad_at, bad
        self.is_closed = False
        self.begin()

    def begin(self, weights: Mapping[str, Float32Array] | None = None) -> None:
        scale = np.ones(1, np.float32) if weights is None else weights["scale"].copy()
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.history: list[Float32Array] = [scale]
        self.batches: list[tuple[int, ...]] = []
        self._kept = -1

    def step(self, inputs: Float32Array, target: Float32Array, learning_rate: float) -> float:
        if self.is_closed:
            raise EngineError("closed")
        self.batches.append(inputs.shape)
        self.rates.append(learning_rate)
        if len(self.rates) == self._bad_at:
            self._kept = max(len(self.history) - 2, 0)
            return self._bad
        shown = inputs[:, -1:]
        error = self.history[-1] * shown - target
        self.losses.append(float(np.mean(error**2)))
        gradient = np.float32(2 * np.mean(error * shown))
        self.history.append(self.history[-1] - np.float32(learning_rate) * gradient)
        return self.losses[-1]

    def weights(self) -> dict[str, Float32Array]:
        return {"scale": self.history[self._kept].copy()}

    def close(self) -> None:
        self.is_closed = True


class FakeSampler:
    """Sampler of ones with targets of 1/4, to which the weight should converge."""

    def batch(self) -> tuple[Float32Array, Float32Array]:
        inputs: Any = np.ones((2, 4, 65, 65), np.float32)
        return inputs, np.full((2, 1, 65, 65), 0.25, np.float32)
