from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from mpn.cuda.device import CudaDevice
from mpn.engines.base import DeviceEngine
from mpn.engines.directory.manifest import load_manifest
from mpn.engines.onnxruntime.cuda_engine import OrtCudaEngine
from mpn.engines.onnxruntime.engine import OrtEngine
from mpn.engines.onnxruntime.reweight import FinetunedDeviceEngine, open_finetuned_engine
from mpn.engines.open import open_engines
from mpn.engines.weights import read_weights
from mpn.errors import BackendError, EngineError
from mpn.types import Float32Array
from tests.builders.finetune_dirs import make_adapt_dir
from tests.emulation.driver import FakeDriver, install_driver


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapt_dir(tmp_path_factory.mktemp("cuda") / "engines")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return install_driver(monkeypatch)


class FakeBinding:
    def __init__(self) -> None:
        self.bound: dict[str, dict[str, Any]] = {}
        self.inputs: list[str] = []

    def bind_input(self, name: str, **given: Any) -> None:
        self.inputs.append(name)
        self.bound[name] = given

    def bind_output(self, name: str, **given: Any) -> None:
        self.bound[name] = given


@pytest.fixture
def ort(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver) -> Any:
    """Make a fake onnxruntime whose CUDA provider computes on the CPU."""
    module = types.ModuleType("onnxruntime")
    real = onnxruntime.InferenceSession
    module.sessions = []  # type: ignore[attr-defined]
    module.fails = False  # type: ignore[attr-defined]

    class Session:
        def __init__(self, path: str, options: Any, providers: Any, enable_fallback: int) -> None:
            module.sessions.append(self)
            self.cuda = next((p[1] for p in providers if isinstance(p, tuple)), None)
            self._running = [p if isinstance(p, str) else p[0] for p in providers]
            self._real = real(path, options, providers=["CPUExecutionProvider"])
            self.get_inputs, self.get_outputs = self._real.get_inputs, self._real.get_outputs
            self.run = self._real.run
            self.bindings: list[FakeBinding] = []

        def get_providers(self) -> list[str]:
            return self._running

        def disable_fallback(self) -> None: ...

        def io_binding(self) -> FakeBinding:
            self.bindings.append(FakeBinding())
            return self.bindings[-1]

        def run_with_iobinding(self, binding: FakeBinding, options: Any) -> None:
            if module.fails:
                raise RuntimeError("CUDNN_STATUS_EXECUTION_FAILED\n at line 3")
            assert options.entries == {"disable_synchronize_execution_providers": "1"}
            assert self.cuda is not None

            def compute() -> None:
                arrays = {}
                for name, given in binding.bound.items():
                    assert (given["device_type"], given["device_id"]) == ("cuda", 0)
                    shape, dtype = tuple(given["shape"]), given["element_type"]
                    arrays[name] = driver.array(given["buffer_ptr"], shape, dtype)
                feeds = {name: arrays[name].copy() for name in binding.inputs}
                outputs = [name for name in arrays if name not in feeds]
                for name, values in zip(outputs, self._real.run(outputs, feeds), strict=True):
                    arrays[name][...] = values

            driver.enqueue(int(self.cuda["user_compute_stream"]), compute)

    class RunOptions:
        def __init__(self) -> None:
            self.entries: dict[str, str] = {}

        def add_run_config_entry(self, key: str, value: str) -> None:
            self.entries[key] = value

    module.InferenceSession = Session  # type: ignore[attr-defined]
    module.RunOptions = RunOptions  # type: ignore[attr-defined]
    module.SessionOptions = onnxruntime.SessionOptions  # type: ignore[attr-defined]
    module.ExecutionMode = onnxruntime.ExecutionMode  # type: ignore[attr-defined]
    module.get_available_providers = lambda: [  # type: ignore[attr-defined]
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return module


@pytest.fixture
def engine(directory: Path, ort: Any) -> Iterator[OrtCudaEngine]:
    spec = load_manifest(directory).spec("propagation")
    with OrtCudaEngine(directory / "propagation.onnx", spec, CudaDevice(), threads=1) as opened:
        yield opened


def crops(objects: int, seed: int = 0) -> dict[str, Float32Array]:
    shape = (objects, 4, 65, 65)
    return {"rgb_prob": np.random.default_rng(seed).standard_normal(shape, np.float32)}


def expected(directory: Path, inputs: dict[str, Float32Array]) -> Any:
    spec = load_manifest(directory).spec("propagation")
    with OrtEngine(directory / "propagation.onnx", spec, threads=1) as own:
        return own.run(inputs)["prob"]


@pytest.mark.parametrize("objects", [1, 4, 6])
def test_host_arrays_match_the_cpu(engine: OrtCudaEngine, directory: Path, objects: int) -> None:
    assert isinstance(engine, DeviceEngine)
    assert (engine.backend, engine.supports_graph_capture) == ("cuda", False)
    for seed in (0, 1):
        inputs = crops(objects, seed)
        np.testing.assert_array_equal(engine.run(inputs)["prob"], expected(directory, inputs))


def test_ort_cuda_session_uses_engine_stream_in_float32(
    engine: OrtCudaEngine, ort: Any, driver: FakeDriver
) -> None:
    (session,) = ort.sessions
    assert session.cuda["use_tf32"] == "0"
    assert session.cuda["device_id"] == "0"
    assert int(session.cuda["user_compute_stream"]) in driver._streams


def test_ort_cuda_runs_in_stream_order_without_waiting(
    engine: OrtCudaEngine, directory: Path, driver: FakeDriver, ort: Any
) -> None:
    device = CudaDevice()
    stream = device.address
    inputs = crops(2)
    given = device.empty(inputs["rgb_prob"].shape, np.float32)
    engine.prepare(stream, 2)
    driver.log.clear()
    # The upload is on the caller's stream: a run that did not wait for it would miss it.
    device.upload(inputs["rgb_prob"], given)
    outputs = engine.infer_on_device({"rgb_prob": given}, stream)
    assert "cuStreamSynchronize" not in driver.log
    got = device.download(outputs["prob"])  # on the caller's stream, which waits for the run
    np.testing.assert_array_equal(got, expected(directory, inputs))
    assert len(ort.sessions[0].bindings) == 1, "bound once for two objects"


def test_cuda_engine_reports_no_capture(engine: OrtCudaEngine) -> None:
    device = CudaDevice()
    with pytest.raises(EngineError, match="cannot be captured into a CUDA graph"):
        device.capture(lambda: engine.enqueue(device.address) and None)


def test_a_failing_run_is_one_line(engine: OrtCudaEngine, ort: Any) -> None:
    ort.fails = True
    with pytest.raises(EngineError, match=r"engine failed on cuda: CUDNN_STATUS_EXEC.* at line 3"):
        engine.run(crops(1))


def test_closed_engine_raises_and_frees_its_memory(
    engine: OrtCudaEngine, driver: FakeDriver
) -> None:
    engine.run(crops(1))
    streams = driver.open_streams
    engine.close()
    engine.close()
    assert (driver.allocated, driver.open_streams) == (0, streams - 1)
    with pytest.raises(EngineError, match="is closed"):
        engine.run(crops(1))


def test_ort_cuda_provider_fallback_is_refused(
    directory: Path, ort: Any, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        ort.InferenceSession, "get_providers", lambda self: ["CPUExecutionProvider"]
    )
    spec, device = load_manifest(directory).spec("propagation"), CudaDevice()
    with pytest.raises(BackendError, match="onnxruntime would run CPUExecutionProvider"):
        OrtCudaEngine(directory / "propagation.onnx", spec, device)
    assert (driver.allocated, driver.open_streams) == (0, 1)


def test_a_graph_of_another_role_is_refused(directory: Path, ort: Any, driver: FakeDriver) -> None:
    spec = load_manifest(directory).spec("propagation")
    with pytest.raises(EngineError, match="is not the propagation engine"):
        OrtCudaEngine(directory / "osvos.onnx", spec, CudaDevice())


def test_an_engine_directory_opens_on_it(
    directory: Path, ort: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with open_engines(directory) as engines:
        assert engines.backend == "cuda"
        assert engines.device is not None
        inputs = crops(1)
        got = engines.propagation.run(inputs)["prob"]
        np.testing.assert_array_equal(got, expected(directory, inputs))


def test_exchanged_weights_run_on_device_memory_too(directory: Path, ort: Any) -> None:
    manifest = load_manifest(directory)
    entry = manifest.roles["osvos"].adapt
    assert entry is not None
    weights = {
        name: values * np.float32(1.5)
        for name, values in read_weights(directory, entry.tensors).items()
    }
    image = {"image": np.random.default_rng(0).standard_normal((1, 3, 64, 96), np.float32)}
    device = CudaDevice()
    with (
        open_finetuned_engine(directory, manifest, "osvos", weights, backend="cuda") as engine,
        open_finetuned_engine(directory, manifest, "osvos", weights, backend="cpu") as on_cpu,
    ):
        assert isinstance(engine, FinetunedDeviceEngine)
        assert isinstance(engine, DeviceEngine)
        want = on_cpu.run(image)["prob"]
        np.testing.assert_array_equal(engine.run(image)["prob"], want)
        engine.prepare(device.address)
        device.upload(image["image"], engine.buffers().inputs["image"])
        got = device.download(engine.enqueue(device.address).outputs["prob"])
        np.testing.assert_array_equal(got, want)
