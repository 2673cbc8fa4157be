from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from mpn.engines.directory.manifest import Preprocessing
from mpn.engines.directory.parity import load_parity
from mpn.engines.spec import ROLES, Precision, Role
from mpn.errors import ExportError
from mpn.export.parity import RoleParity, parity_document, parity_text, verify_graph
from mpn.export.parity_inputs import ParityPictures
from tests.export.conftest import Graphs, tiny_spec

PERTURBED: Mapping[Role, str] = {
    "flow": "flownets_1.conv1.0.weight",
    "propagation": "backbone.conv1.weight",
    "osvos": "stages.0.0.weight",
    "features": "backbone.features.0.weight",
}


def _verify(path: Path, role: Role, network: nn.Module, precision: Precision) -> RoleParity:
    return verify_graph(
        path,
        tiny_spec(role),
        network,
        precision=precision,
        pictures=ParityPictures(),
        preprocessing=Preprocessing(),
        threads=1,
    )


def _changed(source: Path, folder: Path, name: str, factor: float) -> Path:
    """Copy a graph with one weight tensor multiplied."""
    model = onnx.load(source)
    tensor = next(item for item in model.graph.initializer if item.name == name)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), name))
    path = folder / source.name
    onnx.save_model(model, path)
    return path


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("role", ROLES)
def test_a_graph_agrees_and_a_changed_weight_does_not(
    graphs: Graphs,
    networks: Mapping[Role, nn.Module],
    tmp_path: Path,
    role: Role,
    precision: Precision,
) -> None:
    path = graphs(role, precision).path
    parity = _verify(path, role, networks[role], precision)
    assert all(measure.is_within for case in parity.cases for measure in case.measures)
    assert (parity.peak is not None) == (precision == "fp16")
    assert parity.worst.used < 1
    for case in parity.cases:  # a constant would agree with anything
        low, high = case.reference_range
        assert high - low > 0.01
    factor = 1.02 if precision == "fp32" else 1.5
    changed = _changed(path, tmp_path, PERTURBED[role], factor)
    with pytest.raises(ExportError, match=f"{role}.onnx .{precision}. differs from its PyTorch"):
        _verify(changed, role, networks[role], precision)


def test_half_precision_really_ran(graphs: Graphs, networks: Mapping[Role, nn.Module]) -> None:
    for role in ROLES:
        halves = _verify(graphs(role, "fp16").path, role, networks[role], "fp16")
        assert all(case.measures[0].value > 0 for case in halves.cases)
        with pytest.raises(ExportError, match=r"_relative is"):  # not as fp32
            _verify(graphs(role, "fp16").path, role, networks[role], "fp32")


def test_parity_propagation_covers_one_and_three_objects(
    graphs: Graphs, networks: Mapping[Role, nn.Module]
) -> None:
    parity = _verify(
        graphs("propagation", "fp32").path, "propagation", networks["propagation"], "fp32"
    )
    assert [case.name for case in parity.cases] == ["1 object", "3 objects"]


def test_all_failures_are_reported_together(
    graphs: Graphs, networks: Mapping[Role, nn.Module], tmp_path: Path
) -> None:
    path = _changed(
        graphs("propagation", "fp32").path, tmp_path, PERTURBED["propagation"], factor=1.5
    )
    model = onnx.load(path)
    model.opset_import[0].version = 19
    onnx.save_model(model, path)
    with pytest.raises(ExportError) as info:
        _verify(path, "propagation", networks["propagation"], "fp32")
    message = str(info.value)
    for part in ("expected ONNX 18", "1 object: logit_relative", "3 objects: max_abs"):
        assert part in message
    assert "\n" not in message


def test_a_graph_with_another_interface_is_refused(
    graphs: Graphs, networks: Mapping[Role, nn.Module], tmp_path: Path
) -> None:
    path = tmp_path / "osvos.onnx"
    model = onnx.load(graphs("osvos", "fp32").path)
    for node in model.graph.node:
        for names in (node.output, node.input):
            for index, name in enumerate(names):
                names[index] = "probability" if name == "prob" else name
    model.graph.output[0].name = "probability"
    onnx.save_model(model, path)
    with pytest.raises(ExportError, match=r"outputs are probability .* expected prob"):
        _verify(path, "osvos", networks["osvos"], "fp32")


def test_a_graph_cut_short_is_refused(
    graphs: Graphs, networks: Mapping[Role, nn.Module], tmp_path: Path
) -> None:
    path = tmp_path / "osvos.onnx"
    shutil.copy(graphs("osvos", "fp32").path, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ExportError, match=r"osvos\.onnx .*cannot be read as ONNX"):
        _verify(path, "osvos", networks["osvos"], "fp32")


def test_parity_fp16_activation_overflow_is_refused(
    graphs: Graphs, networks: Mapping[Role, nn.Module]
) -> None:
    network = copy.deepcopy(networks["propagation"])
    with torch.no_grad():
        network.get_parameter("backbone.bn5.bias")[:] = 1e5
    with pytest.raises(ExportError, match=r"activations of '.*' reach"):
        _verify(graphs("propagation", "fp16").path, "propagation", network, "fp16")


def test_report_is_readable_by_the_engines_package(
    graphs: Graphs, networks: Mapping[Role, nn.Module], tmp_path: Path
) -> None:
    parity = _verify(graphs("osvos", "fp16").path, "osvos", networks["osvos"], "fp16")
    pictures = ParityPictures()
    document = parity_document({"osvos": parity.as_json()}, inputs=pictures.description)
    (tmp_path / "parity.json").write_text(parity_text(document))
    report = load_parity(tmp_path)
    assert report is not None
    assert report.reference == f"PyTorch {torch.__version__}, float32, CPU"
    assert report.inputs == pictures.description
    assert {measure.name for measure in report.measures} == {"max_abs", "mean_abs", "mask_iou"}
    (tmp_path / "parity.json").write_text(parity_text(parity_document({}, inputs=None)))
    skipped = load_parity(tmp_path)
    assert skipped is not None
    assert skipped.reference is None
    assert "--no-verify" in skipped.inputs


def test_a_number_that_json_has_not_is_never_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        parity_text({"value": float("nan")})
    assert json.loads(parity_text({"value": np.float64(0.5).item()})) == {"value": 0.5}
