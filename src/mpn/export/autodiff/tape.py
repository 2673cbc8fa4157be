"""What a rule sees of the forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpn.errors import ExportError
from mpn.export.autodiff.builder import GraphBuilder


@dataclass(frozen=True)
class Tape:
    """The builder of the backward pass, and what a gradient is wanted for.

    Attributes:
        builder: Takes the nodes of the backward pass.
        active: Tensors that depend on what is trained.
        constants: Values of small constants of the forward pass.
    """

    builder: GraphBuilder
    active: frozenset[str]
    constants: Mapping[str, npt.NDArray[np.generic]]

    def wants(self, name: str) -> bool:
        """Whether the gradient of this tensor is needed."""
        return name in self.active

    def integers(self, name: str) -> tuple[int, ...]:
        """A constant vector of integers.

        Raises:
            ExportError: If it is computed at run time.
        """
        if name not in self.constants:
            raise ExportError(f"'{name}' is computed at run time where a constant is needed")
        return tuple(int(value) for value in np.ravel(self.constants[name]))
