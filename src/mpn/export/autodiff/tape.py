"""Context of the derivative rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpn.errors import ExportError
from mpn.export.autodiff.builder import GraphBuilder


@dataclass(frozen=True)
class Tape:
    """Builder of the backward pass, and the tensors that need a gradient.

    Attributes:
        builder: Builder of the backward pass.
        active: Tensors that depend on trained ones.
        constants: Values of small constants of the forward pass.
    """

    builder: GraphBuilder
    active: frozenset[str]
    constants: Mapping[str, npt.NDArray[np.generic]]

    def needs_gradient(self, name: str) -> bool:
        """Return whether a tensor needs a gradient."""
        return name in self.active

    def integers(self, name: str) -> tuple[int, ...]:
        """Return a constant vector of integers.

        Raises:
            ExportError: If it is computed at run time.
        """
        if name not in self.constants:
            raise ExportError(f"'{name}' is computed at run time, but must be a constant")
        return tuple(int(value) for value in np.ravel(self.constants[name]))
