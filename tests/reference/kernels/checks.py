"""Reference of kernels/checks.cu: see :mod:`tests.reference.kernels`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tests.reference.kernels.boxes import Int32Array


def flag_not_finite_f32(values: npt.NDArray[Any], count: int, flag: Int32Array) -> None:
    """Set the flag to 1 if a value is not finite; keep it otherwise."""
    if not np.isfinite(values.reshape(-1)[:count]).all():
        flag[0] = 1


flag_not_finite_f16 = flag_not_finite_f32
