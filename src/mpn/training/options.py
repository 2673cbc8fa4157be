"""Options that the training of each network has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mpn._common.concurrency import usable_threads
from mpn._common.cores import usable_cores
from mpn._common.validation import check_int, check_number
from mpn.errors import TrainingError

Precision = Literal["auto", "float32", "bfloat16", "float16"]

HELD_OUT = ("horsejump-low", "flamingo", "scooter-gray")
"""Sequences of DAVIS's training list used only for validation, by default."""


_RATES = ("learning_rate", "salient_rate", "davis_rate", "backbone_rate", "clip_norm")
"""Options that a network may have. NaN would destroy the weights."""

_LARGEST_SEED = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """Options that all networks have in common.

    Attributes:
        ema_decay: Decay of the averaged weights, which are validated and exported.
        holdout: Names of the sequences kept for validation.
        validate_every: Steps between validations.
        log_every: Steps between lines of the log.
        save_every_s: Seconds between saved states; 0 saves after every step.
        tensorboard: Also write the log for TensorBoard.
        seed: Seed of all random choices, 0..2^63 - 1.
        threads: Threads of torch per process.
        workers: Threads per process that prepare the data. The data do not depend on it.
        device: ``"auto"`` is the first GPU if there is one; under torchrun, the GPU of the process.
        precision: Precision of the convolutions (autocast; weights stay float32). ``"auto"`` is
            bfloat16 on a GPU that supports it, float16 with a scaled loss on another GPU, float32
            on a CPU.
    """

    ema_decay: float = 0.998
    holdout: tuple[str, ...] = HELD_OUT
    validate_every: int = 1000
    log_every: int = 50
    save_every_s: float = 120.0
    tensorboard: bool = False
    seed: int = 0
    threads: int = field(default_factory=usable_cores)
    workers: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        for name in ("validate_every", "log_every", "workers"):
            check_int(name, getattr(self, name), least=1, error=TrainingError)
        threads = usable_threads(self.threads, "threads", error=TrainingError)
        object.__setattr__(self, "threads", threads)
        check_int("seed", self.seed, least=0, most=_LARGEST_SEED, error=TrainingError)
        for name in _RATES:
            if hasattr(self, name):
                check_number(name, getattr(self, name), least=0, error=TrainingError)
        check_number("ema_decay", self.ema_decay, least=0, below=1, error=TrainingError)
