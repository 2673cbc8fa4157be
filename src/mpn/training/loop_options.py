"""Options that the training of every network has."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from mpn._common.validation import check_int, check_number
from mpn.errors import TrainingError

Precision = Literal["auto", "float32", "bfloat16", "float16"]
HELD_OUT = ("horsejump-low", "flamingo", "scooter-gray")
"""Sequences of DAVIS's training list that only validate, by default."""


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """What the training of every network has.

    Attributes:
        ema_decay: Of the averaged weights, which are those validated and handed out.
        holdout: Names of the sequences kept for validation.
        validate_every: Steps between validations.
        log_every: Steps between lines of the log.
        save_every_s: Seconds between saved states; 0 saves after every step.
        tensorboard: Write the log for TensorBoard too, beside ``log.csv``.
        seed: Decides everything random.
        threads: Of torch, a process.
        workers: Threads that prepare the data, a process. Data do not depend on it.
        device: ``"auto"`` is the first GPU where there is one, a process's own under torchrun.
        precision: Of the convolutions (autocast; weights stay float32). ``"auto"`` is bfloat16 on a
            GPU that has it, float16 with a scaled loss on another, float32 on a CPU.
    """

    ema_decay: float = 0.998
    holdout: tuple[str, ...] = HELD_OUT
    validate_every: int = 1000
    log_every: int = 50
    save_every_s: float = 120.0
    tensorboard: bool = False
    seed: int = 0
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    workers: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        for name in ("validate_every", "log_every", "threads", "workers"):
            check_int(name, getattr(self, name), least=1, error=TrainingError)
        check_number("ema_decay", self.ema_decay, least=0, below=1, error=TrainingError)
