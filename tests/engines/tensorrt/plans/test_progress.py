from __future__ import annotations

import itertools
import types
from typing import Any

import pytest

from mpn.engines.tensorrt.plans.progress import BuildWatch, PhaseTree, PlanProgress


def test_nested_phases_are_parts_of_the_outer_step() -> None:
    tree = PhaseTree()
    assert tree.fraction == 0
    tree.start("build", None, 4)
    tree.step("build", 0)
    assert tree.fraction == pytest.approx(0.25)
    tree.start("optimise", "build", 2)
    tree.step("optimise", 0)
    assert tree.fraction == pytest.approx(0.25 + 0.5 / 4)
    tree.start("time", "optimise", 5)
    tree.step("time", 4)
    assert tree.fraction == pytest.approx(0.5)
    tree.finish("time")
    tree.finish("optimise")
    assert tree.fraction == pytest.approx(0.5), "it never falls"
    tree.step("build", 3)
    tree.finish("build")
    assert tree.fraction == 1.0


def test_phases_of_unknown_parents_and_steps_do_no_harm() -> None:
    tree = PhaseTree()
    tree.step("nobody", 3)
    tree.finish("nobody")
    tree.start("orphan", "nobody", 0)
    tree.step("orphan", 7)
    assert tree.fraction == 1.0


def make_monitor(watch: BuildWatch) -> Any:
    module = types.SimpleNamespace(IProgressMonitor=type("IProgressMonitor", (), {}))
    return watch.monitor(module)


def test_the_time_left_follows_from_the_time_taken() -> None:
    seen: list[PlanProgress] = []
    clock = itertools.count(0.0, 10.0)
    monitor = make_monitor(BuildWatch("osvos", seen.append, lambda: next(clock)))
    monitor.phase_start("build", "", 4)
    assert monitor.step_complete("build", 0) is True
    monitor.phase_finish("build")
    assert [progress.fraction for progress in seen] == [0.0, 0.25, 1.0]
    assert [progress.eta_s for progress in seen] == [None, pytest.approx(60.0), 0.0]
    assert {progress.role for progress in seen} == {"osvos"}
    assert seen[1].phase == "build"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("broken display")])
def test_callback_error_cancels_and_is_raised_after(error: BaseException) -> None:
    """The library calls through C++ that lets no exception pass."""

    def raises(progress: PlanProgress) -> None:
        raise error

    watch = BuildWatch("flow", raises)
    monitor = make_monitor(watch)
    monitor.phase_start("build", None, 2)
    assert monitor.step_complete("build", 0) is False
    with pytest.raises(type(error)):
        watch.raise_callback_error()


def test_without_a_callback_nothing_is_raised() -> None:
    watch = BuildWatch("flow", None)
    assert make_monitor(watch).step_complete("build", 0) is True
    watch.raise_callback_error()
