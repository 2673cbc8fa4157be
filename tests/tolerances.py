"""Every tolerance of the suite, with its reason. Tests import from here, none is written in place."""

from __future__ import annotations

PARITY_RELATIVE = 1e-4
"""Of the tensor's largest magnitude, between two float32 computations of one network: the bound of
the golden cases. The same weights in torch differ by 5e-6, summation order being all that changes."""
