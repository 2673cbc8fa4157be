from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mpn.cuda.device import CudaDevice
from mpn.engines.directory.manifest import Manifest, load_manifest
from mpn.engines.spec import Precision, Role
from mpn.engines.tensorrt.api import TrtApi, TrtBackend, load_trt
from mpn.engines.tensorrt.plans.builder import BuiltPlan, build_plan
from mpn.engines.tensorrt.plans.options import BuildOptions
from mpn.engines.tensorrt.plans.progress import PlanProgress
from mpn.errors import BackendError, EngineError
from tests.builders.finetune_dirs import make_adapt_dir
from tests.emulation.driver import FakeDriver, install_driver
from tests.emulation.tensorrt import Flavour, install_tensorrt

BACKEND_OF: dict[Flavour, TrtBackend] = {
    "10": "tensorrt",
    "11": "tensorrt",
    "rtx": "tensorrt-rtx",
}


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapt_dir(tmp_path_factory.mktemp("build") / "engines", precision=request.param)


@pytest.fixture(scope="module")
def manifest(directory: Path) -> Manifest:
    return load_manifest(directory)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return install_driver(monkeypatch)


@pytest.fixture(params=["10", "11", "rtx"])
def api(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, driver: FakeDriver
) -> TrtApi:
    install_tensorrt(monkeypatch, request.param, driver)
    return load_trt(BACKEND_OF[request.param])


def built(
    api: TrtApi,
    directory: Path,
    manifest: Manifest,
    role: Role = "propagation",
    *,
    precision: Precision | None = None,
    without_gpu: bool = False,
    **given: Any,
) -> BuiltPlan:
    entry = manifest.roles[role]
    return build_plan(
        api,
        directory / entry.onnx,
        manifest.spec(role),
        precision=precision or entry.precision,
        device=None if without_gpu else CudaDevice(),
        **given,
    )


def header(plan: BuiltPlan) -> Any:
    size = int.from_bytes(plan.data[:8], "little")
    return json.loads(plan.data[8 : 8 + size])


def test_a_plan_is_built_and_its_layers_are_counted(
    api: TrtApi, directory: Path, manifest: Manifest
) -> None:
    plan = built(api, directory, manifest)
    entry = manifest.roles["propagation"]
    for count in (plan.precision.network, plan.precision.engine):
        assert count is not None
        assert count.arithmetic == entry.total_weights
        assert (count.half_arithmetic > 0) == (entry.precision == "fp16")
    assert plan.precision.network.half_arithmetic >= entry.half_weights
    assert header(plan)["profiles"] == [
        {"rgb_prob": [[1, 4, 65, 65]] * 3},
        {"rgb_prob": [[2, 4, 65, 65], [3, 4, 65, 65], [4, 4, 65, 65]]},
    ]
    assert header(plan)["detailed"], "without details the layer report tells no types"
    assert header(plan)["tf32"] is False
    assert plan.build_s >= 0


def test_fixed_sizes_have_no_profile(api: TrtApi, directory: Path, manifest: Manifest) -> None:
    assert header(built(api, directory, manifest, "osvos"))["profiles"] == []


def test_half_requested_but_not_in_graph_raises(
    api: TrtApi, directory: Path, manifest: Manifest
) -> None:
    if manifest.roles["propagation"].precision == "fp16":
        built(api, directory, manifest, precision="fp16")
        return
    with pytest.raises(EngineError, match="should be fp16, but all 2 convolutions"):
        built(api, directory, manifest, precision="fp16")


def test_builder_half_inputs_only_if_equivalent(
    api: TrtApi, directory: Path, manifest: Manifest
) -> None:
    plan = built(api, directory, manifest, options=BuildOptions(half_inputs=True))
    is_half = manifest.roles["propagation"].precision == "fp16"
    assert plan.half_inputs == (("rgb_prob",) if is_half else ())


def test_trained_weights_are_marked_and_no_others(
    api: TrtApi, directory: Path, manifest: Manifest
) -> None:
    names = ["decoder.conv.weight", "decoder.conv.bias"]
    plan = built(
        api,
        directory,
        manifest,
        options=BuildOptions(refittable=True),
        trained_weights=names,
    )
    assert header(plan)["refittable"] == names
    assert header(built(api, directory, manifest))["refittable"] is None
    with pytest.raises(EngineError, match=r"weight 'no\.such' .* cannot be marked"):
        built(
            api,
            directory,
            manifest,
            options=BuildOptions(refittable=True),
            trained_weights=["no.such"],
        )


def test_only_tensorrt_keeps_a_timing_cache(
    api: TrtApi, directory: Path, manifest: Manifest
) -> None:
    first = built(api, directory, manifest).timing_cache
    if api.is_rtx:  # it would make the builder require a GPU
        assert first is None
        return
    assert first == b"learnt;"
    assert built(api, directory, manifest, timing_cache=first).timing_cache == b"learnt;learnt;"
    other = built(api, directory, manifest, timing_cache=b"other GPU").timing_cache
    assert other == b"learnt;"


def test_options_reach_the_builder(api: TrtApi, directory: Path, manifest: Manifest) -> None:
    options = BuildOptions(
        tf32=True, hardware_compatible=True, optimization_level=1, workspace_mib=3
    )
    plan = built(api, directory, manifest, options=options)
    assert header(plan)["tf32"] is True
    assert header(plan)["portable"] == (0 if api.is_rtx else 1), "plans for RTX are portable anyway"
    assert f"workspace {3 << 20}" in api.module.behaviour.log


def test_turing_has_separate_plans(
    monkeypatch: pytest.MonkeyPatch, directory: Path, manifest: Manifest
) -> None:
    driver = install_driver(monkeypatch, name="T4", capability=(7, 5))
    module = install_tensorrt(monkeypatch, "rtx", driver)
    built(load_trt("tensorrt-rtx"), directory, manifest)
    assert "capability 75" in module.behaviour.log


def test_progress_is_reported_and_can_cancel(
    api: TrtApi, directory: Path, manifest: Manifest
) -> None:
    seen: list[PlanProgress] = []
    built(api, directory, manifest, on_progress=seen.append)
    assert seen[-1].fraction == 1.0
    assert [progress.role for progress in seen] == ["propagation"] * len(seen)

    def interrupt(progress: PlanProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built(api, directory, manifest, on_progress=interrupt)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("create_network", "making an empty network failed"),
        ("parse", r"propagation\.onnx cannot be parsed .* Assertion failed.*node_of_trouble"),
        ("create_builder_config", "making a builder configuration failed"),
        ("add_optimization_profile", "refuses the profile of"),
        ("build_serialized_network", r"building the propagation plan from .* is set to fail"),
        ("deserialize_cuda_engine", "reading the plan back failed"),
        ("create_engine_inspector", "making an engine inspector failed"),
        ("create_timing_cache", "takes no timing cache"),
    ],
)
def test_everything_the_library_may_refuse_is_an_error(
    api: TrtApi, directory: Path, manifest: Manifest, method: str, says: str
) -> None:
    if method == "create_timing_cache" and api.is_rtx:
        return
    api.module.behaviour.refuse.add(method)
    with pytest.raises(EngineError, match=says):
        built(api, directory, manifest)


def test_a_graph_of_another_role_is_refused(
    api: TrtApi, directory: Path, manifest: Manifest
) -> None:
    entry = manifest.roles["osvos"]
    with pytest.raises(EngineError, match=r"osvos\.onnx is not the propagation engine.*'image'"):
        build_plan(
            api,
            directory / entry.onnx,
            manifest.spec("propagation"),
            precision=entry.precision,
            device=CudaDevice(),
        )


def test_only_rtx_builds_without_a_gpu_and_then_nothing_to_refit(
    monkeypatch: pytest.MonkeyPatch, directory: Path, manifest: Manifest
) -> None:
    install_tensorrt(monkeypatch, "rtx", None)
    api = load_trt("tensorrt-rtx")
    plan = built(api, directory, manifest, without_gpu=True)
    assert plan.precision.engine is None
    assert "needs a GPU" in plan.precision.engine_note
    with pytest.raises(BackendError, match="on a GPU only"):
        built(api, directory, manifest, without_gpu=True, options=BuildOptions(refittable=True))
    install_tensorrt(monkeypatch, "11", None)
    with pytest.raises(BackendError, match="tensorrt-rtx, which needs none"):
        built(load_trt("tensorrt"), directory, manifest, without_gpu=True)


def test_failing_builder_raises_with_library_message(
    monkeypatch: pytest.MonkeyPatch, driver: FakeDriver, directory: Path, manifest: Manifest
) -> None:
    install_tensorrt(monkeypatch, "11", None)
    with pytest.raises(BackendError, match=r"no builder here .*initialization failure.*nvidia-smi"):
        built(load_trt("tensorrt"), directory, manifest)
