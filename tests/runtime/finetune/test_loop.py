from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from mpn.errors import EngineError
from mpn.runtime.finetune.loop import rate_at, run_loop
from mpn.runtime.options import FinetuneRecipe
from tests.emulation.finetune import FakeFinetuneEngine, FakeSampler

RECIPE = FinetuneRecipe(steps=20, size_px=65, batch=2, learning_rate=0.5)


class Clock:
    """A clock that advances by one second per call."""

    def __init__(self) -> None:
        self.now_s = -1.0

    def __call__(self) -> float:
        self.now_s += 1
        return self.now_s


def run(engine: FakeFinetuneEngine, *, seconds: float | None = None, clock: Clock | None = None):  # type: ignore[no-untyped-def]
    steps: list[tuple[int, float, float, float]] = []
    outcome = run_loop(
        engine,
        FakeSampler(),
        RECIPE,
        seconds=seconds,
        on_step=lambda *step: steps.append(step),
        clock=Clock() if clock is None else clock,
    )
    return outcome, steps


def test_every_step_is_run_and_reported() -> None:
    engine = FakeFinetuneEngine()
    outcome, steps = run(engine)
    assert outcome.steps == 20
    assert (outcome.note, outcome.is_stopped) == ("", False)
    assert [step for step, *_ in steps] == list(range(1, 21))
    assert [loss for _, loss, *_ in steps] == engine.losses
    assert outcome.first_loss == pytest.approx(np.mean(engine.losses[:8]))
    assert outcome.last_loss == pytest.approx(np.mean(engine.losses[-8:]))
    assert outcome.last_loss < outcome.first_loss
    np.testing.assert_array_equal(outcome.weights["scale"], engine.weights()["scale"])


def test_the_rate_rises_and_falls_to_zero() -> None:
    engine = FakeFinetuneEngine()
    run(engine)
    rates = engine.rates
    assert rates == [rate_at(step / 20, step, 0.5) for step in range(20)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(0.5, rel=0.15)
    assert rates[-1] < 0.02
    assert all(a > b for a, b in pairwise(rates[5:]))


def test_time_left_uses_the_mean_step_time() -> None:
    _, steps = run(FakeFinetuneEngine())
    for step, _, elapsed_s, eta_s in steps:
        assert eta_s == pytest.approx(elapsed_s / step * (20 - step))
    assert steps[-1][3] == 0


def test_seconds_end_it_early_with_the_rate_at_zero() -> None:
    engine = FakeFinetuneEngine()
    outcome, steps = run(engine, seconds=9.5)
    assert 2 <= outcome.steps < 20
    assert outcome.note == f"ended after {outcome.steps} of 20 steps with the 9.5 seconds"
    assert not outcome.is_stopped
    assert outcome.weights is not None
    assert engine.rates[-1] < 0.35 * max(engine.rates)
    assert all(0 <= eta_s <= 9.5 for *_, eta_s in steps)


def test_enough_seconds_change_nothing() -> None:
    assert run(FakeFinetuneEngine(), seconds=1e6)[0].note == ""


def test_zero_time_limit_runs_no_step() -> None:
    clock = Clock()
    outcome, _ = run(FakeFinetuneEngine(), seconds=0.5, clock=clock)
    assert outcome.weights is None
    assert math.isnan(outcome.first_loss)
    assert outcome.note == "ended after 0 of 20 steps with the 0.5 seconds"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("failing", "kept"), [(7, 5), (3, 1), (2, 0), (1, 0)])
def test_non_finite_loss_stops_with_last_good_weights(bad: float, failing: int, kept: int) -> None:
    engine = FakeFinetuneEngine(bad_at=failing, bad=bad)
    outcome, steps = run(engine)
    assert outcome.is_stopped
    assert (
        outcome.note == f"stopped: loss not finite at step {failing}, weights of step {kept} kept"
    )
    assert outcome.steps == kept
    assert len(steps) == failing - 1
    if kept:
        np.testing.assert_array_equal(outcome.weights["scale"], engine.history[kept])
    else:
        assert outcome.weights is None


def test_an_engine_that_fails_is_not_hidden() -> None:
    class Failing(FakeFinetuneEngine):
        def step(self, inputs, target, learning_rate):  # type: ignore[no-untyped-def]
            raise EngineError("out of memory")

    with pytest.raises(EngineError, match="out of memory"):
        run(Failing())


class ScriptedEngine(FakeFinetuneEngine):
    """Return given losses."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.script = list(losses)

    def step(self, inputs, target, learning_rate):  # type: ignore[no-untyped-def]
        super().step(inputs, target, learning_rate)
        return self.script.pop(0)


NOISE = np.random.default_rng(0).normal(0, 0.03, 20)


@pytest.mark.parametrize(
    ("losses", "has_risen"),
    [
        (np.linspace(0.1, 0.4, 20), True),
        (0.2 + NOISE + np.linspace(0, 0.2, 20), True),
        (0.2 + NOISE, False),
        (0.2 + NOISE - np.linspace(0, 0.1, 20), False),
        ([0.2] * 10 + [0.21] * 10, False),
        ([0.2] * 10 + [0.3] * 10, True),
        (10.0 ** np.arange(-2, 18), True),
        ([0.2, 0.21, 0.3, 4.0, 5.0, 9.0, math.nan], True),
        ([0.07, 9e5, 7e14, 3e24, math.inf], True),
        ([0.2, 0.1, 0.08, 0.06, 0.05, math.nan], False),
    ],
)
def test_weights_whose_loss_rose_are_not_returned(
    losses: list[float] | np.ndarray, has_risen: bool
) -> None:
    outcome, _ = run(ScriptedEngine([*map(float, losses)]))
    assert (outcome.weights is None) == has_risen
    assert ("the loss rose from" in outcome.note) == has_risen
    assert outcome.note.endswith("the common weights are used") == has_risen
