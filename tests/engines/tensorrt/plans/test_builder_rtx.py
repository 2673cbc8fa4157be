"""NVIDIA's own builder: TensorRT for RTX parses and builds without a GPU.

Without the library these are skipped; MPN_REQUIRE_RTX=1 (set in CI) makes that a failure. Nothing
here runs a plan: that takes a GPU.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mpn.cuda.device import gpu_unavailable_reason
from mpn.engines.directory.manifest import load_manifest
from mpn.engines.open import default_engine_dir
from mpn.engines.spec import Role
from mpn.engines.tensorrt.api import TrtApi, load_trt
from mpn.engines.tensorrt.open import build_plans
from mpn.engines.tensorrt.plans.builder import BuiltPlan, ParsedNetwork, build_plan
from mpn.engines.tensorrt.plans.options import BuildOptions
from mpn.engines.tensorrt.plans.progress import PlanProgress
from mpn.engines.tensorrt.plans.record import load_record
from mpn.errors import BackendError, EngineError, MissingExtraError
from tests.builders.engine_dirs import make_engine_dir
from tests.builders.finetune_dirs import make_adapt_dir


@pytest.fixture(scope="module")
def api() -> TrtApi:
    return rtx_or_skip()


def rtx_or_skip() -> TrtApi:
    try:
        return load_trt("tensorrt-rtx")
    except (MissingExtraError, BackendError) as error:
        if os.environ.get("MPN_REQUIRE_RTX") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapt_dir(tmp_path_factory.mktemp("rtx") / "engines", precision=request.param)


def built(
    api: TrtApi, directory: Path, role: Role, options: BuildOptions | None = None
) -> BuiltPlan:
    manifest = load_manifest(directory)
    entry = manifest.roles[role]
    return build_plan(
        api,
        directory / entry.onnx,
        manifest.spec(role),
        precision=entry.precision,
        options=options,
    )


@pytest.mark.parametrize("role", ["propagation", "osvos"])
def test_tiny_networks_of_both_precisions_parse_and_build(
    api: TrtApi, directory: Path, role: Role
) -> None:
    plan = built(api, directory, role)
    entry = load_manifest(directory).roles[role]
    count = plan.precision.network
    assert (count.arithmetic, count.half_arithmetic) == (entry.total_weights, entry.half_weights)
    assert len(plan.data) > 1000
    assert plan.precision.engine is None
    assert plan.timing_cache is None


def test_an_input_that_is_rounded_anyway_is_taken_in_half(api: TrtApi, directory: Path) -> None:
    options = BuildOptions(half_inputs=True)
    is_half = load_manifest(directory).roles["propagation"].precision == "fp16"
    plan = built(api, directory, "propagation", options)
    assert plan.half_inputs == (("rgb_prob",) if is_half else ())
    assert built(api, directory, "propagation").half_inputs == ()


def test_every_trained_weight_can_be_marked_by_its_name(api: TrtApi, directory: Path) -> None:
    """Refittable plans need a GPU to build; this test checks the names only."""
    manifest = load_manifest(directory)
    for role, entry in manifest.roles.items():
        assert entry.adapt is not None
        builder = api.module.Builder(api.logger)
        path = directory / entry.onnx
        network = ParsedNetwork(api, builder, path, manifest.spec(role))
        names = [tensor.name for tensor in entry.adapt.tensors if tensor.scopes]
        network.mark_refittable(names)
        for name in names:
            assert network.definition.are_weights_marked_refittable(name)
        with pytest.raises(EngineError, match=r"weight 'no\.such' .* cannot be marked"):
            network.mark_refittable(["no.such"])


def test_flow_and_three_inputs_build(api: TrtApi, tmp_path: Path) -> None:
    directory = make_engine_dir(tmp_path, with_flow=True, with_osvos=True, flow_px=(1.0, -2.0))
    for role in ("flow", "propagation", "osvos"):
        assert len(built(api, directory, role).data) > 1000  # type: ignore[arg-type]


@pytest.mark.parametrize("role", ["propagation", "osvos"])
def test_shipped_engines_parse_with_precision_and_weights(api: TrtApi, role: Role) -> None:
    directory = default_engine_dir()
    manifest = load_manifest(directory)
    entry = manifest.roles[role]
    builder = api.module.Builder(api.logger)
    network = ParsedNetwork(api, builder, directory / entry.onnx, manifest.spec(role))
    count = network.layer_count()
    assert (count.arithmetic, count.half_arithmetic) == (entry.total_weights, entry.half_weights)
    assert entry.adapt is not None
    network.mark_refittable([tensor.name for tensor in entry.adapt.tensors if tensor.scopes])


def test_the_engines_that_ship_build_and_are_cached(
    api: TrtApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gpu_unavailable_reason() is None:
        pytest.skip("this machine has a GPU: gpu_check builds on it")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory = tmp_path / "engines"
    shutil.copytree(default_engine_dir(), directory)
    seen: list[PlanProgress] = []
    plans = build_plans(directory, backend="tensorrt-rtx", on_progress=seen.append)
    assert {plan.record.key.role for plan in plans} == set(load_manifest(directory).roles)
    for plan in plans:
        assert plan.was_built
        assert plan.path.name.startswith(f"{plan.record.key.role}-tensorrt-rtx-ampere+-")
        assert load_record(plan.path) == plan.record
        own = [progress for progress in seen if progress.role == plan.record.key.role]
        fractions = [progress.fraction for progress in own]
        assert fractions == sorted(fractions)
        assert (fractions[0], fractions[-1]) == (0.0, 1.0)
        assert len(set(fractions)) > 10, "NVIDIA's phases become steps of one bar"
    again = build_plans(directory, backend="tensorrt-rtx")
    assert [plan.data for plan in again] == [plan.data for plan in plans]
    assert not any(plan.was_built for plan in again)


def test_library_error_is_one_line_with_its_message(api: TrtApi, directory: Path) -> None:
    manifest = load_manifest(directory)
    path = directory / manifest.roles["osvos"].onnx
    broken = path.with_name("broken.onnx")
    broken.write_bytes(path.read_bytes().replace(b"Sigmoid", b"Sygmoid"))
    with pytest.raises(
        EngineError, match=r"broken\.onnx cannot be parsed by TensorRT for RTX"
    ) as e:
        build_plan(api, broken, manifest.spec("osvos"), precision="fp32")
    assert "Plugin not found" in str(e.value)
    assert "at node Sygmoid" in str(e.value)
    assert "\n" not in str(e.value)
    broken.unlink()
    with pytest.raises(EngineError, match="cannot be parsed"):
        build_plan(api, broken, manifest.spec("osvos"), precision="fp32")


def test_error_of_the_callback_cancels_the_build(api: TrtApi, directory: Path) -> None:
    """An exception that reached NVIDIA's C++ would end the process."""
    manifest = load_manifest(directory)

    def interrupt(progress: PlanProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_plan(
            api,
            directory / "osvos.onnx",
            manifest.spec("osvos"),
            precision=manifest.roles["osvos"].precision,
            on_progress=interrupt,
        )
