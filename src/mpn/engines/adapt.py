"""Fine-tuning on the given frame without torch: the protocol, and the way to it from a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mpn._common.closeable import SupportsClose
from mpn.engines.adapt_entry import AdaptEntry, AdaptScope
from mpn.engines.files import check_digest
from mpn.engines.manifest import Manifest
from mpn.engines.ort import OrtBackend
from mpn.engines.spec import Role
from mpn.errors import EngineError
from mpn.types import Float32Array


@dataclass(frozen=True)
class Features:
    """What a frozen trunk made of a batch of inputs; only the engine that made it can use it.

    Attributes:
        arrays: By name in the graph, the batch along axis 0.
    """

    arrays: Mapping[str, Float32Array]

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(array.nbytes for array in self.arrays.values())


class AdaptEngine(SupportsClose, Protocol):
    """One step of fine-tuning after another; weights and optimiser state stay inside."""

    @property
    def role(self) -> Role:
        """The network that is trained."""

    @property
    def optimizer(self) -> str:
        """``"sgd"`` or ``"adamw"``, as exported."""

    @property
    def scope(self) -> AdaptScope:
        """What is trained."""

    def begin(self, weights: Mapping[str, Float32Array] | None = None) -> None:
        """Start anew, with a fresh optimiser state.

        Args:
            weights: Every weight that the scope trains, by name; None for the directory's own.

        Raises:
            EngineError: If a weight is missing, unknown, not finite or of another shape.
        """

    def step(
        self, inputs: Float32Array | Features, target: Float32Array, learning_rate: float
    ) -> float:
        """Do one step.

        Args:
            inputs: (N, C, H, W) float32, the network's input, or the features of it.
            target: (N, 1, H, W) float32 of 0 and 1.
            learning_rate: 0 or more.

        Returns:
            The loss before the step. If it is not finite, the step is not taken:
            :meth:`weights` gives the last weights whose loss was finite, and only :meth:`begin`
            can follow.

        Raises:
            EngineError: If an array does not fit or is not finite, :meth:`begin` is due, or the
                engine is closed or fails.
        """

    def features(self, inputs: Float32Array) -> Features:
        """What :meth:`step` takes in place of ``inputs``, made once: scope ``"head"`` only.

        Raises:
            EngineError: If the scope has no frozen trunk, or the inputs do not fit.
        """

    def weights(self) -> dict[str, Float32Array]:
        """Copies of the trained tensors by name."""

    def close(self) -> None:
        """Release the engine; closing twice is allowed."""


def open_adapt_engine(
    directory: str | os.PathLike[str],
    manifest: Manifest,
    role: Role,
    *,
    scope: AdaptScope = "all",
    backend: OrtBackend = "cpu",
    threads: int | None = None,
    verify: bool = True,
) -> AdaptEngine:
    """Open what fine-tunes one network of an engine directory.

    Args:
        directory: What mpn-export wrote.
        manifest: Its manifest.
        role: ``"propagation"`` or ``"osvos"``.
        scope: What to train.
        backend: ``"cpu"`` or ``"cuda"``.
        threads: Threads within an operator; None leaves it to onnxruntime.
        verify: Compare the digests of the files with the manifest first.

    Returns:
        An engine that has begun with the directory's own weights.

    Raises:
        BackendError: If the backend cannot run here.
        EngineError: If the directory cannot adapt this role in this scope.
        InputError: If ``threads`` is under 1.
        ManifestError: If a file is missing or has changed.
        MissingExtraError: If onnxruntime is not installed.
    """
    from mpn.engines.ort_adapt import OrtAdaptEngine

    entry = adapt_entry(manifest, role)
    if scope not in entry.graphs:
        raise EngineError(
            f"the {role} engine of '{manifest.name}' cannot be fine-tuned in scope '{scope}', only "
            f"in {', '.join(entry.graphs)}"
        )
    path = Path(directory)
    if verify:
        for file in (*entry.scope_files(scope), *manifest.roles[role].external_data):
            check_digest(path, file)
    return OrtAdaptEngine(path, role, entry, scope=scope, backend=backend, threads=threads)


def adapt_entry(manifest: Manifest, role: Role) -> AdaptEntry:
    """How a role can be fine-tuned.

    Raises:
        EngineError: If the directory has no such role, or it cannot be.
    """
    found = manifest.roles.get(role)
    if found is None:
        raise EngineError(f"'{manifest.name}' has no {role} engine: export one too")
    if found.adapt is None:
        raise EngineError(
            f"the {role} engine of '{manifest.name}' was exported without its fine-tuning step: "
            "export it again without --no-adapt"
        )
    return found.adapt
