"""Progress display of a training run."""

from __future__ import annotations

from typing import Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mpn._common.closeable import Closeable
from mpn._common.console import PlainConsole
from mpn.training.flow.options import FlowTrainingReport
from mpn.training.osvos.options import OsvosTrainingReport
from mpn.training.processes import is_first_process
from mpn.training.propagation.options import TrainingReport

AnyReport = TrainingReport | OsvosTrainingReport | FlowTrainingReport


class TrainingProgress(Closeable):
    """Bar with loss and IoU on a terminal, else plain lines.

    Processes other than the first show nothing.
    """

    def __init__(self) -> None:
        self._console = PlainConsole(stderr=True)
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            disable=not (self._console.is_terminal and is_first_process()),
        )
        self._task = self._progress.add_task("training", total=None, numbers="")

    def report(self, entry: AnyReport) -> None:
        """Show one report."""
        numbers = _numbers(entry)
        if isinstance(entry, FlowTrainingReport) and entry.validation_epe_px is not None:
            numbers += f"  validation EPE {entry.validation_epe_px:.2f} px"
        if entry.validation_j is not None:
            numbers += f"  validation J {entry.validation_j:.3f}"
        self._progress.update(self._task, completed=entry.step, total=entry.steps, numbers=numbers)
        if not self._console.is_terminal or entry.validation_j is not None:
            self._console.print(f"step {entry.step}/{entry.steps}  {numbers}", highlight=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def close(self) -> None:
        """Remove the bar; closing twice is allowed."""
        self._progress.stop()


def _numbers(entry: AnyReport) -> str:
    if isinstance(entry, FlowTrainingReport):
        iou = f"{entry.stage}  EPE {entry.epe_px:.2f} px"
    elif isinstance(entry, OsvosTrainingReport):
        iou = f"{entry.stage}  IoU {entry.crop_iou:.3f}"
    else:
        iou = f"IoU in {entry.input_iou:.3f} out {entry.crop_iou:.3f}"
    return f"loss {entry.loss:.3f}  {iou}  lr {entry.learning_rate:.1e}"
