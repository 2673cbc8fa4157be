from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mpn.engines.onnxruntime import engine as ort_module
from mpn.engines.onnxruntime.engine import OrtEngine, why_no_cuda
from mpn.engines.spec import TensorSpec, flow_spec, osvos_spec, propagation_spec
from mpn.errors import BackendError, EngineError, InputError, MissingExtraError
from tests.builders.engine_dirs import model_for, save_model

SPEC = propagation_spec(65, 2)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    save_model(model_for(SPEC), tmp_path / "propagation.onnx")
    return tmp_path / "propagation.onnx"


def crops(objects: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(objects).random((objects, 4, 65, 65), dtype=np.float32)


@pytest.mark.parametrize("objects", [1, 2, 5])  # 5 is over max_objects, which bounds plans only
@pytest.mark.parametrize("threads", [None, 1, 2])
def test_propagation_returns_the_fourth_channel(
    graph: Path, objects: int, threads: int | None
) -> None:
    rgb_prob = crops(objects)
    with OrtEngine(graph, SPEC, threads=threads) as engine:
        prob = engine.run({"rgb_prob": rgb_prob})["prob"]
        perturbed = engine.run({"rgb_prob": rgb_prob + np.float32(0.5)})["prob"]
    assert prob.dtype == np.float32
    np.testing.assert_array_equal(prob, rgb_prob[:, 3:])
    assert not np.array_equal(perturbed, rgb_prob[:, 3:])


def test_flow_and_osvos_run(tmp_path: Path) -> None:
    flow, osvos = flow_spec((64, 96)), osvos_spec((64, 96))
    save_model(model_for(flow, flow_px=(2.0, -1.5)), tmp_path / "flow.onnx")
    save_model(model_for(osvos), tmp_path / "osvos.onnx")
    frame = np.random.default_rng(0).random((1, 3, 64, 128), dtype=np.float32) * 255
    with OrtEngine(tmp_path / "flow.onnx", flow) as engine:
        flow_px = engine.run({"frame0": frame, "frame1": frame[::-1]})["flow_px"]
    np.testing.assert_array_equal(flow_px[0, :, 5, 7], np.float32([2.0, -1.5]))
    with OrtEngine(tmp_path / "osvos.onnx", osvos) as engine:
        prob = engine.run({"image": np.zeros((1, 3, 64, 96), np.float32)})["prob"]
    np.testing.assert_array_equal(prob, np.full((1, 1, 64, 96), 0.5, np.float32))


def test_non_contiguous_input_is_read_by_its_axes(graph: Path) -> None:
    channels_last = np.ascontiguousarray(crops(2).transpose(0, 2, 3, 1))
    rgb_prob = channels_last.transpose(0, 3, 1, 2)
    with OrtEngine(graph, SPEC) as engine:
        np.testing.assert_array_equal(engine.run({"rgb_prob": rgb_prob})["prob"], rgb_prob[:, 3:])


def test_outputs_belong_to_the_caller(graph: Path) -> None:
    with OrtEngine(graph, SPEC) as engine:
        first = engine.run({"rgb_prob": crops(1)})["prob"]
        kept = first.copy()
        engine.run({"rgb_prob": 1.0 - crops(1)})
    np.testing.assert_array_equal(first, kept)


def test_external_data_is_found_next_to_the_graph(tmp_path: Path) -> None:
    save_model(model_for(SPEC), tmp_path / "big.onnx", external_data=True)
    with OrtEngine(tmp_path / "big.onnx", SPEC) as engine:
        np.testing.assert_array_equal(engine.run({"rgb_prob": crops(1)})["prob"], crops(1)[:, 3:])
    (tmp_path / "big.onnx.data").unlink()
    with pytest.raises(EngineError, match=r"big\.onnx cannot be loaded"):
        OrtEngine(tmp_path / "big.onnx", SPEC)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, r"takes \['rgb_prob'\], got \[\]"),
        ({"rgb": crops(1)}, r"takes \['rgb_prob'\], got \['rgb'\]"),
        ({"rgb_prob": crops(1)[:, :3]}, r"must be float32 .* got float32 \(1, 3, 65, 65\)"),
        ({"rgb_prob": crops(1).astype(np.float64)}, "got float64"),
        ({"rgb_prob": crops(1)[0]}, r"got float32 \(4, 65, 65\)"),
        ({"rgb_prob": crops(1)[:0]}, "is empty .*at least one object"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(graph: Path, inputs: dict[str, Any], says: str) -> None:
    with OrtEngine(graph, SPEC) as engine, pytest.raises(EngineError, match=says):
        engine.run(inputs)


def test_closed_engine_refuses_to_run_and_closes_twice(graph: Path) -> None:
    engine = OrtEngine(graph, SPEC)
    assert engine.backend == "cpu"
    assert engine.spec == SPEC
    engine.close()
    engine.close()
    assert "closed" in repr(engine)
    with pytest.raises(EngineError, match="propagation engine is closed"):
        engine.run({"rgb_prob": crops(1)})


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda content: b"",
        lambda content: b"not a graph",
        lambda content: content[: len(content) // 2],
        lambda content: b"\0" * len(content),
    ],
)
def test_corrupt_graph_is_one_line(
    graph: Path, corrupt: Callable[[bytes], bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    OrtEngine(graph, SPEC).close()  # control
    graph.write_bytes(corrupt(graph.read_bytes()))
    with pytest.raises(EngineError) as caught:
        OrtEngine(graph, SPEC)
    assert "propagation.onnx" in str(caught.value)
    assert "export it again" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # onnxruntime's own log stays quiet


@pytest.mark.parametrize("name", [b"rgb_prob", b"objects"], ids=["tensor", "axis"])
def test_name_that_is_no_utf8_is_an_engine_error(graph: Path, name: bytes) -> None:
    content = graph.read_bytes()
    assert name in content
    graph.write_bytes(content.replace(name, name[:-1] + b"\xff"))
    with pytest.raises(EngineError, match=r"cannot be loaded by onnxruntime \('utf-8' codec"):
        OrtEngine(graph, SPEC)


def test_missing_graph_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"absent\.onnx cannot be loaded"):
        OrtEngine(tmp_path / "absent.onnx", SPEC)


def test_all_differences_from_the_spec_are_listed(graph: Path) -> None:
    other = replace(
        SPEC,
        inputs=(
            TensorSpec("rgb_prob", ("objects", 4, 129, 129)),
            TensorSpec("extra", (1,)),
        ),
        outputs=(TensorSpec("mask", ("objects", 1, 65, 65)),),
    )
    with pytest.raises(EngineError) as caught:
        OrtEngine(graph, other)
    for part in (
        "input rgb_prob float32[objects,4,65,65], expected rgb_prob float32[objects,4,129,129]",
        "input 'extra' is missing",
        "output 'mask' is missing",
        "output prob float32[objects,1,65,65] is surplus",
    ):
        assert part in str(caught.value)


def test_ort_static_axis_or_half_tensor_is_refused(tmp_path: Path) -> None:
    fixed = replace(
        SPEC,
        inputs=(replace(SPEC.inputs[0], shape=(1, 4, 65, 65)),),
        outputs=(replace(SPEC.outputs[0], shape=(1, 1, 65, 65)),),
    )
    save_model(model_for(fixed), tmp_path / "fixed.onnx")
    with pytest.raises(EngineError, match=r"\[1,4,65,65\], expected .*\[objects,4,65,65\]"):
        OrtEngine(tmp_path / "fixed.onnx", SPEC)

    half = model_for(SPEC)
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    weight = onnx.numpy_helper.to_array(half.graph.initializer[0]).astype(np.float16)
    half.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "weight"))
    save_model(half, tmp_path / "half.onnx")
    with pytest.raises(EngineError, match=r"rgb_prob float16\[.*expected rgb_prob float32"):
        OrtEngine(tmp_path / "half.onnx", SPEC)


def relu6_in_half() -> onnx.ModelProto:
    """Build ReLU6 of the first channel times 20, in half precision."""
    make, half = onnx.helper.make_node, onnx.TensorProto.FLOAT16
    # 16 outputs, so that onnxruntime uses its blocked layout.
    weight = np.zeros((16, 4, 3, 3), np.float16)
    weight[:, 0, 1, 1] = 20
    copy = np.eye(16, dtype=np.float16)[:, :, None, None]
    mean = np.full((1, 16, 1, 1), 1 / 16, np.float16)
    constants = {"weight": weight, "copy": copy, "mean": mean}
    constants |= {"least": np.float16(0), "most": np.float16(6)}
    shapes = (("rgb_prob", 4), ("prob", 1))
    values = [
        onnx.helper.make_tensor_value_info(name, 1, ["objects", count, 65, 65])
        for name, count in shapes
    ]
    nodes = [
        make("Cast", ["rgb_prob"], ["halves"], to=half),
        make("Conv", ["halves", "weight"], ["scaled"], pads=[1, 1, 1, 1]),
        make("Clip", ["scaled", "least", "most"], ["clipped"]),
        make("Conv", ["clipped", "copy"], ["copied"]),
        make("Clip", ["copied", "least", "most"], ["again"]),
        make("Conv", ["again", "mean"], ["averaged"]),
        make("Cast", ["averaged"], ["prob"], to=onnx.TensorProto.FLOAT),
    ]
    initializers = [
        onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    ]
    graph = onnx.helper.make_graph(nodes, "half", values[:1], values[1:], initializers)
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10
    )


@pytest.mark.parametrize("is_external", [False, True])
@pytest.mark.parametrize("is_writable", [False, True])
def test_half_graph_has_the_same_values_with_its_casts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_external: bool, is_writable: bool
) -> None:
    path, temporary = tmp_path / "half.onnx", tmp_path / "temporary"
    save_model(relu6_in_half(), path, external_data=is_external)
    if is_writable:
        temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with OrtEngine(path, SPEC, threads=1) as engine:
        prob = engine.run({"rgb_prob": crops(2)})["prob"]
    expected = np.clip(20 * crops(2)[:, :1], 0, 6)
    np.testing.assert_allclose(prob, expected, rtol=0, atol=6e-3)  # input of half precision
    assert expected.min() < 1
    assert (prob == 6).mean() > 0.5
    assert not is_writable or not list(temporary.iterdir())


def test_half_graph_is_joined_and_full_one_is_not_changed(graph: Path, tmp_path: Path) -> None:
    """The operators that run, from onnxruntime's profile."""
    ort = ort_module.import_onnxruntime("cpu")
    half = tmp_path / "half.onnx"
    save_model(relu6_in_half(), half)

    def operators(source: str | bytes) -> set[str]:
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / "profile")
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        session.run(None, {"rgb_prob": crops(1)})
        events = json.loads(Path(session.end_profiling()).read_text())
        return {event["args"]["op_name"] for event in events if event["cat"] == "Node"}

    casted = ort_module._graph_in_float32(ort, half)
    assert casted is not None
    assert "Clip" in operators(str(half))  # control: what the second session is for
    assert "Clip" not in operators(casted)
    assert ort_module._has_cast(half)
    assert not ort_module._has_cast(graph)


def test_failure_inside_onnxruntime_is_an_engine_error(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = OrtEngine(graph, SPEC)

    class Broken:
        def run(self, names: list[str], feeds: dict[str, Any]) -> None:
            raise RuntimeError("bad\nthings")

    monkeypatch.setattr(engine, "_session", Broken())
    with pytest.raises(EngineError, match="propagation engine failed on cpu: bad things"):
        engine.run({"rgb_prob": crops(1)})


def test_threads_of_a_session_do_not_wait_actively(graph: Path) -> None:
    with OrtEngine(graph, SPEC, threads=2) as engine:
        options = engine._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_must_be_positive(graph: Path, threads: int) -> None:
    with pytest.raises(InputError, match=rf"of at least 1, got {threads}"):
        OrtEngine(graph, SPEC, threads=threads)


def test_cuda_on_a_cpu_build_is_refused(graph: Path) -> None:
    """Refusal of the real onnxruntime without CUDA."""
    if why_no_cuda() is None:
        pytest.skip("the installed onnxruntime has CUDA")
    with pytest.raises(BackendError, match=r"has no CUDAExecutionProvider.*extra \[gpu\]"):
        OrtEngine(graph, SPEC, backend="cuda")


def fake_onnxruntime(
    *,
    available: tuple[str, ...] = ("CUDAExecutionProvider", "CPUExecutionProvider"),
    running: tuple[str, ...] = ("CUDAExecutionProvider", "CPUExecutionProvider"),
    error: Exception | None = None,
) -> Any:
    """Make a fake onnxruntime with the given ``available`` and ``running`` providers."""
    module: Any = types.ModuleType("onnxruntime")
    module.sessions = []

    class Session:
        def __init__(self, path: str, options: Any, **arguments: Any) -> None:
            if error is not None:
                raise error
            self.options, self.arguments, self.may_fall_back = options, arguments, True
            module.sessions.append(self)

        def disable_fallback(self) -> None:
            self.may_fall_back = False

        def get_providers(self) -> list[str]:
            return list(running)

        def get_inputs(self) -> list[Any]:
            return [node(tensor) for tensor in SPEC.inputs]

        def get_outputs(self) -> list[Any]:
            return [node(tensor) for tensor in SPEC.outputs]

    def node(tensor: TensorSpec) -> Any:
        return types.SimpleNamespace(
            name=tensor.name, shape=list(tensor.shape), type="tensor(float)"
        )

    def preload_dlls() -> None:
        sys.stdout.write("Failed to load libcudnn.so.9\n")  # it prints, as the real one

    module.InferenceSession = Session
    module.SessionOptions = lambda: types.SimpleNamespace(
        add_session_config_entry=lambda key, value: None
    )
    module.ExecutionMode = types.SimpleNamespace(ORT_SEQUENTIAL="sequential")
    module.get_available_providers = lambda: list(available)
    module.preload_dlls = preload_dlls
    return module


def test_cuda_that_runs_is_accepted_and_may_not_fall_back(
    graph: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = fake_onnxruntime()
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    assert OrtEngine(graph, SPEC, backend="cuda", threads=1).backend == "cuda"
    (session,) = fake.sessions
    assert session.may_fall_back is False
    assert session.arguments["enable_fallback"] == 0
    assert session.arguments["providers"][0][0] == "CUDAExecutionProvider"
    assert session.options.intra_op_num_threads == 1
    assert session.options.inter_op_num_threads == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "running", [("CPUExecutionProvider",), ("CPUExecutionProvider", "CUDAExecutionProvider"), ()]
)
def test_cuda_that_silently_became_something_else_is_refused(
    graph: Path, monkeypatch: pytest.MonkeyPatch, running: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime(running=running))
    with pytest.raises(BackendError, match=r"would run .*libcudnn\.so\.9.*\[gpu\]"):
        OrtEngine(graph, SPEC, backend="cuda")


def test_cpu_that_silently_became_something_else_is_refused(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime())
    with pytest.raises(BackendError, match="cpu was requested, but onnxruntime would run CUDA"):
        OrtEngine(graph, SPEC, backend="cpu")


def test_ort_without_cuda_is_refused_before_session(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_onnxruntime(available=("CPUExecutionProvider",))
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    with pytest.raises(BackendError, match="has no CUDAExecutionProvider"):
        OrtEngine(graph, SPEC, backend="cuda")
    assert fake.sessions == []


@pytest.mark.parametrize(
    ("error", "expected", "says"),
    [
        (RuntimeError("CUDA failure 35: driver too old"), BackendError, "CUDA failure 35"),
        (type("InvalidProtobuf", (Exception,), {})("bad file"), EngineError, "export it again"),
    ],
)
def test_cuda_failure_differs_from_a_bad_graph(
    graph: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    expected: type[EngineError],
    says: str,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime(error=error))
    with pytest.raises(EngineError, match=says) as caught:
        OrtEngine(graph, SPEC, backend="cuda")
    assert type(caught.value) is expected


def test_missing_onnxruntime_names_the_extra(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"cpu backend needs .*'onnxruntime'.*\[cpu\]"):
        OrtEngine(graph, SPEC)
    with pytest.raises(MissingExtraError, match=r"cuda backend needs .*\[gpu\]"):
        OrtEngine(graph, SPEC, backend="cuda")


def test_half_uninstalled_onnxruntime_is_explained(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    with pytest.raises(BackendError, match=r"onnxruntime is incomplete.*uninstall both"):
        OrtEngine(graph, SPEC)


def test_onnxruntime_with_a_broken_library_is_explained(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(module: str, *, extra: str, purpose: str) -> Any:
        raise ImportError("libstdc++.so.6: version not found")

    monkeypatch.setattr(ort_module, "import_or_explain", broken)
    with pytest.raises(BackendError, match=r"cannot be loaded \(libstdc\+\+"):
        OrtEngine(graph, SPEC)
