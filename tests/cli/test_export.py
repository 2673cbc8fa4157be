from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mpn.cli import export_view
from mpn.cli import main as cli
from mpn.cli.export_view import ExportView, command_text, print_bundle
from mpn.engines.directory.manifest import load_manifest
from mpn.engines.open import local_engine_dir
from mpn.export.bundle import ExportedBundle
from mpn.export.options import ExportOptions
from mpn.export.summary import RoleSummary
from mpn.networks.checkpoint import save_checkpoint
from mpn.networks.propagation import PropagationConfig, PropagationNet
from tests.builders.engine_dirs import make_engine_dir
from tests.networks.seeded import DEEPLAB_GAIN, seeded

TINY = ["--frame-size", "128x64", "--roi-size", "65", "--max-objects", "2"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = seeded(
        PropagationNet(PropagationConfig(width=0.125, head_width=0.125, middle_blocks=1)),
        DEEPLAB_GAIN,
    )
    path = tmp_path_factory.mktemp("checkpoint") / "lite.pth"
    return save_checkpoint(path, {"propagation": network}, {"licence": "CC-BY-NC-4.0"})


def _run(*arguments: str) -> int:
    return cli._run_app(cli.app, ["export", *arguments])


def test_a_checkpoint_becomes_engines_and_a_table(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "engines"
    assert _run(str(checkpoint), "-o", str(out), *TINY, "--runtime-default", "crf=false") == 0
    printed = capsys.readouterr()
    words = " ".join(printed.out.split())
    for part in (
        "propagation",
        "ok",
        "0/52",
        "0.49 M",
        " ok",
        "flow: OpenCV DIS (ultrafast, scale 1), since no flow network was exported",
        "fine-tuning on the given frame: propagation by adamw",
        "names, axes, shapes and values",
        "fp32 engines in",
    ):
        assert part in words
    for step in (
        "weights loaded",
        "folded and cast",
        "traced",
        "written",
        "verified",
        "step derived",
    ):
        assert step in printed.err
    manifest = load_manifest(out)
    assert {path.name for path in out.iterdir()} == {
        "manifest.json",
        "parity.json",
        "propagation.onnx",
        "propagation.onnx.data",
        "propagation_adapt.onnx",
        "propagation_adapt_head.onnx",
        "propagation_features.onnx",
    }
    adapt = manifest.roles["propagation"].adapt
    assert adapt is not None
    assert adapt.optimizer == "adamw"
    assert {tensor.name for tensor in adapt.tensors} >= {"backbone.conv1.weight"}
    assert manifest.frame_size_hw == (64, 128)
    assert manifest.max_objects == 2
    assert manifest.runtime_defaults == {"crf": False}
    assert manifest.provenance.licence == "CC-BY-NC-4.0"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--frame-size", "854"], "WIDTHxHEIGHT such as 854x480, got '854'"),
        (["--frame-size", "32x32"], "32x32 is too small"),
        (["--roi-size", "512"], "16 n + 1"),
        (["--precision", "int4"], "the precisions are fp32, fp16"),
        (["--plans-for", "tensorrt"], "leave out --plans-for, or add --build"),
        (["--build", "--plans-for", "openvino"], "are built for tensorrt or tensorrt-rtx"),
        (["--roles", "depth"], "unknown role 'depth'"),
        (["--roles", "flow,flow"], "given twice"),
        (["--runtime-default", "crf"], "NAME=VALUE"),
        (["--parity-images", "none"], "is not a folder"),
        (["--init-fourth-channel", "ones"], "zero, mean, normal"),
        (["--flow-preset", "slow"], "unknown flow preset"),
        (
            ["--finetune-optimizer", "lion"],
            "unknown optimiser 'lion': the optimisers are sgd, adamw",
        ),
        (
            ["--no-finetune", "--finetune-optimizer", "sgd"],
            "leave out either --finetune-optimizer or",
        ),
        (["-o", ""], "current folder"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run(str(checkpoint), *arguments) == 1
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1
    assert error.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.pth", None, "there is no checkpoint (.pth) and no engine directory at /"),
        ("text.pth", b"not a checkpoint", "text.pth"),
        ("video.mp4", b"\0\0\0 ftypisom", "video.mp4"),
    ],
)
def test_invalid_checkpoint_is_a_one_line_error(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    says: str,
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert _run(str(path), "-o", str(tmp_path / "engines")) == 1
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "engines").exists()


def test_the_same_role_twice_is_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.pth"
    copy.write_bytes(checkpoint.read_bytes())
    assert _run(str(checkpoint), str(copy), "-o", str(tmp_path / "engines")) == 1
    assert "both hold propagation weights" in capsys.readouterr().err


def test_no_checkpoint_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run() == 2
    assert "CKPT" in capsys.readouterr().err


def test_help_needs_neither_torch_nor_onnx() -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript', 'numpy', 'rich.table'):\n"
        "    sys.modules[name] = None\n"
        "import mpn.cli.export\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_without_torch_the_extra_is_named(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert _run(str(checkpoint)) == 1
    assert "onnxscript" in (error := capsys.readouterr().err)
    assert "[export]" in error


def test_the_command_in_the_manifest_has_no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "/opt/bin/mpn-export",
            "/data/a b.pth",
            "-o",
            "out/",
            "--parity-images=/pics/x",
            "--name=x=y",
        ],
    )
    assert command_text() == "mpn-export 'a b.pth' -o out --parity-images=x --name=x=y"


def _summary(**values: Any) -> RoleSummary:
    facts: dict[str, Any] = {
        "role": "propagation",
        "variant": "deeplab-xception-os16",
        "parameters": 54_700_722,
        "nodes": 270,
        "size_bytes": 109 << 20,
        "half_weights": 141,
        "total_weights": 142,
        "export_s": 9.5,
        "verify_s": 60.0,
        "largest_difference": "logit_relative 7.9e-05",
    }
    return RoleSummary(**(facts | values))


def test_the_table_fits_a_terminal_of_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    summaries = (
        _summary(role="flow", variant="flownet2", parameters=162_518_834),
        _summary(),
        _summary(verify_s=None, largest_difference=None, reused=True),
    )
    manifest = load_manifest(make_engine_dir(tmp_path / "dir"))
    bundle = ExportedBundle(tmp_path, manifest, summaries, 70.0)
    print_bundle(bundle, ExportOptions(precision="fp16", verify=False))
    printed = capsys.readouterr().out
    assert "…" not in printed
    for part in ("deeplab-xception-os16", "162.52 M", "141/142", "109.0", "270", "9.5", "kept"):
        assert part in printed
    assert "not verified: --no-verify was given" in printed


def test_step_left_out_is_a_warning_on_stderr(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The exit code is 0: the engines are there."""
    asked: list[bool | None] = []

    def export_bundle(_: Any, out: Path, options: ExportOptions, view: Any) -> ExportedBundle:
        asked.append(options.finetune)
        manifest = load_manifest(make_engine_dir(out))
        summaries = (_summary(warning="propagation is exported without it: reason"), _summary())
        return ExportedBundle(out, manifest, summaries, 70.0)

    monkeypatch.setattr("mpn.export.bundle.export_bundle", export_bundle)
    for number, more in enumerate(([], ["--finetune"], ["--no-finetune", "--quiet"])):
        assert _run(str(checkpoint), "-o", str(tmp_path / str(number)), *more) == 0
        printed = capsys.readouterr()
        assert "warning: propagation is exported without it: reason\n" in printed.err
        assert ("--no-finetune" in printed.out) == ("--no-finetune" in more)
    assert asked == [None, True, False]


def test_a_quiet_export_shows_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (True, False):
        with ExportView(quiet=quiet) as view:
            view.reading(Path("a.pth"))
            view.started("flow", "trace")
            view.finished("flow", "trace", 1.25)
            view.reused("osvos")
        assert ("traced" in capsys.readouterr().err) == (not quiet)
    assert set(export_view._DOING) == set(export_view._DONE)


def test_installed_engines_are_zipped_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli._run_app(cli.app, ["export", "lite-int8", "--zip", "engines.zip"]) == 0
    assert "engines.zip#sha256=" in capsys.readouterr().out
    assert load_manifest(local_engine_dir("engines.zip", cache=tmp_path / "cache")).name == (
        "lite-int8"
    )
