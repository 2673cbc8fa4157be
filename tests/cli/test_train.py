from __future__ import annotations

import os
import re
import subprocess
import sys
from enum import StrEnum
from pathlib import Path

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

from mpn.cli.main import app
from mpn.cli.train import BackboneChoice, FourthChannelChoice, HeadChoice
from mpn.networks.backbones import BACKBONES
from mpn.networks.checkpoint import load_checkpoint
from mpn.networks.propagation import FOURTH_CHANNELS, HEADS
from mpn.training.processes import keep_freed_memory
from mpn.training.recipe_file import shipped_recipes
from tests.networks.test_imagenet import public_like
from tests.training.conftest import davis_like as davis_like
from tests.training.conftest import instances_like as instances_like
from tests.training.conftest import stills_like as stills_like

TINY = "--width 0.0625 --head-width 0.0625 --middle-blocks 1 --roi-size 65 --batch 2 --threads 1"


@pytest.fixture(autouse=True)
def _memory_is_kept_already(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"):
        monkeypatch.setenv(name, "1")


def _train(arguments: list[str]) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(app, ["train", "propagation", *TINY.split(), *arguments])
    return result.exit_code, result.output, result.exception


def test_train_writes_checkpoint_and_prints_next_command(
    davis_like: Path, stills_like: Path, tmp_path: Path
) -> None:
    data = ["--davis-root", str(davis_like), "--stills", str(stills_like)]
    out = tmp_path / "run"
    code, output, _ = _train([*data, "-o", str(out), "--steps", "2", "--decay-steps", "1"])
    assert code == 0, output
    assert f"mpn export {out / 'propagation.pth'}" in output.replace("\n", "")
    checkpoint = load_checkpoint(out / "propagation.pth", expected_role="propagation")
    assert checkpoint.roles["propagation"].config["prior_skip"] is True
    assert checkpoint.provenance["data"]["davis_sequences"] == ["alpha", "beta", "gamma"]

    code, output, error = _train([*data, "-o", str(out), "--steps", "4"])
    assert code == 1
    assert "add --resume" in str(error)
    code, output, _ = _train([*data, "-o", str(out), "--steps", "4", "--resume"])
    assert code == 0, output
    code, output, _ = _train(
        [
            *data,
            "-o",
            str(tmp_path / "b"),
            "--steps",
            "1",
            "--start-from",
            str(out / "propagation.pth"),
        ]
    )
    assert code == 0, output


def test_train_chooses_backbone_head_and_published_width(
    davis_like: Path, stills_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tmp_path / "lite0.pth"
    torch.save(public_like("efficientnet-lite0", flat=True), start)
    data = ["--davis-root", str(davis_like), "--stills", str(stills_like), "--steps", "1"]
    monkeypatch.setattr(f"{__name__}.TINY", TINY.replace("--width 0.0625 ", ""))
    arguments = ["--backbone", "efficientnet-lite0", "--start-from", str(start)]
    code, output, error = _train([*data, *arguments, "--head", "pspnet", "-o", str(tmp_path / "r")])
    assert code == 0, (output, error)
    weights = load_checkpoint(tmp_path / "r/propagation.pth").roles["propagation"]
    assert weights.variant == "EfficientNetLite0-PspNet"
    assert weights.config["width"] == 1.0
    _, _, error = _train([*data, *arguments, "--backbone", "resnet50", "-o", str(tmp_path / "s")])
    assert "is ImageNet's efficientnet-lite0, but resnet50 is needed" in str(error)


def test_train_target_takes_one_imagenet_file_twice(
    davis_like: Path, stills_like: Path, instances_like: Path, tmp_path: Path
) -> None:
    lite0 = tmp_path / "lite0.pth"
    torch.save(public_like("efficientnet-lite0", flat=True), lite0)
    out = tmp_path / "run"
    files = {
        "--davis-root": davis_like,
        "--stills": stills_like,
        "--instances": instances_like,
        "--start-from": lite0,
        "--features": lite0,
        "--features-cache": tmp_path / "cache",
        "-o": out,
    }
    arguments = (
        "--recipe target --roi-size 65 --steps 1 --batch 2 --threads 1 "
        "--set training.validation_frames=3 "
        "--set training.score.size_hw=[65,97] --set training.score.short_side_px=65"
    )
    given = [str(part) for pair in files.items() for part in pair] + arguments.split()
    result = CliRunner().invoke(app, ["train", "propagation", *given])
    assert result.exit_code == 0, (result.output, result.exception)
    output = result.output.replace("\n", "")
    assert f"propagation.pth {lite0} --features-size 97x65 -o engines --roi-size 65" in output
    assert f"features of 3 sequences: 0.00 GB in {tmp_path / 'cache'}, 3 to compute" in output
    assert len(list((tmp_path / "cache").iterdir())) == 3
    checkpoint = load_checkpoint(out / "propagation.pth", expected_role="propagation")
    assert checkpoint.roles["propagation"].config["in_channels"] == 5
    assert checkpoint.provenance["data"]["instances"] == 4
    assert checkpoint.provenance["data"]["features"] == "EfficientNetLite0-Features"
    assert str(tmp_path) not in str(checkpoint.provenance)


@pytest.mark.parametrize(
    ("choice", "known"),
    [
        (BackboneChoice, BACKBONES),
        (HeadChoice, HEADS),
        (FourthChannelChoice, FOURTH_CHANNELS),
    ],
)
def test_choices_are_those_of_the_networks(choice: type[StrEnum], known: tuple[str, ...]) -> None:
    assert tuple(choice) == known


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--davis-root", "nowhere"], "nowhere is not a DAVIS folder"),
        (["--davis-root", "nowhere", "--roi-size", "100"], r"16 n \+ 1"),
        (["--davis-root", "d", "--features", "f.pth"], "4 channels takes no --features"),
        (["--davis-root", "d", "--recipe", "target"], "needs it, add --features FILE"),
        (
            ["--davis-root", "d", "--no-prior-skip", "--set", "training.network.in_channels=6"],
            "in_channels=4 or 5",
        ),
    ],
)
def test_bad_data_and_sizes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = _train(arguments)
    assert code == 1
    with pytest.raises(type(error), match=message):  # type: ignore[type-var,arg-type]
        raise error  # type: ignore[misc]
    assert not (tmp_path / "runs").exists()


def test_the_process_is_started_again_once_with_memory_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda path, arguments: started.append(arguments))
    monkeypatch.setattr(sys, "platform", "linux")
    keep_freed_memory()
    assert not started
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for name in ("MALLOC_TOP_PAD_", "OPENBLAS_NUM_THREADS"):
        os.environ.pop(name, None)
    keep_freed_memory()
    assert started == [[sys.executable, *sys.orig_argv[1:]]]
    assert os.environ["MALLOC_MMAP_THRESHOLD_"] == "1"  # of the fixture: a given value is kept
    assert os.environ["OPENBLAS_NUM_THREADS"] == "1"


@pytest.mark.parametrize("command", ["propagation", "osvos", "flow"])
def test_help_needs_no_torch(command: str) -> None:
    code = "import sys; sys.modules['torch'] = None; from mpn.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", command, "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "--davis-root" in done.stdout
    assert "Add --debug to any command" in done.stdout


@pytest.mark.parametrize("command", ["propagation", "osvos", "flow"])
def test_help_names_each_shipped_recipe(command: str) -> None:
    parameters = get_command(app).commands["train"].commands[command].params  # type: ignore[attr-defined]
    (text,) = [p.help for p in parameters if "--recipe" in p.opts]
    named = re.findall(r"[a-z]+", text.removeprefix("Shipped recipe: ").replace(" or ", " "))
    assert sorted(named) == sorted(shipped_recipes(command))


TINY_OSVOS = "--width 0.0625 --crop-size 64 --batch 2 --threads 1 --salient-steps 2 --davis-steps 2"


def _train_osvos(arguments: list[str]) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(app, ["train", "osvos", *TINY_OSVOS.split(), *arguments])
    return result.exit_code, result.output, result.exception


def test_osvos_is_trained_in_two_stages_and_its_checkpoint_loads(
    davis_like: Path, stills_like: Path, tmp_path: Path
) -> None:
    data = ["--davis-root", str(davis_like), "--stills", str(stills_like)]
    out = tmp_path / "run"
    code, output, _ = _train_osvos([*data, "-o", str(out)])
    assert code == 0, output
    assert f"{out / 'osvos.pth'} -o engines --frame-size 144x80" in output.replace("\n", "")
    checkpoint = load_checkpoint(out / "osvos.pth", expected_role="osvos")
    assert checkpoint.roles["osvos"].config == {
        "branches": 5,
        "upsample": "resize",
        "width": 0.0625,
    }
    assert checkpoint.provenance["data"]["davis_sequences"] == ["alpha", "beta", "gamma"]
    assert checkpoint.provenance["data"]["still_pairs"] == 3

    code, output, error = _train_osvos([*data, "-o", str(out)])
    assert code == 1
    assert "add --resume" in str(error)
    code, output, _ = _train_osvos([*data, "-o", str(out), "--resume", "--davis-steps", "3"])
    assert code == 0, output


def test_the_stages_of_osvos_can_be_trained_one_after_the_other(
    davis_like: Path, stills_like: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    code, output, _ = _train_osvos(
        ["--stage", "salient", "--stills", str(stills_like), "-o", str(first)]
    )
    assert code == 0, output
    start = ["--start-from", str(first / "osvos.pth")]
    code, output, _ = _train_osvos(
        ["--stage", "davis", "--davis-root", str(davis_like), "-o", str(second), *start]
    )
    assert code == 0, output
    assert load_checkpoint(second / "osvos.pth").provenance["data"]["still_pairs"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--davis-root", "d"], "add --stills"),
        (["--stills", "s"], "add --davis-root"),
        (["--davis-root", "nowhere", "--stills", "s"], "nowhere is not a DAVIS folder"),
        (["--stage", "salient", "--stills", "s"], "s is no folder of images with masks"),
        (["--davis-root", "d", "--stills", "s", "--crop-size", "100"], "multiple of 16"),
        (["--stage", "davis", "--davis-root", "d", "--start-from", "none.pth"], r"none\.pth"),
    ],
)
def test_bad_data_and_options_of_osvos_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = _train_osvos(arguments)
    assert code == 1
    assert re.search(message, str(error))
    assert "\n" not in str(error)
    assert not (tmp_path / "runs").exists()


TINY_FLOW = (
    "--variant FlowNet2S --width 0.0625 --batch 2 --threads 1 --steps 1 "
    "--set training.synthetic_validation=1 --set training.validation_frames=0"
)
TINY_SIZE = ["--set", "training.size_hw=[64, 64]"]


def _train_flow(arguments: list[str]) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(app, ["train", "flow", *TINY_FLOW.split(), *TINY_SIZE, *arguments])
    return result.exit_code, result.output, result.exception


def test_train_flow_with_written_recipe_repeats_the_run(stills_like: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "a", tmp_path / "b"
    code, output, error = _train_flow(["--stills", str(stills_like), "-o", str(out)])
    assert code == 0, (output, error)
    assert f"mpn export PROPAGATION.pth {out / 'flow.pth'}" in output.replace("\n", "")
    checkpoint = load_checkpoint(out / "flow.pth", expected_role="flow")
    assert checkpoint.roles["flow"].variant == "FlowNet2S"
    assert checkpoint.provenance["data"]["still_pairs"] == 3
    assert str(stills_like) not in str(checkpoint.provenance)

    written = ["train", "flow", "--config", str(out / "recipe.toml"), "-o", str(again)]
    result = CliRunner().invoke(app, written)
    assert result.exit_code == 0, (result.output, result.exception)
    assert (again / "recipe.toml").read_text() == (out / "recipe.toml").read_text()
    weights = load_checkpoint(again / "flow.pth").roles["flow"].state_dict
    for key, value in checkpoint.roles["flow"].state_dict.items():
        assert torch.equal(value, weights[key]), key


def test_changed_options_of_resumed_run_are_reported(stills_like: Path, tmp_path: Path) -> None:
    arguments = ["--stills", str(stills_like), "-o", str(tmp_path / "a")]
    assert _train_flow(arguments)[0] == 0
    code, output, error = _train_flow(
        [*arguments, "--resume", "--steps", "2", "--threads", "2", "--learning-rate", "1e-3"]
    )
    assert code == 0, (output, error)
    assert "changed since the run began: training.learning_rate: 0.0005 -> 0.001" in output
    assert "training.steps_by_member: [1] -> [2]" in output
    assert "threads" not in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give at least one folder"),
        (["--recipe", "huge"], "there is no flow recipe 'huge': there are lite, paper"),
        (["--config", "none.toml"], r"none\.toml cannot be read as a recipe"),
        (["--set", "training.stepz=1"], "unknown option 'training.stepz'"),
        (["--flow-pairs", "nowhere"], "nowhere holds no frames with true flow"),
        (["--precision", "float16", "--stills", "STILLS"], "float16 trains on a GPU only"),
    ],
)
def test_bad_data_and_options_of_flow_are_one_line(
    arguments: list[str],
    message: str,
    stills_like: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(stills_like) if a == "STILLS" else a for a in arguments]
    code, _, error = _train_flow(given)
    assert code == 1
    assert re.search(message, str(error))
    assert "\n" not in str(error)
