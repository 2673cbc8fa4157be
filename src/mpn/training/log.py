"""Log of a run: ``log.csv``, and TensorBoard's files if requested."""

from __future__ import annotations

import csv
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from mpn._common.closeable import Closeable
from mpn.errors import import_or_explain

LOG_FILE = "log.csv"
_DIGITS = {"loss": ".5f", "learning_rate": ".3g"}


class RunLog(Closeable):
    """CSV log of reports, one column per field, after the step and the seconds.

    Args:
        out: Folder of the run; exists if the log is enabled.
        from_step: Step to resume from. Lines of later steps were written after the last saved state
            by a process that was then killed. They are dropped, because these steps run again.
        tensorboard: Also write event files to ``out/tensorboard``.
        enabled: False writes nothing: there is one log for several processes.

    Raises:
        MissingExtraError: If TensorBoard is requested and not installed.
    """

    def __init__(self, out: Path, *, from_step: int, tensorboard: bool, enabled: bool) -> None:
        self._path, self._enabled = out / LOG_FILE, enabled
        self._board: Any = None
        self._seconds_before = 0.0
        self._start = time.monotonic()
        if not enabled:
            return
        if tensorboard:
            module = import_or_explain(
                "torch.utils.tensorboard", extra="tensorboard", purpose="--tensorboard"
            )
            self._board = module.SummaryWriter(str(out / "tensorboard"), purge_step=from_step + 1)
        kept = self._kept_lines(from_step)
        with self._path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(kept)

    def _kept_lines(self, from_step: int) -> list[list[str]]:
        if not from_step or not self._path.is_file():
            return []
        with self._path.open(newline="", encoding="utf-8") as file:
            header, *lines = list(csv.reader(file)) or [[]]
        kept = [line for line in lines if line and int(line[0]) <= from_step]
        if kept:
            self._seconds_before = float(kept[-1][1])
        return [header, *kept] if header else []

    def write(self, entry: Any) -> None:
        """Append one line: a dataclass with a field ``step``; None is an empty cell."""
        if not self._enabled:
            return
        values = {f.name: getattr(entry, f.name) for f in fields(entry)}
        step = values.pop("step")
        values.pop("steps", None)
        seconds = self._seconds_before + time.monotonic() - self._start
        fresh = self._path.stat().st_size == 0
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(["step", "seconds", *values])
            writer.writerow(
                [step, f"{seconds:.1f}", *(_cell(name, v) for name, v in values.items())]
            )
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close TensorBoard's files; closing twice is allowed."""
        board, self._board = self._board, None
        if board is not None:
            board.close()


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    return format(value, _DIGITS.get(name, ".4f")) if isinstance(value, float) else str(value)
