from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from torch import Tensor, nn

from mpn.engines.onnxruntime.engine import OrtEngine
from mpn.engines.spec import ROLES, Precision, Role, propagation_spec
from mpn.errors import ExportError, OutputError
from mpn.export import graph as graph_module
from mpn.export.graph import export_graph, graph_failures
from tests.conftest import REPOSITORY
from tests.export.conftest import Graphs, tiny_spec

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("role", ROLES)
def test_a_graph_has_the_interface_of_its_spec(
    graphs: Graphs, role: Role, precision: Precision
) -> None:
    graph = graphs(role, precision)
    assert graph_failures(graph.path, tiny_spec(role)) == []
    OrtEngine(graph.path, tiny_spec(role), threads=1).close()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("role", ROLES)
def test_weights_keep_the_names_of_the_checkpoint(
    graphs: Graphs, networks: Mapping[Role, nn.Module], role: Role, precision: Precision
) -> None:
    model = onnx.load(graphs(role, precision).path)
    names = {tensor.name for tensor in model.graph.initializer}
    supervision = ("score_dsn.", "upscale_.")  # of no use to a graph
    wanted = {
        name
        for name, value in networks[role].named_parameters()
        if value.ndim >= 2 and not name.startswith(supervision)
    }
    assert wanted <= names


@pytest.mark.parametrize("role", ROLES)
def test_graph_has_no_data_of_the_exporting_machine(graphs: Graphs, role: Role) -> None:
    content = graphs(role, "fp32").path.read_bytes()
    for trace in (b"stack_trace", b"site-packages", b".py", str(REPOSITORY).encode()):
        assert trace not in content


@pytest.mark.parametrize("objects", [1, 3, 5])
def test_propagation_takes_any_number_of_objects(graphs: Graphs, objects: int) -> None:
    spec = tiny_spec("propagation")
    crops = np.random.default_rng(0).random((objects, 4, 65, 65), np.float32)
    with OrtEngine(graphs("propagation", "fp32").path, spec, threads=1) as engine:
        assert engine.run({"rgb_prob": crops})["prob"].shape == (objects, 1, 65, 65)


def test_flow_is_traced_as_few_nodes_with_bilinear_sampling(graphs: Graphs) -> None:
    graph = graphs("flow", "fp32")
    nodes = onnx.load(graph.path).graph.node
    assert graph.nodes == len(nodes) < 300  # 441 slices would be 1346 nodes and more
    assert sum(node.op_type == "MatMul" for node in nodes) == 21
    assert sum(node.op_type == "GridSample" for node in nodes) == 1


def test_large_weights_are_in_a_separate_file(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    networks: Mapping[Role, nn.Module],
    graphs: Graphs,
) -> None:
    monkeypatch.setattr(graph_module, "EXTERNAL_DATA_BYTES", 1)
    spec = tiny_spec("osvos")
    exported = export_graph(networks["osvos"], spec, tmp_path / "osvos.onnx")
    assert exported.external_data == ("osvos.onnx.data",)
    assert {path.name for path in tmp_path.iterdir()} == {"osvos.onnx", "osvos.onnx.data"}
    assert exported.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    moved = tmp_path.rename(tmp_path.with_name("moved"))  # the reference is relative
    image = np.random.default_rng(0).normal(0, 60, spec.inputs[0].shape).astype(np.float32)
    with (
        OrtEngine(moved / "osvos.onnx", spec, threads=1) as outside,
        OrtEngine(graphs("osvos", "fp32").path, spec, threads=1) as inside,
    ):
        np.testing.assert_array_equal(
            outside.run({"image": image})["prob"], inside.run({"image": image})["prob"]
        )


def _opset_20_as_torch_would_write_it(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 20
    for node in model.graph.node:
        if node.op_type == "GridSample":
            next(item for item in node.attribute if item.name == "mode").s = b"linear"


def _nearest(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "GridSample":
            next(item for item in node.attribute if item.name == "mode").s = b"nearest"


def _dynamic_width(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"


def _other_name(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "flow"


def _swapped_inputs(model: onnx.ModelProto) -> None:
    first, second = model.graph.input
    first.name, second.name = second.name, first.name


def _half_edge(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def _slices(model: onnx.ModelProto) -> None:
    model.graph.node.extend(
        helper.make_node("Slice", ["frame0"], [f"slice{k}"]) for k in range(1323)
    )


def _dynamic_inside(model: onnx.ModelProto) -> None:
    model.graph.value_info[0].type.tensor_type.shape.dim[0].dim_param = "s0"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_opset_20_as_torch_would_write_it, "mode 'linear'.*reads as nearest"),
        (_opset_20_as_torch_would_write_it, "operator sets .*20.* expected ONNX 18"),
        (_nearest, "mode 'nearest'"),
        (_dynamic_width, r"frame0 float32\[1,3,64,width\]"),
        (_other_name, r"outputs are flow float32\[1,2,64,128\], expected flow_px"),
        (_swapped_inputs, "inputs are frame1 .*, frame0 .*, expected frame0"),
        (_half_edge, r"frame0 float16\[1,3,64,128\]"),
        (_slices, "at most 800.*not traced as matrix products"),
        (_dynamic_inside, "axes without a fixed size inside: s0"),
    ],
)
def test_backend_failures_of_a_graph_are_found(
    graphs: Graphs, tmp_path: Path, change: Callable[[onnx.ModelProto], None], says: str
) -> None:
    model = onnx.load(graphs("flow", "fp32").path)
    change(model)
    path = tmp_path / "flow.onnx"
    onnx.save_model(model, path)
    failures = "; ".join(graph_failures(path, tiny_spec("flow")))
    assert re.search(says, failures), failures


class _NoGraph(nn.Module):
    """Depend on its data: a shape that no graph of fixed sizes can have."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 1, 1)

    def margin(self, rgb_prob: Tensor) -> Tensor:
        margin: Tensor = self.layer(rgb_prob)
        if margin.sum() > 0:
            return margin
        return -margin


def test_a_network_that_cannot_be_traced_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="propagation network cannot be traced by torch") as info:
        export_graph(_NoGraph(), propagation_spec(65, 2), tmp_path / "propagation.onnx")
    assert "\n" not in str(info.value)
    assert len(str(info.value)) < 500
    assert list(tmp_path.iterdir()) == []


class _Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 1, 1)

    def margin(self, rgb_prob: Tensor) -> Tensor:
        return self.layer(rgb_prob)[..., :-1]  # type: ignore[no-any-return]


def test_a_graph_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"outputs are prob float32\[objects,1,65,64\]"):
        export_graph(_Constant(), propagation_spec(65, 2), tmp_path / "propagation.onnx")


def test_a_folder_that_is_missing_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        export_graph(_Small(), propagation_spec(65, 2), tmp_path / "no" / "propagation.onnx")


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 1, 1)

    def margin(self, rgb_prob: Tensor) -> Tensor:
        margin: Tensor = self.layer(rgb_prob)
        return margin


def test_export_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        export_graph(_Small(), propagation_spec(65, 2), tmp_path / "propagation.onnx")
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert logging.getLogger("torch.onnx").level == logging.NOTSET
