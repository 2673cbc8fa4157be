from __future__ import annotations

import json
import sys
import types
from collections import deque
from pathlib import Path
from typing import Any

import pytest

import tests.emulation.tensorrt as fakes
from mpn.engines.tensorrt import api as trt_api
from mpn.engines.tensorrt.api import TrtApi, TrtBackend, load_trt
from mpn.errors import BackendError, EngineError, MissingExtraError
from tests.emulation.tensorrt import Flavour, install_tensorrt

API = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text())["versions"]
"""Names in the real bindings, by version."""
REAL: dict[Flavour, tuple[str, ...]] = {
    "10": ("10.14.1",),
    "11": ("11.0.0", "11.4.0"),
    "rtx": ("rtx-1.7.1",),
}
FAKED = {
    "_Builder": "Builder",
    "_INetworkDefinition": "INetworkDefinition",
    "_IOptimizationProfile": "IOptimizationProfile",
    "_IBuilderConfig": "IBuilderConfig",
    "_ITimingCache": "ITimingCache",
    "_OnnxParser": "OnnxParser",
    "_ParserError": "ParserError",
    "_Runtime": "Runtime",
    "_ICudaEngine": "ICudaEngine",
    "_Inspector": "EngineInspector",
    "_IRuntimeConfig": "IRuntimeConfig",
    "_IExecutionContext": "IExecutionContext",
    "_Refitter": "Refitter",
    "_ILogger": "ILogger",
    "_IProgressMonitor": "IProgressMonitor",
}
ONLY_IN_RTX = {
    "IBuilderConfig": {"set_compute_capability"},
    "IRuntimeConfig": set(),
}
OF_THE_TESTS = {"trt", "driver", "behaviour", "flavour"}
ENUMS = (
    "BuilderFlag",
    "NetworkDefinitionCreationFlag",
    "ProfilingVerbosity",
    "LayerInformationFormat",
    "MemoryPoolType",
    "HardwareCompatibilityLevel",
    "ExecutionContextAllocationStrategy",
    "DataType",
    "TensorIOMode",
    "LayerType",
)
RTX_ONLY = {
    "IBuilderConfig": ("num_compute_capabilities", "set_compute_capability"),
    "IRuntimeConfig": (
        "create_runtime_cache",
        "get_runtime_cache",
        "set_runtime_cache",
        "cuda_graph_strategy",
        "dynamic_shapes_kernel_specialization_strategy",
    ),
    "IRuntimeCache": ("deserialize", "serialize"),
    "IExecutionContext": ("is_stream_capturable",),
    "BuilderFlag": ("REQUIRE_USER_ALLOCATION",),
    "ComputeCapability": ("SM75",),
    "CudaGraphStrategy": ("DISABLED",),
    "DynamicShapesKernelSpecializationStrategy": ("EAGER",),
}
PROPERTIES = {
    "IBuilderConfig": (
        "profiling_verbosity",
        "builder_optimization_level",
        "hardware_compatibility_level",
        "progress_monitor",
    ),
    "Runtime": ("engine_host_code_allowed",),
    "ICudaEngine": ("device_memory_size_v2", "refittable", "num_io_tensors"),
    "INetworkDefinition": ("num_inputs", "num_outputs", "num_layers"),
    "OnnxParser": ("num_errors",),
    "ITensor": ("name", "shape", "dtype"),
    "ILayer": ("type", "num_inputs", "num_outputs", "get_input", "get_output_type"),
    "Weights": ("dtype", "size"),
    "IProgressMonitor": ("phase_start", "step_complete", "phase_finish"),
}


def names_in(version: str, of: str) -> set[str]:
    return set(API[version][of].split())


@pytest.mark.parametrize("flavour", ["10", "11", "rtx"])
def test_the_fake_has_nothing_that_the_real_bindings_lack(flavour: Flavour) -> None:
    """So code that runs on the fake names nothing that a real library has not."""
    for version in REAL[flavour]:
        for fake, real in FAKED.items():
            public = {
                name for name in vars(getattr(fakes, fake)) if not name.startswith("_")
            } - OF_THE_TESTS
            if flavour != "rtx":
                public -= ONLY_IN_RTX.get(real, set())
            assert public <= names_in(version, real), (version, real)
        module = fakes.make_tensorrt(flavour, None)
        for enum in ENUMS:
            assert set(getattr(module, enum).__members__) <= names_in(version, enum), (
                version,
                enum,
            )


@pytest.mark.parametrize("version", [v for versions in REAL.values() for v in versions])
def test_attributes_and_calls_back_are_in_every_version(version: str) -> None:
    for of, names in PROPERTIES.items():
        assert set(names) <= names_in(version, of), of


def test_rtx_only_names_exist_in_rtx_bindings_only() -> None:
    for of, names in RTX_ONLY.items():
        assert set(names) <= names_in("rtx-1.7.1", of), of
        for version in (*REAL["10"], *REAL["11"]):
            assert not set(names) & set(API[version].get(of, "").split()), (version, of)


def test_removed_names_are_absent_in_newer_versions() -> None:
    """Control: the lists are of real versions, in which these are gone."""
    assert "FP16" in names_in("10.14.1", "BuilderFlag")
    assert "FP16" not in names_in("11.4.0", "BuilderFlag")
    assert "device_memory_size" not in names_in("11.4.0", "ICudaEngine")


@pytest.mark.parametrize(
    ("flavour", "backend", "title", "bit"),
    [
        ("10", "tensorrt", "TensorRT 10.14.1.48", 2),
        ("11", "tensorrt", "TensorRT 11.4.0.106", 1),
        ("rtx", "tensorrt-rtx", "TensorRT for RTX 1.7.1.116", 1),
    ],
)
def test_networks_are_strongly_typed_by_the_versions_own_bit(
    monkeypatch: pytest.MonkeyPatch, flavour: Flavour, backend: TrtBackend, title: str, bit: int
) -> None:
    install_tensorrt(monkeypatch, flavour, None)
    api = load_trt(backend)
    assert (api.title, api.strongly_typed(), api.is_rtx) == (title, bit, flavour == "rtx")


def test_a_refusal_is_an_error_in_the_librarys_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    install_tensorrt(monkeypatch, "11", None)
    api = load_trt("tensorrt")
    severity = api.module.ILogger.Severity
    api.logger.log(severity.WARNING, "never mind")
    api.logger.log(severity.ERROR, "out of\n tactics")
    api.logger.log(severity.ERROR, "out of\n tactics")
    with pytest.raises(EngineError) as caught:
        api.check(False, "building")
    assert str(caught.value) == "building failed in TensorRT 11.4.0.106: out of tactics"
    with pytest.raises(EngineError, match="it gave no reason"):
        api.check(None, "building")
    api.logger.log(severity.ERROR, "an old complaint")
    assert api.check(0, "an index of 0") == 0
    assert api.pop_errors() == "it gave no reason"


@pytest.mark.parametrize("version", ["10.13.3.9", "8.6.1", "dev"])
def test_a_version_that_is_too_old_is_refused(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    module = install_tensorrt(monkeypatch, "10", None)
    module.__version__ = version
    with pytest.raises(BackendError, match=rf"tensorrt {version} is too old, 10\.14 or newer"):
        load_trt("tensorrt")


def test_trt_broken_library_differs_from_missing_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingExtraError, match=r"\[rtx\]"):
        load_trt("tensorrt-rtx")
    monkeypatch.setattr(trt_api, "import_or_explain", broken)
    with pytest.raises(BackendError, match=r"cannot be loaded \(libnvinfer\.so\.11.*\[tensorrt\]"):
        load_trt("tensorrt")


def test_types_at_the_edges_are_float_or_half(monkeypatch: pytest.MonkeyPatch) -> None:
    module = install_tensorrt(monkeypatch, "11", None)
    api = load_trt("tensorrt")
    assert api.numpy_dtype(module.DataType.HALF) == "float16"
    with pytest.raises(EngineError, match="float or half, got"):
        api.numpy_dtype(module.DataType.INT64)


def test_title_names_product_and_version() -> None:
    api = TrtApi("tensorrt", types.ModuleType("x"), "11.4.0.106", None, deque())
    assert api.title == "TensorRT 11.4.0.106"
