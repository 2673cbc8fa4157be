"""Exports with their fine-tuning step."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from mpn.engines.directory.manifest import load_manifest
from mpn.engines.directory.parity import load_parity
from mpn.engines.onnxruntime.finetune import open_finetune_engine
from mpn.engines.onnxruntime.reweight import open_finetuned_engine
from mpn.engines.open import open_engines
from mpn.engines.spec import EngineSpec, Precision, Role
from mpn.errors import EngineError, ExportError
from mpn.export import bundle as bundle_module
from mpn.export.bundle import export_bundle
from mpn.export.finetune import parity as adapt_parity
from mpn.export.finetune import write as adapt_write
from mpn.export.finetune.torch_step import step_example
from mpn.export.finetune.trace import ForwardGraph
from mpn.export.graph import ExportedGraph
from mpn.export.options import ExportOptions
from mpn.export.parity import Limit
from mpn.export.precision import precision_report
from mpn.export.progress import Progress, Step
from mpn.networks.checkpoint import save_checkpoint
from tests.builders.finetune_dirs import write_inference_graph
from tests.export.conftest import FRAME_SIZE_HW, MAX_OBJECTS, ROI_SIZE
from tests.networks.seeded import OSVOS_GAIN, seeded

SIZES = {"frame_size_hw": FRAME_SIZE_HW, "roi_size": ROI_SIZE, "max_objects": MAX_OBJECTS}
STEP_FILES = ("osvos_adapt.onnx", "osvos_adapt_head.onnx", "osvos_features.onnx")


class _Interrupt(Progress):
    def __init__(self, at: tuple[Role, Step] | None) -> None:
        self.at = at
        self.steps: list[tuple[Role, Step]] = []

    def started(self, role: Role, step: Step) -> None:
        if (role, step) == self.at:
            raise KeyboardInterrupt
        self.steps.append((role, step))


@pytest.fixture
def checkpoints(
    networks: Mapping[Role, nn.Module],
    forwards: Callable[[Role], ForwardGraph],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> list[Path]:
    """OSVOS and a propagation network, with shared traces."""
    from mpn.networks.propagation import PropagationConfig, PropagationNet
    from tests.networks.seeded import DEEPLAB_GAIN

    def written(
        network: nn.Module,
        spec: EngineSpec,
        path: Path,
        *,
        precision: Precision = "fp32",
        weights_in_file: bool = False,
        progress: Progress | None = None,
    ) -> ExportedGraph:
        assert weights_in_file
        data = write_inference_graph(forwards(spec.role), spec, precision, path)
        size = path.stat().st_size + path.with_name(data).stat().st_size
        return ExportedGraph(path, (data,), 50, size, precision_report(path), 0, 0.0)

    monkeypatch.setattr(bundle_module, "export_graph", written)
    monkeypatch.setattr(adapt_write, "trace_forward", lambda role, _network: forwards(role))
    config = PropagationConfig(width=0.125, head_width=0.125, middle_blocks=1, prior_skip=True)
    found: dict[Role, nn.Module] = {
        "propagation": seeded(PropagationNet(config), DEEPLAB_GAIN),
        "osvos": seeded(networks["osvos"], OSVOS_GAIN),
    }
    return [save_checkpoint(tmp_path / "both.pth", found, {"licence": "CC0-1.0"})]


def test_an_export_can_be_fine_tuned_and_run(checkpoints: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "engines"
    bundle = export_bundle(checkpoints, out, ExportOptions(**SIZES))  # type: ignore[arg-type]
    manifest = load_manifest(out)
    assert manifest == bundle.manifest
    expected = {"manifest.json", "parity.json", *STEP_FILES}
    expected |= {name.replace("osvos", "propagation") for name in STEP_FILES}
    for role in ("propagation", "osvos"):
        expected |= {f"{role}.onnx", f"{role}.onnx.data"}
    assert {path.name for path in out.iterdir()} == expected
    image = np.random.default_rng(0).normal(0, 60, (1, 3, *FRAME_SIZE_HW)).astype(np.float32)
    with open_engines(out, backend="cpu", threads=1) as engines:
        assert engines.osvos is not None
        before = engines.osvos.run({"image": image})["prob"]
        with open_finetune_engine(out, manifest, "osvos", threads=1) as engine:
            example = step_example("osvos", (1, 64, 64))
            losses = [engine.step(example.inputs, example.target, 3e-3) for _ in range(3)]
            weights = engine.weights()
        assert losses[-1] < losses[0]
        with open_finetuned_engine(
            out, manifest, "osvos", weights, threads=1, base=engines.osvos
        ) as adapted:
            assert not np.array_equal(adapted.run({"image": image})["prob"], before)


def test_parity_reports_both_scopes(checkpoints: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "engines"
    export_bundle(checkpoints, out, ExportOptions(**SIZES))  # type: ignore[arg-type]
    cases = json.loads((out / "parity.json").read_text())["roles"]["osvos"]["cases"]
    assert [case["case"] for case in cases[-2:]] == [
        "two steps of fine-tuning, scope all",
        "two steps of fine-tuning, scope head",
    ]
    report = load_parity(out)
    assert report is not None
    names = {measure.name for measure in report.measures if measure.role == "osvos"}
    assert {
        "loss_abs",
        "pattern_relative",
        "gradient_relative",
        "update_relative",
        "logit_relative",
    } <= names


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse each fine-tuning step."""
    limit = Limit("gradient_relative", 1e-12, "no two computations agree so well")
    monkeypatch.setattr(adapt_parity, "GRADIENT_LIMIT", limit)


@pytest.mark.usefixtures("strict")
def test_step_that_differs_is_left_out_with_a_warning(
    checkpoints: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "engines"
    bundle = export_bundle(checkpoints, out, ExportOptions(**SIZES))  # type: ignore[arg-type]
    expected = {"manifest.json", "parity.json"}
    for role in ("propagation", "osvos"):
        expected |= {f"{role}.onnx", f"{role}.onnx.data"}
        assert bundle.manifest.roles[role].adapt is None  # type: ignore[index]
    assert {path.name for path in out.iterdir()} == expected
    parity = json.loads((out / "parity.json").read_text())["roles"]
    for role, warning in zip(("propagation", "osvos"), bundle.warnings, strict=True):
        start = f"{role} is exported without its fine-tuning step: the {role} step of scope 'all'"
        assert warning.startswith(start)
        assert "gradient_relative is" in warning
        assert "\n" not in warning
        assert warning.endswith(parity[role]["finetuning_step_left_out"])
    with open_engines(out, backend="cpu", threads=1) as engines:
        assert engines.osvos is not None
    with pytest.raises(EngineError, match="export it again with --finetune"):
        open_finetune_engine(out, bundle.manifest, "osvos")


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("demand", [{"finetune": True}, {"finetune_optimizer": "sgd"}])
def test_required_step_that_differs_leaves_nothing(
    checkpoints: list[Path], tmp_path: Path, demand: dict[str, Any]
) -> None:
    options = ExportOptions(**SIZES, **demand)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=r"gradient_relative is .*: leave out --finetune and"):
        export_bundle(checkpoints, tmp_path / "engines", options)
    assert {path.name for path in tmp_path.iterdir()} == {"both.pth"}


def test_interrupted_export_resumes(checkpoints: list[Path], tmp_path: Path) -> None:
    options = ExportOptions(verify=False, **SIZES)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        export_bundle(checkpoints, tmp_path / "engines", options, _Interrupt(("osvos", "adapt")))
    left = tmp_path / ".engines.mpn-export"
    assert (left / "propagation_adapt.onnx").exists()
    assert not list(left.glob("osvos*"))
    log = _Interrupt(None)
    bundle = export_bundle(checkpoints, tmp_path / "engines", options, log)
    assert {role for role, _ in log.steps} == {"osvos"}
    entry = bundle.manifest.roles["propagation"].adapt
    assert entry is not None
    assert bundle.manifest == load_manifest(tmp_path / "engines")


def test_another_optimizer_is_another_export(checkpoints: list[Path], tmp_path: Path) -> None:
    options = ExportOptions(verify=False, finetune_optimizer="sgd", **SIZES)  # type: ignore[arg-type]
    manifest = export_bundle(checkpoints, tmp_path / "engines", options).manifest
    for role in ("propagation", "osvos"):
        entry = manifest.roles[role].adapt  # type: ignore[index]
        assert entry is not None
        assert entry.optimizer == "sgd"
