"""Several processes of one run give what one process with the whole batch gives."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mpn.errors import TrainingError
from mpn.training.optimisation import MixedPrecision, chosen_precision
from mpn.training.processes import Processes, joined_processes
from mpn.training.propagation.clips import ClipSources
from tests.conftest import REPOSITORY
from tests.tolerances import JOINED_GRADIENT_RELATIVE, JOINED_WEIGHT_OF_STEP
from tests.training import ddp_worker as joined_child
from tests.training.ddp_worker import BATCH, STEPS, TRAINERS, trained

COUNT = 2


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def joined(davis_like: Path, stills_like: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("joined")
    # Environment of torchrun's processes.
    place = {"WORLD_SIZE": str(COUNT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", joined_child.__name__, davis_like, stills_like, out],
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(COUNT)
    ]
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * COUNT, errors
    return [torch.load(out / f"{rank}.pth", weights_only=True) for rank in range(COUNT)]


def _off(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Compute the largest relative difference of two sets of tensors."""
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max() / b[k].abs().max().clamp(min=1e-12)) for k in b)


@pytest.fixture(scope="module")
def single(material: ClipSources) -> Any:
    return {role: trained(role, material, Processes()) for role in TRAINERS}


@pytest.mark.parametrize("role", TRAINERS)
def test_averaged_gradients_are_those_of_the_joined_batch(
    role: str, joined: Any, single: Any, material: ClipSources
) -> None:
    alone = single[role]
    for rank in range(COUNT):
        assert _off(joined[rank][role]["gradients"], alone["gradients"]) < JOINED_GRADIENT_RELATIVE
    # control: the gradients of one process's share differ
    half = trained(role, material, Processes(), BATCH // COUNT)
    assert _off(half["gradients"], alone["gradients"]) > 100 * JOINED_GRADIENT_RELATIVE


@pytest.mark.parametrize("role", TRAINERS)
def test_weights_stay_the_same_in_all_processes_and_as_in_one(
    role: str, joined: Any, single: Any
) -> None:
    alone = single[role]
    first, second = (joined[rank][role]["weights"] for rank in range(COUNT))
    for key, value in alone["weights"].items():
        assert torch.equal(first[key], second[key]), key
        if value.is_floating_point():
            rate = 3e-3  # the largest peak rate of the three, AdamW: a step moves a weight so far
            moved = (first[key] - value).abs().mean()
            assert float(moved) < JOINED_WEIGHT_OF_STEP * rate * STEPS, key
    assert joined[0][role]["loss"] == pytest.approx(alone["loss"], rel=1e-4)


def test_a_run_of_two_processes_is_resumed_by_one(
    joined: Any, single: Any, material: ClipSources
) -> None:
    state = joined[0]["propagation"]["state"]
    assert [len(group) for group in state["groups"]] == [BATCH, BATCH]
    alone = single["propagation"]["state"]
    for mine, theirs in zip(alone["groups"], state["groups"], strict=True):
        assert [r["clip_seed"] for r in mine] == [r["clip_seed"] for r in theirs]
    trainer = joined_child.propagation_trainer(material, Processes())
    trainer.restore(state)
    assert trainer.step == STEPS


def test_all_take_process_0_s_choice(joined: Any) -> None:
    assert [result["agreed"] for result in joined] == [True, True]


def test_shares_are_disjoint_whole_and_even() -> None:
    shares = [Processes(rank, 3).share(range(9)) for rank in range(3)]
    assert sorted(k for share in shares for k in share) == list(range(9))
    with pytest.raises(TrainingError, match="batch of 8 cannot be divided evenly among 3"):
        Processes(0, 3).share(range(8))


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with (
        pytest.raises(TrainingError, match="a GPU is required, but process 0 finds 0"),
        joined_processes("cuda"),
    ):
        pass
    with joined_processes("auto") as processes:
        assert processes.device.type == "cpu"
        assert processes.is_first


@pytest.mark.parametrize(
    ("device", "bfloat16", "expected"),
    [("cpu", True, "float32"), ("cuda", True, "bfloat16"), ("cuda", False, "float16")],
)
def test_auto_selects_the_best_precision(
    device: str, bfloat16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bfloat16)
    assert chosen_precision("auto", torch.device(device)) == expected


def test_float16_on_a_cpu_is_refused_and_bfloat16_computes_in_it() -> None:
    cpu = torch.device("cpu")
    with pytest.raises(TrainingError, match="float16 trains on a GPU only"):
        MixedPrecision("float16", cpu)
    layer, x = torch.nn.Conv2d(3, 8, 3), torch.rand(1, 3, 8, 8)
    for precision, dtype in (("bfloat16", torch.bfloat16), ("auto", torch.float32)):
        with MixedPrecision(precision, cpu).autocast():  # type: ignore[arg-type]
            assert layer(x).dtype == dtype
