from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mpn.cli import main as cli
from mpn.cli.export import plan_text
from mpn.engines.tensorrt.plans.progress import PlanProgress
from mpn.masks import save_labels
from tests.builders.engine_dirs import make_engine_dir
from tests.builders.finetune_dirs import make_adapt_dir
from tests.emulation.driver import install_driver
from tests.emulation.tensorrt import install_tensorrt
from tests.runtime.media.clips import SCENE_HW, scene, scene_labels, write_video


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return make_adapt_dir(tmp_path / "engines")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Any:
    return install_tensorrt(monkeypatch, "11", install_driver(monkeypatch))


def mpn(*arguments: str | Path) -> int:
    return cli._run_app(cli.app, [str(argument) for argument in arguments])


def test_plans_of_an_exported_directory_are_built_without_torch(
    directory: Path, fakes: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mpn("export", directory, "--build") == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("propagation built from propagation.onnx in 0 s, because none was")
    assert "0 of 2 convolutions and products in half precision" in lines[0]
    assert lines[3].endswith(", weights can be exchanged")
    assert printed.err.splitlines()[:1] == ["propagation: building the plan, 0 %"]
    assert mpn("export", directory, "--build", "--quiet") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "propagation from propagation-tensorrt-sm_90-11.4.0.106-" in printed.out


def test_inspect_finds_plans_for_other_gpus_and_versions(
    directory: Path, fakes: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mpn("export", directory, "--build", "--any-gpu", "--any-version") == 0
    capsys.readouterr()
    assert mpn("inspect", directory, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["backends"]["tensorrt"] == {"usable": True, "reason": "opened propagation, osvos"}
    assert all("-ampere+-11+-" in plan["path"] for plan in report["plans"])


def test_inspect_lists_plans_and_builds_none(
    directory: Path, fakes: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mpn("inspect", directory) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Plans" not in printed
    assert "there is no plan of propagation for TensorRT 11.4.0.106" in printed
    assert not (directory / "plans").exists()
    assert mpn("export", directory, "--build", "--quiet") == 0
    plan = sorted((directory / "plans").glob("osvos-*.plan"))[0]
    plan.write_bytes(b"changed")
    capsys.readouterr()
    assert mpn("inspect", directory) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for part in (
        "Plans",
        "tensorrt 11.4.0.106",
        "Fake H200",
        "sm_90",
        "changed since it was built",
    ):
        assert part in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--plans-for", "openvino"], "plans are built for tensorrt or tensorrt-rtx, not 'openvi"),
        (["--plans-for", "tensorrt-rtx"], "extra [rtx]"),
    ],
)
def test_failing_plan_is_a_one_line_error(
    directory: Path,
    fakes: Any,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    assert mpn("export", directory, "--build", *arguments) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert says in printed.err
    assert printed.err.count("\n") == 1


def test_machine_without_builder_fails_before_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_tensorrt(monkeypatch, "11", None)
    checkpoint = tmp_path / "unread.pth"
    checkpoint.write_bytes(b"no checkpoint")
    assert mpn("export", checkpoint, "-o", tmp_path / "out", "--build") == 1
    err = capsys.readouterr().err
    assert "no plans can be built here" in err
    assert "builds on a GPU only" in err
    assert err.count("\n") == 1


def test_progress_is_reported_in_percent_and_seconds() -> None:
    progress = PlanProgress("flow", "Timing tactics", 0.336, 20.0, 39.5)
    assert plan_text(progress) == "flow: building the plan, 34 %, about 40 s left"
    assert plan_text(PlanProgress("flow", "x", 0.0, 0.0, None)) == "flow: building the plan, 0 %"


def test_a_run_may_not_build(
    tmp_path: Path,
    fakes: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    make_engine_dir(tmp_path / "engines", frame_size_hw=SCENE_HW)
    write_video(tmp_path / "clip.mp4", scene(2))
    save_labels(tmp_path / "first.png", scene_labels(0))
    code = mpn(
        "run", "clip.mp4", "--mask", "first.png", "--engine-dir", "engines",
        "--backend", "tensorrt", "--no-build",
    )  # fmt: skip
    err = capsys.readouterr().err
    assert code == 1
    assert "there is no plan of propagation for TensorRT 11.4.0.106 that fits this machine" in err
    assert "leave --no-build away" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "engines" / "plans").exists()
    assert not (tmp_path / "clip-mpn").exists()
