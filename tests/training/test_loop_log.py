from __future__ import annotations

import csv
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

from mpn.errors import MissingExtraError
from mpn.training.loop import RunLog


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
