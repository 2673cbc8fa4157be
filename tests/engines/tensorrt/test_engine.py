from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpn.cuda.array import DeviceArray
from mpn.cuda.device import CudaDevice
from mpn.engines.base import DeviceEngine
from mpn.engines.directory.manifest import load_manifest
from mpn.engines.onnxruntime.engine import OrtEngine
from mpn.engines.open import PlanPolicy, open_engines
from mpn.engines.spec import Role, engine_spec
from mpn.engines.tensorrt.api import TrtBackend, load_trt
from mpn.engines.tensorrt.engine import TrtEngine
from mpn.engines.tensorrt.open import open_trt_engine
from mpn.engines.tensorrt.plans.options import BuildOptions
from mpn.engines.tensorrt.plans.store import PlanStore
from mpn.errors import BackendError, EngineError
from mpn.types import Float32Array
from tests.builders.finetune_dirs import make_adapt_dir
from tests.emulation.driver import CUresult, FakeDriver, install_driver
from tests.emulation.tensorrt import Flavour, install_tensorrt
from tests.tolerances import PLAN_HALF_INPUT_ABS

BACKEND_OF: dict[Flavour, TrtBackend] = {
    "10": "tensorrt",
    "11": "tensorrt",
    "rtx": "tensorrt-rtx",
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapt_dir(tmp_path_factory.mktemp("trt") / "engines")


@pytest.fixture(scope="module")
def exported_half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapt_dir(tmp_path_factory.mktemp("trt16") / "engines", precision="fp16")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDriver:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return install_driver(monkeypatch)


class World:
    """A store of plans in a fresh folder, with a fake library."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        exported: Path,
        folder: Path,
        driver: FakeDriver,
        flavour: Flavour,
    ) -> None:
        import shutil

        self.directory = folder / "engines"
        if not self.directory.exists():
            shutil.copytree(exported, self.directory)
        self.module = install_tensorrt(monkeypatch, flavour, driver)
        self.driver = driver
        self.backend = BACKEND_OF[flavour]
        self.manifest = load_manifest(self.directory)
        self.store = PlanStore(self.directory, self.manifest, load_trt(self.backend), CudaDevice())

    def open(self, role: Role = "propagation", **policy: Any) -> TrtEngine:
        return open_trt_engine(self.store, role, PlanPolicy(**policy))[0]

    def expected(self, inputs: dict[str, Float32Array], role: Role = "propagation") -> Any:
        path = self.directory / f"{role}.onnx"
        with OrtEngine(path, self.manifest.spec(role), threads=1) as engine:
            return engine.run(inputs)["prob"]


@pytest.fixture(params=["10", "11", "rtx"])
def world(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    exported: Path,
    tmp_path: Path,
    driver: FakeDriver,
) -> World:
    return World(monkeypatch, exported, tmp_path, driver, request.param)


@pytest.fixture
def stream(driver: FakeDriver) -> Iterator[int]:
    own = CudaDevice()
    yield own.address
    del own  # the stream is used until here


def crops(objects: int, seed: int = 0) -> dict[str, Float32Array]:
    shape = (objects, 4, 65, 65)
    return {"rgb_prob": np.random.default_rng(seed).standard_normal(shape, np.float32)}


def on_device(driver: FakeDriver, array: Float32Array) -> DeviceArray:
    address = driver.cuMemAlloc(array.nbytes)[1]
    driver.array(address, array.shape, array.dtype)[...] = array
    return DeviceArray(address, array.shape, array.dtype, None)


@pytest.mark.parametrize("use_graphs", [True, False])
@pytest.mark.parametrize("objects", [1, 2, 4, 9])
def test_host_arrays_match_onnxruntime(world: World, use_graphs: bool, objects: int) -> None:
    """9 objects are more than the plan's 4: they run in three batches."""
    inputs, streams = crops(objects), world.driver.open_streams
    with world.open(use_graphs=use_graphs) as engine:
        assert isinstance(engine, DeviceEngine)
        assert engine.backend == world.backend
        first = engine.run(inputs)["prob"]
        again = engine.run(crops(objects, seed=1))["prob"]
        np.testing.assert_array_equal(first, world.expected(inputs))
        np.testing.assert_array_equal(again, world.expected(crops(objects, seed=1)))
        assert (again != first).any()
        assert bool(engine.why_no_graphs) is not use_graphs
    assert world.driver.allocated == 0
    assert world.driver.open_streams == streams


def test_engines_without_objects_run_too(world: World) -> None:
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 96), np.float32)
    with world.open("osvos") as engine:
        got = engine.run({"image": image})["prob"]
        np.testing.assert_array_equal(got, world.expected({"image": image}, "osvos"))
        with pytest.raises(EngineError, match="takes 1 to 1 objects at once, got 2"):
            engine.buffers(2)


def test_device_tensors_go_in_and_come_out_without_waiting(world: World, stream: int) -> None:
    inputs = crops(2)
    given = on_device(world.driver, inputs["rgb_prob"])
    with world.open() as engine:
        engine.prepare(stream, 2)
        world.driver.log.clear()
        outputs = engine.infer_on_device({"rgb_prob": given}, stream)
        assert "cuStreamSynchronize" not in world.driver.log
        assert "cuMemcpyHtoDAsync" not in world.driver.log
        prob = outputs["prob"]
        assert prob.address == engine.buffers(2).outputs["prob"].address
        assert prob.shape == (2, 1, 65, 65)
        there = world.driver.array(prob.address, prob.shape, prob.dtype)
        expected = world.expected(inputs)
        # Control: before the wait the buffer holds the output of the warm-up.
        assert not np.array_equal(there, expected)
        CudaDevice().on(stream).sync()
        np.testing.assert_array_equal(there, expected)


def test_inputs_in_engine_buffers_are_not_copied(world: World, stream: int) -> None:
    inputs = crops(3)
    with world.open() as engine:
        engine.prepare(stream, 3)
        own = engine.buffers(3)
        target = own.inputs["rgb_prob"]
        world.driver.array(target.address, target.shape, target.dtype)[...] = inputs["rgb_prob"]
        world.driver.log.clear()
        outputs = engine.infer_on_device(own.inputs, stream)
        assert "cuMemcpyDtoDAsync" not in world.driver.log
        assert ("cuGraphLaunch" in world.driver.log) is True
        CudaDevice().on(stream).sync()
        prob = outputs["prob"]
        got = world.driver.array(prob.address, prob.shape, prob.dtype)
        np.testing.assert_array_equal(got, world.expected(inputs))


def test_addresses_stay_from_loading_to_closing(world: World, stream: int) -> None:
    with world.open() as engine:
        before = {k: engine.buffers(k).inputs["rgb_prob"].address for k in (1, 2, 3, 4)}
        assert len(set(before.values())) == 1
        for objects in (3, 1, 4):
            engine.run(crops(objects))
            engine.enqueue(stream, objects)
        after = {k: engine.buffers(k).inputs["rgb_prob"].address for k in (1, 2, 3, 4)}
        assert before == after


def test_a_run_is_recorded_into_a_graph_of_the_caller(world: World, stream: int) -> None:
    device = CudaDevice().on(stream)
    with world.open() as engine:
        with pytest.raises(EngineError, match="call prepare"):
            device.capture(lambda: engine.enqueue(stream, 2) and None)
        engine.prepare(stream, 2)
        assert engine.supports_graph_capture
        source = engine.buffers(2).inputs["rgb_prob"]
        prob = engine.buffers(2).outputs["prob"]

        def frame() -> None:
            engine.enqueue(stream, 2)
            engine.infer_on_device(engine.buffers(2).inputs, stream)

        world.driver.log.clear()
        graph = device.capture(frame)
        assert "cuGraphLaunch" not in world.driver.log, "a graph cannot hold a launch of another"
        for seed in (5, 6):
            inputs = crops(2, seed)
            world.driver.array(source.address, source.shape, source.dtype)[...] = inputs["rgb_prob"]
            graph.launch()
            device.sync()
            got = world.driver.array(prob.address, prob.shape, prob.dtype)
            np.testing.assert_array_equal(got, world.expected(inputs))


def test_a_context_is_run_before_it_is_captured_and_made_once(world: World, stream: int) -> None:
    log = world.module.behaviour.log
    with world.open() as engine:
        log.clear()
        engine.prepare(stream, 2)
        runs = [name for name in log if name in ("create_execution_context", "execute_async_v3")]
        assert runs == ["create_execution_context", "execute_async_v3", "execute_async_v3"]
        log.clear()
        engine.prepare(stream, 2)
        engine.run(crops(2))
        assert "create_execution_context" not in log
        assert "execute_async_v3" not in log, "it is replayed"


def test_each_number_of_objects_has_its_profile(world: World, stream: int) -> None:
    log = world.module.behaviour.log
    with world.open() as engine:
        for objects, profile in ((1, 0), (2, 1), (4, 1)):
            log.clear()
            engine.prepare(stream, objects)
            assert f"profile {profile}" in log
    with world.open("osvos") as engine:
        log.clear()
        engine.prepare(stream)
        assert "set_optimization_profile_async" not in log


def test_plans_for_later_versions_load_with_the_code_they_carry(world: World) -> None:
    with world.open(options=BuildOptions(version_compatible=True)) as engine:
        inputs = crops(1)
        np.testing.assert_array_equal(engine.run(inputs)["prob"], world.expected(inputs))


def test_trt_without_graph_capture_runs_eagerly(world: World, stream: int) -> None:
    world.driver.fail["cuGraphInstantiate"] = CUresult.CUDA_ERROR_INVALID_VALUE
    with world.open() as engine:
        inputs = crops(1)
        np.testing.assert_array_equal(engine.run(inputs)["prob"], world.expected(inputs))
        assert "capturing a CUDA graph failed: CUDA_ERROR_INVALID_VALUE" in engine.why_no_graphs[1]
    world.driver.fail.clear()
    world.module.behaviour.capturable = False
    with world.open() as engine:
        engine.run(crops(1))
        if world.backend == "tensorrt-rtx":
            assert "cannot capture this engine" in engine.why_no_graphs[1]
            assert not engine.supports_graph_capture
        else:
            assert not engine.why_no_graphs


@pytest.mark.parametrize(
    ("shape", "dtype", "says"),
    [
        ((5, 4, 65, 65), np.float32, "1 to 4 objects at once, got 5"),
        ((2, 4, 65, 64), np.float32, "must be float32"),
        ((2, 4, 65, 65), np.float16, "must be float32"),
        ((4, 65, 65), np.float32, "must be float32"),
    ],
)
def test_device_tensors_that_do_not_fit_are_refused(
    world: World, stream: int, shape: tuple[int, ...], dtype: Any, says: str
) -> None:
    with world.open() as engine:
        with pytest.raises(EngineError, match=says):
            engine.infer_on_device({"rgb_prob": DeviceArray(0, shape, dtype, None)}, stream)
        with pytest.raises(EngineError, match="takes"):
            engine.infer_on_device({"image": DeviceArray(0, shape, dtype, None)}, stream)


def test_host_arrays_that_do_not_fit_are_refused(world: World) -> None:
    with world.open() as engine:
        with pytest.raises(EngineError, match="empty"):
            engine.run({"rgb_prob": np.zeros((0, 4, 65, 65), np.float32)})
        with pytest.raises(EngineError, match="must be float32"):
            engine.run({"rgb_prob": np.zeros((1, 4, 65, 65))})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "method",
    [
        "create_runtime_config",
        "create_execution_context",
        "set_input_shape",
        "set_tensor_address",
        "execute_async_v3",
        "set_optimization_profile_async",
        "infer_shapes",
    ],
)
def test_everything_the_library_may_refuse_is_an_error(world: World, method: str) -> None:
    world.open().close()
    world.module.behaviour.refuse.add(method)
    with pytest.raises(EngineError), world.open() as engine:
        engine.run(crops(2))
    world.module.behaviour.refuse.clear()
    with world.open() as engine:
        engine.run(crops(2))


def test_closed_engine_raises(world: World, stream: int) -> None:
    engine = world.open()
    engine.run(crops(1))
    engine.close()
    engine.close()
    for call in (
        lambda: engine.run(crops(1)),
        lambda: engine.enqueue(stream),
        lambda: engine.infer_on_device({}, stream),
        lambda: engine.prepare(stream),
    ):
        with pytest.raises(EngineError, match="is closed"):
            call()
    assert "closed" in repr(engine)


def test_a_loading_that_fails_gives_its_memory_back(world: World) -> None:
    world.open().close()
    world.driver.fail["cuStreamCreate"] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(EngineError, match="creating a stream failed: CUDA_ERROR_OUT_OF_MEMORY"):
        world.open()
    assert world.driver.allocated == 0


def test_a_cached_plan_that_does_not_load_is_built_again_once(world: World) -> None:
    world.open().close()
    (plan,) = (world.directory / "plans").glob("*.plan")
    log = world.module.behaviour.log
    log.clear()
    original = world.store.api.module.Runtime.deserialize_cuda_engine
    refused = []

    def once(runtime: Any, data: bytes) -> Any:
        if not refused:
            refused.append(data)
            return None
        return original(runtime, data)

    world.store.api.module.Runtime.deserialize_cuda_engine = once
    engine, note = open_trt_engine(world.store, "propagation", PlanPolicy())
    engine.close()
    assert f"because {plan.name} does not load: loading the propagation plan failed" in note
    world.module.behaviour.refuse_plans = True
    world.store.api.module.Runtime.deserialize_cuda_engine = original
    with pytest.raises(EngineError, match="plan"):
        world.open()
    with pytest.raises(BackendError, match=r"does not load.*building was ruled out"):
        world.open(build=False)


def test_a_plan_of_other_sizes_is_refused(world: World) -> None:
    data = world.store.plan("propagation", BuildOptions()).data
    other = engine_spec("propagation", frame_size_hw=(64, 96), roi_size=81, max_objects=4)
    assert world.store.device is not None
    with pytest.raises(
        EngineError, match=r"'rgb_prob' of the propagation plan is \(-1, 4, 65, 65\)"
    ):
        TrtEngine(world.store.api, data, other, world.store.device)
    osvos = world.manifest.spec("osvos")
    with pytest.raises(EngineError, match="no tensor 'image'"):
        TrtEngine(world.store.api, data, osvos, world.store.device)


@pytest.mark.parametrize("flavour", ["10", "11", "rtx"])
def test_trt_half_inputs_are_cast_on_host_only(
    monkeypatch: pytest.MonkeyPatch,
    exported_half: Path,
    tmp_path: Path,
    driver: FakeDriver,
    stream: int,
    flavour: Flavour,
) -> None:
    world = World(monkeypatch, exported_half, tmp_path, driver, flavour)
    inputs = crops(2)
    rounded = {"rgb_prob": inputs["rgb_prob"].astype(np.float16).astype(np.float32)}
    expected = world.expected(rounded)
    with world.open(options=BuildOptions(half_inputs=True)) as engine:
        buffer = engine.buffers(2).inputs["rgb_prob"]
        assert buffer.dtype == np.float16
        assert engine.buffers(2).outputs["prob"].dtype == np.float32
        got = engine.run(inputs)["prob"]
        np.testing.assert_allclose(got, expected, rtol=0, atol=PLAN_HALF_INPUT_ABS)
        assert np.abs(expected - world.expected(crops(2, seed=1))).max() > 10 * PLAN_HALF_INPUT_ABS
        half = on_device(driver, inputs["rgb_prob"].astype(np.float16))
        prob = engine.infer_on_device({"rgb_prob": half}, stream)["prob"]
        CudaDevice().on(stream).sync()
        np.testing.assert_array_equal(driver.array(prob.address, prob.shape, prob.dtype), got)
        with pytest.raises(EngineError, match="must be float16"):
            engine.infer_on_device(
                {"rgb_prob": DeviceArray(0, (2, 4, 65, 65), np.float32, None)}, stream
            )


def test_rtx_keeps_the_kernels_it_compiled(
    monkeypatch: pytest.MonkeyPatch, exported: Path, tmp_path: Path, driver: FakeDriver
) -> None:
    world = World(monkeypatch, exported, tmp_path, driver, "rtx")
    with world.open() as engine:
        engine.run(crops(1))
    (kernels,) = (world.directory / "plans").glob("*-sm_90.kernels")
    assert kernels.read_bytes() == b"kernels of this GPU"
    assert "kernels 19" not in world.module.behaviour.log
    world.open().close()
    assert "kernels 19" in world.module.behaviour.log, "they are given to the next start"


@pytest.mark.parametrize("flavour", ["10", "11", "rtx"])
def test_an_engine_directory_opens_on_it(
    monkeypatch: pytest.MonkeyPatch,
    exported: Path,
    tmp_path: Path,
    driver: FakeDriver,
    flavour: Flavour,
) -> None:
    world = World(monkeypatch, exported, tmp_path, driver, flavour)
    with pytest.raises(BackendError, match="none was built yet"):
        open_engines(world.directory, backend=world.backend, plans=PlanPolicy(build=False))
    with open_engines(world.directory, backend=world.backend) as engines:
        assert engines.backend == world.backend
        assert engines.backend_note.startswith(
            f"{world.backend}, as requested; propagation built from propagation.onnx in "
        )
        inputs = crops(2)
        got = engines.propagation.run(inputs)["prob"]
        np.testing.assert_array_equal(got, world.expected(inputs))
    with open_engines(world.directory) as engines:
        assert engines.backend == world.backend, "auto takes what works"
        assert "because it works here" in engines.backend_note
        assert "propagation from propagation-tensorrt" in engines.backend_note
    assert driver.allocated == 0
    world.module.behaviour.refuse.add("execute_async_v3")
    with open_engines(world.directory) as engines:
        assert engines.backend == "cpu", "and passes over what does not run"
        assert f"{world.backend} does not work here" in engines.backend_note
        assert "execute_async_v3 is set to fail" in engines.backend_note
    assert driver.allocated == 0
