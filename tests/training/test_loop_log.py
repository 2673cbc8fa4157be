from __future__ import annotations

import csv
import sys
import types
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mpn.errors import MissingExtraError, OutputError, TrainingError
from mpn.networks.checkpoint import write_torch_file
from mpn.training.loop import STATE_FILE, RunLog, saved_state
from tests.builders.tiny_disk import tiny_disk as tiny_disk


@dataclass(frozen=True)
class _Entry:
    step: int
    steps: int
    stage: str
    loss: float
    validation_j: float | None = None


def _rows(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open() as file:
        return list(csv.DictReader(file))


def _log(out: Path, from_step: int = 0, *, tensorboard: bool = False, enabled: bool = True):
    return RunLog(out, from_step=from_step, tensorboard=tensorboard, enabled=enabled)


def test_lines_have_step_seconds_and_the_fields(tmp_path: Path) -> None:
    with _log(tmp_path) as log:
        log.write(_Entry(50, 100, "alone", 0.123456))
        log.write(_Entry(100, 100, "alone", 0.1, 0.75))
    rows = _rows(tmp_path)
    assert list(rows[0]) == ["step", "seconds", "stage", "loss", "validation_j"]
    assert [row["loss"] for row in rows] == ["0.12346", "0.10000"]
    assert [row["validation_j"] for row in rows] == ["", "0.7500"]


def test_log_drops_lines_after_the_saved_state(tmp_path: Path) -> None:
    with _log(tmp_path) as log:
        for step in (50, 100, 150):
            log.write(_Entry(step, 200, "alone", 0.5))
    with _log(tmp_path, from_step=100) as log:
        log.write(_Entry(150, 200, "alone", 0.25))
    rows = _rows(tmp_path)
    assert [row["step"] for row in rows] == ["50", "100", "150"]
    assert rows[-1]["loss"] == "0.25000"
    # control: a new run starts a new log
    with _log(tmp_path) as log:
        log.write(_Entry(50, 200, "alone", 0.5))
    assert len(_rows(tmp_path)) == 1


def test_line_that_a_full_disk_cut_off_is_dropped(tmp_path: Path) -> None:
    with _log(tmp_path) as log:
        log.write(_Entry(50, 200, "alone", 0.5))
    with (tmp_path / "log.csv").open("a") as file:
        file.write("7")
    with _log(tmp_path, from_step=100) as log:
        log.write(_Entry(150, 200, "alone", 0.25))
    assert [row["step"] for row in _rows(tmp_path)] == ["50", "150"]


def test_full_disk_is_one_line_and_keeps_log_and_state(tiny_disk: Path) -> None:
    log = _log(tiny_disk)
    log.write(_Entry(50, 200, "alone", 0.5))
    write_torch_file(tiny_disk / STATE_FILE, {"step": 50, "model": {}})
    before = (tiny_disk / STATE_FILE).read_bytes()
    with pytest.raises(OutputError, match=r"^cannot write .*last\.pth: .*"):
        write_torch_file(tiny_disk / STATE_FILE, {"step": 60, "model": torch.zeros(1 << 16)})
    assert (tiny_disk / STATE_FILE).read_bytes() == before
    fill = (tiny_disk / "fill").open("wb", buffering=0)
    with suppress(OSError):
        while True:
            fill.write(b"x" * 512)

    def fill_log() -> None:
        for step in range(4096):
            log.write(_Entry(step, 200, "alone" * 9, 0.5))

    with pytest.raises(OutputError, match=r"^cannot write .*log\.csv: No space left on device$"):
        fill_log()
    fill.close()
    with pytest.raises(OutputError, match=r"^cannot write .*log\.csv: No space left on device$"):
        _log(tiny_disk, from_step=50)
    assert len(_rows(tiny_disk)) >= 1


def test_flipped_byte_of_a_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / STATE_FILE
    write_torch_file(path, {"step": 3, "model": {"weight": torch.ones(1000)}})
    state = saved_state(tmp_path, resume=True)
    assert state is not None
    assert state["step"] == 3  # control
    content = bytearray(path.read_bytes())
    content[content.index(b"\x00\x00\x80\x3f" * 9) + 3] ^= 0x40  # 1.0 becomes 1.7e38
    path.write_bytes(content)
    damaged = torch.load(path, weights_only=True)  # torch itself reads it without an error
    assert damaged["model"]["weight"].max() > 1e30
    with pytest.raises(TrainingError, match=r"cannot be resumed: .*is damaged .bad checksum"):
        saved_state(tmp_path, resume=True)


def test_state_of_0_bytes_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).touch()
    assert saved_state(tmp_path, resume=True) is None
    assert saved_state(tmp_path, resume=False) is None
    write_torch_file(tmp_path / STATE_FILE, [1])
    with pytest.raises(TrainingError, match="is not the state of a run"):
        saved_state(tmp_path, resume=True)


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    with _log(tmp_path, enabled=False) as log:
        log.write(_Entry(50, 100, "alone", 0.5))
    assert not list(tmp_path.iterdir())


def test_tensorboard_gets_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert folder == str(tmp_path / "tensorboard")
            assert purge_step == 101

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append(("closed", 0.0, 0))

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    with _log(tmp_path, 100, tensorboard=True) as log:
        log.write(_Entry(150, 200, "alone", 0.5, 0.75))
    assert written == [("loss", 0.5, 150), ("validation_j", 0.75, 150), ("closed", 0.0, 0)]


def test_tensorboard_that_is_not_installed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match="tensorboard"):
        _log(tmp_path, tensorboard=True)
