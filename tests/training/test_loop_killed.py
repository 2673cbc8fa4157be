"""A training process that is killed, in the middle of a save, and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mpn.cli.main import app
from mpn.networks.checkpoint import load_checkpoint

KILLED_AT_SAVE = 3
DYING = f"""
import os, signal
replace, saves = os.replace, 0
def dying(source, target):
    global saves
    if str(target).endswith("last.pth"):
        saves += 1
        if saves == {KILLED_AT_SAVE}:
            os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = dying
from mpn.cli.main import main
main()
"""
"""``mpn`` as a process that SIGKILL ends after it wrote a state and before it put it in place."""

COMMON = [
    "--batch", "2", "--threads", "1", "--set", "training.save_every_s=0",
]  # fmt: skip
RUNS = {
    "propagation": [  # with the score of the target model, so with all that a rollout has
        "--set", "training.network.in_channels=5",
        "--set", "training.score.size_hw=[97, 129]", "--set", "training.score.short_side_px=97",
        "--width", "0.0625", "--head-width", "0.0625", "--middle-blocks", "1", "--roi-size", "65",
        "--set", "training.validation_frames=3",
        "--steps", "5", "--decay-steps", "5", "--set", "training.warmup_steps=2",
        "--set", "training.rollout.blur_share=0.5", "--set", "training.mix.vanishing=0.3",
        "--set", "training.rollout.flow_error_share=0.3", "--set", "training.network.dropout=true",
    ],
    "osvos": [
        "--width", "0.0625", "--crop-size", "64", "--salient-steps", "2", "--davis-steps", "3",
    ],
    "flow": [
        "--variant", "FlowNet2S", "--width", "0.0625", "--steps", "5",
        "--set", "training.size_hw=[64, 64]", "--set", "training.validation_hw=[64, 64]",
        "--set", "training.synthetic_validation=1", "--set", "training.validation_frames=3",
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _memory_is_kept_already(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"):
        monkeypatch.setenv(name, "65536")


def _trained(role: str, arguments: list[str], out: Path) -> dict[str, torch.Tensor]:
    result = CliRunner().invoke(app, ["train", role, *arguments, "-o", str(out)])
    assert result.exit_code == 0, (result.output, result.exception)
    return dict(load_checkpoint(out / f"{role}.pth").roles[role].state_dict)  # type: ignore[index]


@pytest.mark.parametrize("role", RUNS)
def test_killed_run_resumes_to_identical_weights(
    role: str, davis_like: Path, stills_like: Path, features_file: Path, tmp_path: Path
) -> None:
    data = ["--davis-root", str(davis_like), "--stills", str(stills_like)]
    if role == "propagation":
        data += ["--features", str(features_file)]
    arguments = [*data, *COMMON, *RUNS[role]]
    unbroken = _trained(role, arguments, tmp_path / "unbroken")

    out = tmp_path / "killed"
    died = subprocess.run(
        [sys.executable, "-c", DYING, "train", role, *arguments, "-o", str(out)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(list(out.glob(".last.pth.*.partial"))) == 1
    state = torch.load(out / "last.pth", weights_only=True)
    assert state["step"] == KILLED_AT_SAVE - 1
    resumed = _trained(role, [*arguments, "--resume"], out)
    assert not list(out.glob("*.partial"))
    for key, value in unbroken.items():
        assert torch.equal(value, resumed[key]), key
    # control: the run that died was not yet there
    assert any(not torch.equal(v, state["averaged"].get(k, v + 1)) for k, v in unbroken.items())
