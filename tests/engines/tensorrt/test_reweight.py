from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpn.engines import open as adapted_module
from mpn.engines.base import DeviceEngine
from mpn.engines.directory.manifest import load_manifest
from mpn.engines.onnxruntime import reweight as swap_module
from mpn.engines.onnxruntime.reweight import FinetunedEngine, graph_with_weights
from mpn.engines.open import EngineSet, PlanPolicy, open_engines, step_backend
from mpn.engines.spec import Role
from mpn.engines.tensorrt.engine import TrtEngine
from mpn.engines.tensorrt.plans.builder import build_plan
from mpn.engines.tensorrt.plans.store import PlanStore
from mpn.engines.tensorrt.reweight import (
    LIMITS,
    check_against_onnxruntime,
    differences,
    probe_for,
    projection_coefficient,
)
from mpn.engines.weights import read_weights
from mpn.errors import BackendError, EngineError
from mpn.types import Float32Array
from tests.builders.finetune_dirs import ROLES, make_adapt_dir
from tests.emulation.driver import FakeDriver, install_driver
from tests.emulation.engines import fake_engine_set
from tests.emulation.tensorrt import Flavour, install_tensorrt


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapt_dir(tmp_path_factory.mktemp("swap") / "engines", precision=request.param)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDriver:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return install_driver(monkeypatch)


@pytest.fixture(params=["11", "rtx"])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    given: Flavour = request.param
    return given


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver, flavour: Flavour) -> Any:
    return install_tensorrt(monkeypatch, flavour, driver)


@pytest.fixture
def directory(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "engines"))


@pytest.fixture
def engines(module: Any, flavour: Flavour, directory: Path) -> Any:
    backend: Any = "tensorrt-rtx" if flavour == "rtx" else "tensorrt"
    with open_engines(directory, backend=backend) as opened:
        yield opened


def learned(directory: Path, role: Role, factor: float = 1.5) -> dict[str, Float32Array]:
    entry = load_manifest(directory).roles[role].adapt
    assert entry is not None
    own = read_weights(directory, [tensor for tensor in entry.tensors if tensor.scopes])
    return {name: (values * np.float32(factor)) for name, values in own.items()}


def open_object_engine(directory: Path, engines: EngineSet, role: Role, weights: Any) -> Any:
    return adapted_module.open_object_engine(directory, engines, role, weights, threads=1)


def open_finetuned_engine(
    directory: Path, manifest: Any, role: Role, weights: Any
) -> FinetunedEngine:
    return swap_module.open_finetuned_engine(directory, manifest, role, weights, threads=1)


@pytest.mark.parametrize("role", ROLES)
def test_exchanged_weights_match_onnxruntime(
    engines: EngineSet, directory: Path, role: Role
) -> None:
    weights = learned(directory, role)
    probe = probe_for(engines.manifest.spec(role))
    before = engines.engines[role].run(probe)["prob"]
    with (
        open_object_engine(directory, engines, role, weights) as engine,
        open_finetuned_engine(directory, engines.manifest, role, weights) as reference,
    ):
        assert isinstance(engine, DeviceEngine)
        got = engine.run(probe)["prob"]
        np.testing.assert_array_equal(got, reference.run(probe)["prob"])
        assert differences(got, before).max_abs > 0.01, "control: it is another network"
        np.testing.assert_array_equal(engines.engines[role].run(probe)["prob"], before)


def test_objects_get_separate_weights_from_one_plan(engines: EngineSet, directory: Path) -> None:
    probe = probe_for(engines.manifest.spec("osvos"))
    first = open_object_engine(directory, engines, "osvos", learned(directory, "osvos"))
    plans = sorted((directory / "plans").glob("osvos-*.plan"))
    second = open_object_engine(directory, engines, "osvos", learned(directory, "osvos", 0.5))
    assert sorted((directory / "plans").glob("osvos-*.plan")) == plans
    assert len(plans) == 2, "one to run as it is, one to exchange weights in"
    with first, second:
        assert (first.run(probe)["prob"] != second.run(probe)["prob"]).any()


def test_some_weights_alone_leave_the_others(engines: EngineSet, directory: Path) -> None:
    weights = learned(directory, "propagation")
    head = {name: values for name, values in weights.items() if name.startswith("decoder")}
    probe = probe_for(engines.manifest.spec("propagation"))
    with (
        open_object_engine(directory, engines, "propagation", head) as engine,
        open_finetuned_engine(directory, engines.manifest, "propagation", head) as reference,
    ):
        np.testing.assert_array_equal(engine.run(probe)["prob"], reference.run(probe)["prob"])


def built_with(store: PlanStore, role: Role, weights: dict[str, Float32Array]) -> TrtEngine:
    """Build a plan of the graph that holds ``weights``."""
    entry, options = store.manifest.roles[role], PlanPolicy().options
    with graph_with_weights(store.directory, store.manifest, role, weights) as graph:
        built = build_plan(
            store.api,
            graph,
            store.manifest.spec(role),
            precision=entry.precision,
            options=options,
            device=store.device,
        )
    assert store.device is not None
    return TrtEngine(store.api, built.data, store.manifest.spec(role), store.device)


def test_a_fresh_build_with_the_weights_inside_agrees(
    engines: EngineSet, directory: Path, module: Any
) -> None:
    weights = learned(directory, "osvos")
    store = engines.plans
    assert store is not None
    with open_object_engine(directory, engines, "osvos", weights) as engine:
        probe = probe_for(engine.spec)
        got = engine.run(probe)["prob"]
        with built_with(store, "osvos", weights) as fresh:
            np.testing.assert_array_equal(got, fresh.run(probe)["prob"])
        with built_with(store, "osvos", learned(directory, "osvos", 0.5)) as other:  # control
            assert differences(got, other.run(probe)["prob"]).max_abs > 0.01


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        # TensorRT 11.3's known issue: a refittable engine that loses a weight.
        ("drop_bias", "with new weights differs from onnxruntime by"),
        ("ignore_refit", "differs from onnxruntime by|has the same outputs"),
    ],
)
def test_a_refit_that_went_wrong_in_silence_is_an_error(
    engines: EngineSet, directory: Path, module: Any, fault: str, says: str, driver: FakeDriver
) -> None:
    allocated = driver.allocated
    setattr(module.behaviour, fault, True)
    # Of moderate logits: a probability of 0 or 1 hides what its logit is.
    weights = learned(directory, "osvos", 0.05)
    weights["fuse.bias"] = np.full_like(weights["fuse.bias"], 0.7)
    with pytest.raises(EngineError, match=says):
        open_object_engine(directory, engines, "osvos", weights)
    assert driver.allocated == allocated, "the wrong engine is closed"


def test_a_change_within_the_limits_must_still_arrive(
    engines: EngineSet, directory: Path, module: Any
) -> None:
    """Weights that differ little: the limits alone would let the old ones pass."""
    precision = engines.manifest.roles["osvos"].precision
    weights = learned(directory, "osvos", 1.002 if precision == "fp16" else 1.0005)
    probe = probe_for(engines.manifest.spec("osvos"))
    with open_finetuned_engine(directory, engines.manifest, "osvos", weights) as reference:
        change = differences(
            reference.run(probe)["prob"], engines.engines["osvos"].run(probe)["prob"]
        )
    assert 0 < change.mean_abs < LIMITS[precision].mean_abs
    module.behaviour.ignore_refit = True
    with pytest.raises(EngineError, match="has the same outputs"):
        open_object_engine(directory, engines, "osvos", weights)
    module.behaviour.ignore_refit = False
    open_object_engine(directory, engines, "osvos", weights).close()


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("set_named_weights", "setting weight '.*' failed"),
        ("get_missing_weights", r"takes 1 more that were not given, such as 'fused\.bias'"),
        ("refit_cuda_engine", "refitting the weights failed"),
    ],
)
def test_everything_the_library_may_refuse_is_an_error(
    engines: EngineSet, directory: Path, module: Any, method: str, says: str
) -> None:
    module.behaviour.refuse.add(method)
    with pytest.raises(EngineError, match=says):
        open_object_engine(directory, engines, "osvos", learned(directory, "osvos"))


def test_weights_that_do_not_fit_are_refused(engines: EngineSet, directory: Path) -> None:
    weights = learned(directory, "osvos")
    name = next(iter(weights))
    with pytest.raises(EngineError, match=rf"weight '{name}' must be float32"):
        open_object_engine(directory, engines, "osvos", {name: weights[name].ravel()})
    with pytest.raises(EngineError, match="weight 'no' is not one of"):
        open_object_engine(directory, engines, "osvos", {"no": weights[name]})


def test_plan_without_refittable_weights_raises(engines: EngineSet) -> None:
    store = engines.plans
    assert store is not None
    assert store.device is not None
    plan = store.plan("osvos", PlanPolicy().options)
    spec = engines.manifest.spec("osvos")
    with pytest.raises(EngineError, match="build it with refittable=True"):
        TrtEngine(store.api, plan.data, spec, store.device, weights={"a": np.zeros(1)})


def test_no_plan_to_exchange_weights_in_and_none_may_be_built(
    module: Any, flavour: Flavour, directory: Path
) -> None:
    backend: Any = "tensorrt-rtx" if flavour == "rtx" else "tensorrt"
    open_engines(directory, backend=backend).close()
    with (
        open_engines(directory, backend=backend, plans=PlanPolicy(build=False)) as engines,
        pytest.raises(BackendError, match=r"it was built with other options.*--no-build"),
    ):
        open_object_engine(directory, engines, "osvos", learned(directory, "osvos"))


def test_share_of_change_is_robust_to_rounding() -> None:
    rng = np.random.default_rng(0)
    before = rng.random((1, 1, 64, 96), np.float32)
    expected = before + 1e-4 * rng.standard_normal(before.shape, np.float32)
    noise = 1e-4 * rng.standard_normal(before.shape, np.float32)
    assert projection_coefficient(expected + noise, before, expected) == pytest.approx(1, abs=0.1)
    assert projection_coefficient(before + noise, before, expected) == pytest.approx(0, abs=0.1)
    assert projection_coefficient(before + 100 * noise, before, expected) is None
    assert projection_coefficient(before, before, before) is None


def test_engine_with_wrong_outputs_raises(engines: EngineSet, directory: Path) -> None:
    class Nan:
        spec = engines.manifest.spec("osvos")
        backend = "tensorrt"

        def run(self, inputs: Any) -> Any:
            return {"prob": np.full((1, 1, 64, 96), np.nan, np.float32)}

    assert engines.plans is not None
    with pytest.raises(EngineError, match="by inf at most"):
        check_against_onnxruntime(Nan(), engines.plans, "osvos", {})  # type: ignore[arg-type]


def test_cpu_sessions_are_rebuilt(directory: Path) -> None:
    with open_engines(directory, backend="cpu") as engines:
        weights = learned(directory, "osvos")
        with open_object_engine(directory, engines, "osvos", weights) as engine:
            assert isinstance(engine, FinetunedEngine)
            assert not isinstance(engine, DeviceEngine)
            assert engine.backend == "cpu"


@pytest.mark.parametrize(
    ("networks", "has_cuda", "step"),
    [("cpu", True, "cpu"), ("cuda", True, "cuda"), ("tensorrt", True, "cuda"),
     ("tensorrt", False, "cpu"), ("tensorrt-rtx", False, "cpu")],
)  # fmt: skip
def test_the_step_runs_on_cuda_where_onnxruntime_has_it(
    monkeypatch: pytest.MonkeyPatch, networks: str, has_cuda: bool, step: str
) -> None:
    import dataclasses

    monkeypatch.setattr(adapted_module, "why_no_cuda", lambda: None if has_cuda else "no provider")
    engines = dataclasses.replace(fake_engine_set(), backend=networks)
    assert step_backend(engines) == step
