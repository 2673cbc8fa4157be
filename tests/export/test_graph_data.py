from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mpn.engines.onnxruntime.engine import OrtEngine
from mpn.engines.spec import osvos_spec
from mpn.errors import ExportError
from mpn.export.graph import export_graph, move_weights_out, stored_tensors
from tests.builders.finetune_dirs import FRAME_SIZE_HW, tiny_forward, write_inference_graph
from tests.export.conftest import Graphs, tiny_spec


def _model(*arrays: tuple[str, np.ndarray]) -> onnx.ModelProto:  # type: ignore[type-arg]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "weights",
        [value],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(array, name) for name, array in arrays],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_weights_are_at_the_offsets_of_the_index(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "a.weight": rng.standard_normal((3, 5), np.float32),
        "axes": np.asarray([1, 2]),
        "b.weight": rng.standard_normal((2, 2)).astype(np.float16),
        "b.bias": rng.standard_normal(7, np.float32),
    }
    model = _model(*arrays.items())
    path = tmp_path / "net.onnx"
    assert move_weights_out(model, path, [name for name in arrays if name != "axes"]) == (
        "net.onnx.data"
    )
    onnx.save_model(model, path)
    data = (tmp_path / "net.onnx.data").read_bytes()
    found = stored_tensors(path)
    assert [tensor.name for tensor in found] == ["a.weight", "b.weight", "b.bias"]
    for tensor in found:
        assert tensor.file == "net.onnx.data"
        assert tensor.offset % 64 == 0
        dtype = {"float32": "<f4", "float16": "<f2"}[tensor.dtype]
        values = np.frombuffer(data[tensor.offset : tensor.offset + tensor.nbytes], dtype)
        np.testing.assert_array_equal(values.reshape(tensor.shape), arrays[tensor.name])
    whole = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    for name, values in arrays.items():
        np.testing.assert_array_equal(whole[name], values)


def test_values_kept_as_numbers_move_too(tmp_path: Path) -> None:
    """ONNX may hold values as raw bytes or as lists of numbers, halves as integers."""
    model = _model()
    values = np.asarray([1.5, -2.0], np.float32)
    model.graph.initializer.append(
        helper.make_tensor("single", TensorProto.FLOAT, [2], values.tolist())
    )
    model.graph.initializer.append(
        helper.make_tensor("half", TensorProto.FLOAT16, [2], values.tolist())
    )
    move_weights_out(model, tmp_path / "net.onnx", ["single", "half"])
    onnx.save_model(model, tmp_path / "net.onnx")
    for tensor in onnx.load(tmp_path / "net.onnx").graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), values)


def test_other_types_are_not_weights(tmp_path: Path) -> None:
    model = _model(("double", np.zeros(3)))
    move_weights_out(model, tmp_path / "net.onnx", ["double"])
    onnx.save_model(model, tmp_path / "net.onnx")
    with pytest.raises(ExportError, match=r"weight 'double' of net\.onnx is neither"):
        stored_tensors(tmp_path / "net.onnx")


def test_a_graph_with_its_weights_in_file_computes_the_same(tmp_path: Path) -> None:
    forward = tiny_forward("osvos")
    spec = osvos_spec(FRAME_SIZE_HW)
    data = write_inference_graph(forward, spec, "fp32", tmp_path / "osvos.onnx")
    inside = onnx.load(tmp_path / "osvos.onnx")
    onnx.save_model(inside, tmp_path / "inside.onnx")
    image = np.random.default_rng(0).standard_normal((1, 3, *FRAME_SIZE_HW), np.float32)
    with (
        OrtEngine(tmp_path / "osvos.onnx", spec, threads=1) as beside,
        OrtEngine(tmp_path / "inside.onnx", spec, threads=1) as alone,
    ):
        result = beside.run({"image": image})["prob"]
        np.testing.assert_array_equal(result, alone.run({"image": image})["prob"])
    (tmp_path / data).write_bytes(b"\0" * (tmp_path / data).stat().st_size)
    with OrtEngine(tmp_path / "osvos.onnx", spec, threads=1) as emptied:  # control: it is read
        assert not np.array_equal(emptied.run({"image": image})["prob"], result)


def test_export_graph_stores_weights_in_separate_file(
    tmp_path: Path,
    graphs: Graphs,
    networks: dict,  # type: ignore[type-arg]
) -> None:
    spec = tiny_spec("osvos")
    exported = export_graph(networks["osvos"], spec, tmp_path / "osvos.onnx", weights_in_file=True)
    assert exported.external_data == ("osvos.onnx.data",)
    stored = {tensor.name for tensor in stored_tensors(exported.path)}
    graph = onnx.load(exported.path, load_external_data=False).graph
    inside = {
        tensor.name for tensor in graph.initializer if tensor.data_location != TensorProto.EXTERNAL
    }
    parameters = dict(networks["osvos"].named_parameters())
    assert stored == {name for name in parameters if not name.startswith("score_dsn.")}
    assert inside.isdisjoint(parameters)
    image = np.random.default_rng(0).normal(0, 60, spec.inputs[0].shape).astype(np.float32)
    with (
        OrtEngine(exported.path, spec, threads=1) as beside,
        OrtEngine(graphs("osvos", "fp32").path, spec, threads=1) as plain,
    ):
        np.testing.assert_array_equal(
            beside.run({"image": image})["prob"], plain.run({"image": image})["prob"]
        )
