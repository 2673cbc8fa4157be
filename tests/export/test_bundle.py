from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import nn

from mpn import __version__
from mpn._common.files import sha256_of_file
from mpn.engines.directory.manifest import load_manifest
from mpn.engines.directory.parity import load_parity
from mpn.engines.open import open_engines
from mpn.engines.spec import EngineSpec, Precision, Role
from mpn.errors import CheckpointError, ExportError, InputError, OutputError
from mpn.export import bundle as bundle_module
from mpn.export.bundle import export_bundle
from mpn.export.graph import ExportedGraph
from mpn.export.options import ExportOptions
from mpn.export.progress import Progress, Step
from tests.export.conftest import FRAME_SIZE_HW, MAX_OBJECTS, ROI_SIZE, Graphs


def _options(**values: Any) -> ExportOptions:
    """Return tiny sizes without the fine-tuning step, which takes seconds."""
    usual = {"frame_size_hw": FRAME_SIZE_HW, "roi_size": ROI_SIZE, "max_objects": MAX_OBJECTS}
    return ExportOptions(**({"finetune": False} | usual | values))


class _Log(Progress):
    """Log of all calls, which raises KeyboardInterrupt at a given step."""

    def __init__(self, interrupt_at: tuple[Role, Step] | None = None) -> None:
        self.interrupt_at = interrupt_at
        self.steps: list[tuple[Role, Step]] = []
        self.reused_roles: list[Role] = []
        self.read: list[str] = []

    def reading(self, path: Path) -> None:
        self.read.append(path.name)

    def started(self, role: Role, step: Step) -> None:
        if (role, step) == self.interrupt_at:
            raise KeyboardInterrupt

    def finished(self, role: Role, step: Step, elapsed_s: float) -> None:
        assert elapsed_s >= 0
        self.steps.append((role, step))

    def reused(self, role: Role) -> None:
        self.reused_roles.append(role)


@pytest.fixture(autouse=True)
def exported_roles(monkeypatch: pytest.MonkeyPatch, graphs: Graphs) -> list[Role]:
    """Exported roles; graphs are copied, because tracing takes seconds."""
    roles: list[Role] = []

    def copied(
        network: nn.Module,
        spec: EngineSpec,
        path: Path,
        *,
        precision: Precision = "fp32",
        weights_in_file: bool = False,
        progress: Progress | None = None,
    ) -> ExportedGraph:
        assert not weights_in_file
        graph = graphs(spec.role, precision)
        shutil.copy(graph.path, path)
        roles.append(spec.role)
        return graph

    monkeypatch.setattr(bundle_module, "export_graph", copied)
    return roles


def test_checkpoints_become_an_engine_directory_that_runs(
    checkpoint_dir: Path, tmp_path: Path
) -> None:
    log = _Log()
    checkpoints = [checkpoint_dir / "both.pth", checkpoint_dir / "flow.pth"]
    options = _options(
        precision="fp16", runtime_defaults={"crf": False}, command="mpn-export both.pth flow.pth"
    )
    bundle = export_bundle(checkpoints, tmp_path / "engines", options, log)
    assert bundle.directory == tmp_path / "engines"
    assert {path.name for path in tmp_path.iterdir()} == {"engines"}
    assert {path.name for path in bundle.directory.iterdir()} == {
        "manifest.json",
        "parity.json",
        "flow.onnx",
        "propagation.onnx",
        "osvos.onnx",
    }
    manifest = load_manifest(bundle.directory)
    assert manifest == bundle.manifest
    assert manifest.name == "engines"
    assert manifest.flow.source == "engine"
    assert manifest.runtime_defaults == {"crf": False}
    assert {role: entry.precision for role, entry in manifest.roles.items()} == {
        "flow": "fp16",
        "propagation": "fp16",
        "osvos": "fp16",
    }
    assert {role: entry.variant for role, entry in manifest.roles.items()} == {
        "flow": "flownet2-cs-width-0.125",
        "propagation": "deeplab-xception-os16-width-0.125",
        "osvos": "osvos-vgg-5-branches-width-0.125",
    }
    assert [entry.size_multiple for entry in manifest.roles.values()] == [64, 16, 1]
    provenance = manifest.provenance
    assert [(file.path, file.sha256) for file in provenance.checkpoints] == [
        (path.name, sha256_of_file(path)) for path in checkpoints
    ]
    assert provenance.licence == "CC0-1.0"
    assert provenance.tool_version == __version__
    assert provenance.command == "mpn-export both.pth flow.pth"
    assert str(tmp_path) not in (bundle.directory / "manifest.json").read_text()
    assert log.read == ["both.pth", "flow.pth"]
    assert log.steps == [
        (role, step) for role in ("flow", "propagation", "osvos") for step in ("load", "verify")
    ]
    with open_engines(bundle.directory, backend="cpu", threads=1) as engines:
        crops = np.zeros((3, 4, ROI_SIZE, ROI_SIZE), np.float32)
        assert engines.propagation.run({"rgb_prob": crops})["prob"].shape[0] == 3
        assert engines.flow is not None
        assert engines.osvos is not None


def test_report_and_summary_describe_the_export(checkpoint_dir: Path, tmp_path: Path) -> None:
    bundle = export_bundle(
        [checkpoint_dir / "both.pth"], tmp_path / "engines", _options(precision="fp16")
    )
    report = load_parity(bundle.directory)
    assert report is not None
    assert {measure.role for measure in report.measures} == {"propagation", "osvos"}
    ledger = report.document["roles"]["osvos"]
    assert (ledger["half_weights"], ledger["total_weights"]) == (19, 19)
    assert ledger["largest_activation"]["magnitude"] > 0
    osvos = next(summary for summary in bundle.roles if summary.role == "osvos")
    assert (osvos.half_weights, osvos.total_weights) == (19, 19)
    assert osvos.parameters == bundle.manifest.roles["osvos"].parameters > 100_000
    assert osvos.size_bytes == (bundle.directory / "osvos.onnx").stat().st_size
    assert osvos.verify_s is not None
    assert osvos.largest_difference is not None
    assert not osvos.reused


def test_manifest_without_flow_checkpoint_uses_dis(checkpoint_dir: Path, tmp_path: Path) -> None:
    options = _options(flow_preset="fast", flow_scale=0.5, name="lite", licence="CC BY 4.0")
    checkpoint = checkpoint_dir / "propagation.pth"
    manifest = export_bundle([checkpoint], tmp_path / "engines", options).manifest
    assert manifest.flow.as_json() == {"source": "opencv-dis", "preset": "fast", "scale": 0.5}
    assert set(manifest.roles) == {"propagation"}
    assert manifest.name == "lite"
    assert manifest.provenance.licence == "CC BY 4.0"


def test_only_requested_roles_are_exported(
    checkpoint_dir: Path, tmp_path: Path, exported_roles: list[Role]
) -> None:
    options = _options(roles=("propagation",))
    export_bundle([checkpoint_dir / "both.pth"], tmp_path / "engines", options)
    assert exported_roles == ["propagation"]


def test_interrupted_export_resumes(
    checkpoint_dir: Path, tmp_path: Path, exported_roles: list[Role]
) -> None:
    out = tmp_path / "engines"
    checkpoint = [checkpoint_dir / "both.pth"]
    with pytest.raises(KeyboardInterrupt):
        export_bundle(checkpoint, out, _options(), _Log(interrupt_at=("osvos", "verify")))
    assert not out.exists()
    assert exported_roles == ["propagation", "osvos"]
    log = _Log()
    bundle = export_bundle(checkpoint, out, _options(), log)
    assert exported_roles == ["propagation", "osvos", "osvos"]
    assert log.reused_roles == ["propagation"]
    assert {summary.role: summary.reused for summary in bundle.roles} == {
        "propagation": True,
        "osvos": False,
    }
    report = load_parity(out)
    assert report is not None
    assert {measure.role for measure in report.measures} == {"propagation", "osvos"}
    assert {path.name for path in tmp_path.iterdir()} == {"engines"}


@pytest.mark.parametrize(
    "changed", [{"precision": "fp16"}, {"verify": False}, {"max_objects": MAX_OBJECTS + 1}]
)
def test_export_with_other_options_starts_over(
    checkpoint_dir: Path, tmp_path: Path, exported_roles: list[Role], changed: dict[str, Any]
) -> None:
    out = tmp_path / "engines"
    checkpoint = [checkpoint_dir / "both.pth"]
    with pytest.raises(KeyboardInterrupt):
        export_bundle(checkpoint, out, _options(), _Log(interrupt_at=("osvos", "load")))
    export_bundle(checkpoint, out, _options(**changed))
    assert exported_roles == ["propagation", "propagation", "osvos"]


def _spoilt(export: Callable[..., ExportedGraph]) -> Callable[..., ExportedGraph]:
    """Make an exporter whose graphs have first weights 2 % too large."""

    def spoil(network: nn.Module, spec: EngineSpec, path: Path, **rest: Any) -> ExportedGraph:
        graph = export(network, spec, path, **rest)
        model = onnx.load(path)
        tensor = model.graph.initializer[0]
        values = numpy_helper.to_array(tensor) * np.float32(1.02)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        onnx.save_model(model, path)
        return graph

    return spoil


def test_a_graph_that_differs_is_refused_and_nothing_is_written(
    checkpoint_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "engines"
    checkpoint = [checkpoint_dir / "propagation.pth"]
    export_bundle(checkpoint, out, _options(name="good"))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(bundle_module, "export_graph", _spoilt(bundle_module.export_graph))
    for target in (out, tmp_path / "new"):
        with pytest.raises(
            ExportError, match=r"differs from its PyTorch module: 1 object: logit_r"
        ):
            export_bundle(checkpoint, target, _options(name="bad"))
    assert {path.name for path in tmp_path.iterdir()} == {"engines"}
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    # Control: it was the comparison that refused.
    export_bundle(checkpoint, out, _options(name="bad", verify=False))
    assert load_manifest(out).name == "bad"


def test_unverified_export_is_marked(checkpoint_dir: Path, tmp_path: Path) -> None:
    bundle = export_bundle(
        [checkpoint_dir / "propagation.pth"], tmp_path / "engines", _options(verify=False)
    )
    report = load_parity(bundle.directory)
    assert report is not None
    assert report.reference is None
    assert bundle.roles[0].verify_s is None
    assert bundle.roles[0].largest_difference is None


@pytest.mark.parametrize(
    ("checkpoints", "options", "error", "says"),
    [
        ([], {}, CheckpointError, "no checkpoint was given"),
        (["missing.pth"], {}, CheckpointError, r"no checkpoint at .*missing\.pth"),
        (["flow.pth"], {}, CheckpointError, "needs propagation, but only flow was given"),
        (["flow.pth", "osvos.pth"], {}, CheckpointError, "only flow, osvos was given"),
        (["both.pth", "osvos.pth"], {}, CheckpointError, "both hold osvos weights"),
        (
            ["both.pth"],
            {"roles": ("osvos",)},
            CheckpointError,
            "propagation, but only osvos was requested",
        ),
        (
            ["propagation.pth"],
            {"roles": ("propagation", "flow")},
            CheckpointError,
            "'flow' was requested, but the checkpoints hold propagation only",
        ),
        (["both.pth"], {"parity_images": Path("none")}, InputError, "is not a folder"),
        (
            ["propagation.pth", "flow.pth"],
            {"flow_variant": "FlowNet2"},
            CheckpointError,
            r"flow\.pth holds FlowNet2CS, but FlowNet2 is expected .*choose FlowNet2CS",
        ),
        (
            ["propagation.pth"],
            {"flow_variant": "FlowNet2"},
            CheckpointError,
            "no checkpoint holds a flow network",
        ),
        (
            ["propagation.pth", "flow.pth"],
            {"flow_variant": "FlowNet3"},
            InputError,
            "unknown network 'FlowNet3'",
        ),
    ],
)
def test_failing_export_is_one_line_and_leaves_no_files(
    checkpoint_dir: Path,
    tmp_path: Path,
    exported_roles: list[Role],
    checkpoints: list[str],
    options: Mapping[str, Any],
    error: type[Exception],
    says: str,
) -> None:
    paths = [checkpoint_dir / name for name in checkpoints]
    with pytest.raises(error, match=says) as info:
        export_bundle(paths, tmp_path / "engines", _options(**options))
    assert "\n" not in str(info.value)
    assert list(tmp_path.iterdir()) == []
    assert exported_roles == []


def test_second_export_to_a_folder_is_refused(checkpoint_dir: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    class Second(_Log):
        def started(self, role: Role, step: Step) -> None:
            if not seen:
                with pytest.raises(OutputError, match="engines is in use by another run") as caught:
                    export_bundle([checkpoint], tmp_path / "engines", options)
                seen.append(str(caught.value))

    checkpoint, options = checkpoint_dir / "propagation.pth", _options(verify=False)
    export_bundle([checkpoint], tmp_path / "engines", options, Second())
    assert len(seen) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["engines"]
    export_bundle([checkpoint], tmp_path / "engines", options)  # control


def test_unusable_folder_fails_before_reading_checkpoints(
    checkpoint_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    log = _Log()
    with pytest.raises(OutputError, match="is a file"):
        export_bundle([checkpoint_dir / "both.pth"], tmp_path / "file", _options(), log)
    assert log.read == []


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(
    checkpoint_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_network: nn.Module, _spec: EngineSpec, path: Path, **_: Any) -> ExportedGraph:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bundle_module, "export_graph", full)
    with pytest.raises(OutputError, match=r"osvos\.onnx|propagation\.onnx.*No space left"):
        export_bundle([checkpoint_dir / "both.pth"], tmp_path / "engines", _options())
    assert list(tmp_path.iterdir()) == []


def test_full_disk_fails_before_any_work(
    checkpoint_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    exported_roles: list[Role],
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(OutputError, match=r"need about .* MiB left"):
        export_bundle([checkpoint_dir / "both.pth"], tmp_path / "engines", _options())
    assert exported_roles == []


def test_licences_of_several_checkpoints_are_all_named(
    checkpoint_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bundle_module.load_checkpoint

    def load(path: Path, **rest: Any) -> Any:
        checkpoint = real(path, **rest)
        provenance = checkpoint.provenance if path.stem == "flow" else {"licence": "MIT"}
        return type(checkpoint)(checkpoint.roles, checkpoint.sources, provenance)

    monkeypatch.setattr(bundle_module, "load_checkpoint", load)
    paths = [checkpoint_dir / "propagation.pth", checkpoint_dir / "flow.pth"]
    manifest = export_bundle(paths, tmp_path / "engines", _options(verify=False)).manifest
    assert manifest.provenance.licence == "MIT; CC0-1.0"


def test_the_manifest_is_strict_json(checkpoint_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "engines"
    export_bundle([checkpoint_dir / "propagation.pth"], out, _options(verify=False))
    for name in ("manifest.json", "parity.json"):
        assert json.loads((out / name).read_text())["schema_version"] == 1
