from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from torch import nn

from mpn.engines.directory.entries import FINETUNE_SCOPES
from mpn.engines.directory.files import check_digest
from mpn.engines.spec import Precision, Role
from mpn.engines.weights import read_weights
from mpn.errors import ExportError, InputError
from mpn.export.finetune import write as adapt_write
from mpn.export.finetune.optimizer import optimizer_settings
from mpn.export.finetune.parity import (
    GRADIENT_LIMIT,
    LOSS_LIMIT,
    PATTERN_LIMIT,
    UPDATE_LIMIT,
    verify_step,
)
from mpn.export.finetune.step import adapt_graph, save_graph
from mpn.export.finetune.trace import ForwardGraph, trace_forward
from mpn.export.finetune.write import FINETUNABLE_ROLES, WrittenFinetune, write_adapt
from tests.builders.finetune_dirs import write_inference_graph
from tests.export.conftest import tiny_spec
from tests.tolerances import HALF_STEP, HALF_STEP_OF_SCALED

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
Forwards = Callable[[Role], ForwardGraph]
Write = Callable[..., WrittenFinetune]


@pytest.fixture
def write(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    forwards: Forwards,
    adapt_networks: Mapping[Role, nn.Module],
) -> Write:
    """Function that writes the step of a role next to its inference graph."""
    monkeypatch.setattr(adapt_write, "trace_forward", lambda role, _network: forwards(role))

    def written(role: Role, precision: Precision = "fp32", **options: Any) -> WrittenFinetune:
        write_inference_graph(forwards(role), tiny_spec(role), precision, tmp_path / f"{role}.onnx")
        network = adapt_networks[role]
        return write_adapt(role, network, tmp_path, precision=precision, **options)

    return written


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("role", FINETUNABLE_ROLES)
def test_a_written_step_is_that_of_torch(
    write: Write, tmp_path: Path, role: Role, precision: Precision
) -> None:
    written = write(role, precision)
    assert {file.path for file in written.entry.files} == {
        f"{role}_adapt.onnx",
        f"{role}_adapt_head.onnx",
        f"{role}_features.onnx",
    }
    for file in written.entry.files:
        check_digest(tmp_path, file)
    for scope in FINETUNE_SCOPES:
        case = verify_step(role, written, tmp_path, scope)
        assert [measure.limit for measure in case.measures] == [
            LOSS_LIMIT,
            PATTERN_LIMIT,
            GRADIENT_LIMIT,
            UPDATE_LIMIT,
        ]
        assert all(measure.used < 0.5 for measure in case.measures)
        assert scope in case.name


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_manifest_finds_every_weight(
    write: Write, tmp_path: Path, forwards: Forwards, precision: Precision
) -> None:
    entry = write("osvos", precision).entry
    values = read_weights(tmp_path, entry.tensors)
    assert values.keys() == forwards("osvos").weights.keys()
    for name, expected in forwards("osvos").weights.items():
        if precision == "fp32":
            np.testing.assert_array_equal(values[name], expected)
        else:
            np.testing.assert_allclose(values[name], expected, HALF_STEP, HALF_STEP_OF_SCALED)
    scales = {tensor.name: tensor.scale for tensor in entry.tensors}
    half = precision == "fp16"
    assert scales["stages.0.0.weight"] == (1 / 64 if half else 1)
    assert scales["stages.3.1.bias"] == (1 / 64 if half else 1)
    assert scales["stages.3.1.weight"] == 1
    assert scales["side_prep.2.weight"] == (64 if half else 1)
    assert scales["fuse.weight"] == 1
    assert {tensor.dtype for tensor in entry.tensors} == {"float16" if half else "float32"}


def _replace_graph(written: WrittenFinetune, folder: Path, forward: ForwardGraph) -> None:
    """Replace the step by one with another momentum."""
    other = replace(written.settings, momentum=0.5, betas=(0.5, 0.9))
    save_graph(adapt_graph(forward, other).model, folder / f"{forward.role}_adapt.onnx")


@pytest.mark.parametrize("role", FINETUNABLE_ROLES)
def test_a_step_that_differs_is_refused(
    write: Write, tmp_path: Path, forwards: Forwards, role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mpn.export.autodiff import backward

    right = backward.RULES["Relu"]

    def leaky(tape: Any, node: Any, grad: str) -> Any:
        yield from ((node.input[0], grad) for _ in right(tape, node, grad))

    monkeypatch.setattr(backward, "RULES", {**backward.RULES, "Relu": leaky})
    written = write(role)
    with pytest.raises(ExportError, match=r"differs from PyTorch's: gradient_relative is") as info:
        verify_step(role, written, tmp_path, "all")
    assert "\n" not in str(info.value)


def test_a_step_with_other_averages_is_refused(
    write: Write, tmp_path: Path, forwards: Forwards
) -> None:
    """After one step, only AdamW's averages show another decay."""
    written = write("propagation")
    verify_step("propagation", written, tmp_path, "all")
    _replace_graph(written, tmp_path, forwards("propagation"))
    with pytest.raises(ExportError, match="gradient_relative"):
        verify_step("propagation", written, tmp_path, "all")


def test_a_step_that_does_not_run_is_refused(write: Write, tmp_path: Path) -> None:
    written = write("osvos")
    (tmp_path / "osvos_adapt.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match="the osvos step of scope 'all' does not run"):
        verify_step("osvos", written, tmp_path, "all")


def test_the_step_of_another_network_is_refused(
    write: Write, tmp_path: Path, adapt_networks: Mapping[Role, nn.Module]
) -> None:
    write("osvos")
    model = onnx.load(tmp_path / "osvos.onnx", load_external_data=False)
    fuse = next(tensor for tensor in model.graph.initializer if tensor.name == "fuse.weight")
    fuse.dims[1] += 1
    onnx.save_model(model, tmp_path / "osvos.onnx")
    with pytest.raises(ExportError, match=r"weights of its inference graph \(fuse\.weight\)"):
        write_adapt("osvos", adapt_networks["osvos"], tmp_path, precision="fp32")


def test_the_optimizer_can_be_chosen(write: Write) -> None:
    entry = write("osvos", optimizer="adamw").entry
    assert (entry.optimizer, entry.state) == ("adamw", ("exp_avg", "exp_avg_sq"))
    settings = optimizer_settings("osvos", "adamw").as_json()
    assert entry.settings == {**settings, "loss": "balanced cross-entropy"}
    with pytest.raises(InputError, match="unknown optimiser"):
        write("osvos", optimizer="lion")


def test_flow_is_not_fine_tuned(adapt_networks: Mapping[Role, nn.Module]) -> None:
    assert FINETUNABLE_ROLES == ("propagation", "osvos")
    with pytest.raises(ExportError, match="the flow network is not fine-tuned"):
        trace_forward("flow", adapt_networks["osvos"])


def test_two_exports_write_the_same_bytes(write: Write, tmp_path: Path) -> None:
    first = {file.path: file.sha256 for file in write("osvos").entry.files}
    shutil.copytree(tmp_path, tmp_path.with_name("again"))
    assert {file.path: file.sha256 for file in write("osvos").entry.files} == first
