"""Run the steps of fine-tuning within a budget, and report losses and progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

import numpy as np

from mpn.engines.onnxruntime.finetune import FinetuneEngine
from mpn.engines.spec import Role
from mpn.runtime.options import FinetuneRecipe, FinetuneScope
from mpn.types import Float32Array

_WARM_UP_STEPS = 5
"""Steps of the rising learning rate: the optimiser first averages over few gradients."""
_SMOOTHED_STEPS = 8
"""Losses averaged for the first and the last loss of a report; a single batch is too noisy."""
_LEAST_RISE = 0.1
"""Smallest rise of the logarithm that counts. With the lite propagation network the means of two
sequences of DAVIS end 1 and 8 % higher by the choice of the batches alone."""
_TINY_LOSS = 1e-12


class Sampler(Protocol):
    """A source of batches of augmented samples."""

    def batch(self) -> tuple[Float32Array, Float32Array]:
        """Return the next inputs, (N, C, S, S), and targets, (N, 1, S, S), float32."""


@dataclass(frozen=True)
class LoopOutcome:
    """The result of a loop.

    Attributes:
        weights: The trained tensors by name; None if no step succeeded, or the loss rose.
        steps: Steps that are in the weights.
        seconds: Wall time.
        first_loss: Mean loss of the first eight steps; NaN without steps.
        last_loss: Mean loss of the last eight.
        note: The reason if the loop ended before its last step; otherwise empty.
        is_stopped: Whether a loss that is not finite ended the loop.
    """

    weights: Mapping[str, Float32Array] | None
    steps: int
    seconds: float
    first_loss: float
    last_loss: float
    note: str
    is_stopped: bool


def rate_at(done: float, step: int, highest: float) -> float:
    """Return the learning rate: a linear rise, times half a cosine down to zero.

    Args:
        done: Used share of the budget before this step, 0..1.
        step: Number of the step, from 0.
        highest: Rate after the rise.
    """
    rise = min((step + 1) / _WARM_UP_STEPS, 1.0)
    return highest * rise * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def run_loop(
    engine: FinetuneEngine,
    sampler: Sampler,
    recipe: FinetuneRecipe,
    *,
    seconds: float | None,
    on_step: Callable[[int, float, float, float], None],
    clock: Callable[[], float] = monotonic,
) -> LoopOutcome:
    """Run the steps of a recipe on an engine.

    The loop ends when a loss is not finite. The weights are then the last ones with a finite loss.
    Weights whose loss is higher at the end than at the start are not returned.

    Args:
        engine: After ``begin()``, so that its optimiser state is new.
        sampler: Source of the batches.
        recipe: Steps and rate.
        seconds: Limit of the wall time; None: no limit.
        on_step: Called after each step with its number from 1, its loss, and the elapsed and the
            remaining seconds.
        clock: Returns the time in seconds.

    Returns:
        The weights, losses and times.

    Raises:
        EngineError: If the engine fails.
    """
    start = clock()
    losses: list[float] = []
    note = ""
    while len(losses) < recipe.steps:
        elapsed_s = clock() - start
        if seconds is not None and elapsed_s >= seconds:
            note = f"ended after {len(losses)} of {recipe.steps} steps with the {seconds:g} seconds"
            break
        done = max(len(losses) / recipe.steps, 0.0 if seconds is None else elapsed_s / seconds)
        inputs, target = sampler.batch()
        loss = engine.step(inputs, target, rate_at(done, len(losses), recipe.learning_rate))
        if not math.isfinite(loss):
            good = max(len(losses) - 1, 0)  # a step computes the loss of the weights before it
            note = f"stopped: loss not finite at step {len(losses) + 1}"
            return _outcome(engine, losses[:good], clock() - start, note, is_stopped=True)
        losses.append(loss)
        elapsed_s = clock() - start
        on_step(len(losses), loss, elapsed_s, _left_s(losses, recipe, elapsed_s, seconds))
    return _outcome(engine, losses, clock() - start, note)


def _outcome(
    engine: FinetuneEngine,
    losses: list[float],
    seconds: float,
    note: str,
    *,
    is_stopped: bool = False,
) -> LoopOutcome:
    first, last = (
        float(np.mean(part)) if part else math.nan
        for part in (losses[:_SMOOTHED_STEPS], losses[-_SMOOTHED_STEPS:])
    )
    weights = engine.weights() if losses else None
    if _has_risen(losses, is_stopped=is_stopped):
        weights = None
        before, after = (losses[0], losses[-1]) if is_stopped else (first, last)
        rose = f"the loss rose from {before:.4g} to {after:.4g}: the common weights are used"
        note = "; ".join(filter(None, (note, rose)))
    elif is_stopped:
        note += f", weights of step {len(losses)} kept"
    return LoopOutcome(weights, len(losses), seconds, first, last, note, is_stopped)


def _has_risen(losses: list[float], *, is_stopped: bool) -> bool:
    """Return whether the last losses are above the first ones, beyond noise.

    The noise is two standard errors of the difference of the means. Logarithms are compared: losses
    that diverge grow by powers, and the largest would be the mean and the noise. Of a loop that was
    stopped by its loss the last loss is compared with the first. Under four steps have no noise.
    """
    logs = np.log(np.maximum(losses, _TINY_LOSS))
    if is_stopped:
        return logs.size > 0 and bool(logs[-1] - logs[0] > _LEAST_RISE)
    count = min(_SMOOTHED_STEPS, logs.size // 2)
    if count < 2:
        return False
    first, last = logs[:count], logs[-count:]
    noise = 2 * math.sqrt((first.var(ddof=1) + last.var(ddof=1)) / count)
    return float(last.mean() - first.mean()) > max(noise, _LEAST_RISE)


def _left_s(
    losses: list[float], recipe: FinetuneRecipe, elapsed_s: float, seconds: float | None
) -> float:
    by_steps = elapsed_s / len(losses) * (recipe.steps - len(losses))
    return by_steps if seconds is None else max(min(by_steps, seconds - elapsed_s), 0.0)


@dataclass(frozen=True)
class FinetuneProgress:
    """The progress after one step of fine-tuning.

    Attributes:
        object_id: The object.
        role: The network.
        step: Completed steps, from 1.
        steps: Largest number of steps.
        loss: Loss of this step, before its update.
        elapsed_s: Seconds since the start of the first step.
        eta_s: Estimated remaining seconds, from the mean step and the budget.
    """

    object_id: int
    role: Role
    step: int
    steps: int
    loss: float
    elapsed_s: float
    eta_s: float


@dataclass(frozen=True)
class FinetuneReport:
    """The outcome of fine-tuning for one object and network.

    Attributes:
        object_id: The object.
        role: The network.
        scope: See :data:`mpn.runtime.options.FinetuneScope`.
        is_finetuned: False: the exported weights are used.
        is_cached: The weights come from an earlier run; ``seconds`` is then 0.
        steps: Steps that are in the weights.
        seconds: Wall time of the steps.
        first_loss: Mean loss of the first eight steps; NaN if none ran.
        last_loss: Mean loss of the last eight.
        note: A message for the user; often empty.
    """

    object_id: int
    role: Role
    scope: FinetuneScope
    is_finetuned: bool
    is_cached: bool = False
    steps: int = 0
    seconds: float = 0.0
    first_loss: float = math.nan
    last_loss: float = math.nan
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return a dict of JSON types; a loss that is not finite is null."""
        return {
            "object_id": self.object_id,
            "role": self.role,
            "scope": self.scope,
            "finetuned": self.is_finetuned,
            "cached": self.is_cached,
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "first_loss": _finite(self.first_loss),
            "last_loss": _finite(self.last_loss),
            "note": self.note,
        }


def _finite(loss: float) -> float | None:
    return round(loss, 6) if math.isfinite(loss) else None
