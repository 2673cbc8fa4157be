"""What fine-tuning says while it runs, and afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mpn.engines.spec import Role
from mpn.runtime.adapt_options import AdaptScope


@dataclass(frozen=True)
class AdaptProgress:
    """One step of fine-tuning was done.

    Attributes:
        object_id: The object that is learned.
        role: The network that learns it.
        step: Steps done, from 1.
        steps: Steps there will be at most.
        loss: Of this step, before its update.
        elapsed_s: Seconds since the first step began.
        eta_s: Seconds that are left, by the mean step so far and the budget.
    """

    object_id: int
    role: Role
    step: int
    steps: int
    loss: float
    elapsed_s: float
    eta_s: float


@dataclass(frozen=True)
class AdaptReport:
    """What became of one object and network.

    Attributes:
        object_id: The object.
        role: The network.
        scope: See :data:`mpn.runtime.adapt_options.AdaptScope`.
        is_adapted: False: the network is used as it was exported.
        is_cached: The weights come from an earlier run; ``seconds`` is then 0.
        steps: Steps that are in the weights.
        seconds: Wall time of the steps.
        first_loss: Mean loss of the first eight steps; NaN if none ran.
        last_loss: Mean loss of the last eight.
        note: What the user should know; often empty.
    """

    object_id: int
    role: Role
    scope: AdaptScope
    is_adapted: bool
    is_cached: bool = False
    steps: int = 0
    seconds: float = 0.0
    first_loss: float = math.nan
    last_loss: float = math.nan
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """A dict of JSON types; a loss that there is not is null."""
        return {
            "object_id": self.object_id,
            "role": self.role,
            "scope": self.scope,
            "adapted": self.is_adapted,
            "cached": self.is_cached,
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "first_loss": _finite(self.first_loss),
            "last_loss": _finite(self.last_loss),
            "note": self.note,
        }


def _finite(loss: float) -> float | None:
    return round(loss, 6) if math.isfinite(loss) else None
