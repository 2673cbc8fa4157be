"""What a network answers must be numbers: one that are not would stay in every later frame."""

from __future__ import annotations

import numpy as np

from mpn.errors import EngineError
from mpn.types import Float32Array


def check_finite(prob: Float32Array, role: str, object_id: int | None = None) -> None:
    """Raise EngineError if a value is not finite.

    Args:
        prob: What an engine answered; any shape, float32.
        role: Whose it is, for the message.
        object_id: The object whose own engine it is; None for a common one.
    """
    # The sum is finite only if every term is: one pass without a temporary.
    if not np.isfinite(prob.sum(dtype=np.float64)):
        raise not_finite_error(role, object_id)


def not_finite_error(role: str, object_id: int | None = None) -> EngineError:
    """What to raise of a network that answered with a value that is not finite."""
    if object_id is None:
        return EngineError(
            f"the {role} engine answered with values that are not finite: its weights or its "
            "precision are broken, export it again in fp32"
        )
    return EngineError(
        f"the {role} engine that was fine-tuned on object {object_id} answered with values that "
        "are not finite: fine-tune with a lower rate or another seed, or not at all"
    )
