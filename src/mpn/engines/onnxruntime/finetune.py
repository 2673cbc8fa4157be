"""Fine-tuning steps without torch: the protocol, and its onnxruntime engine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mpn._common.closeable import Closeable, SupportsClose
from mpn._common.text import one_line
from mpn.engines.directory.entries import FinetuneEntry, FinetuneScope
from mpn.engines.directory.files import check_digest, resolve_inside
from mpn.engines.directory.manifest import Manifest
from mpn.engines.onnxruntime.engine import (
    OrtBackend,
    check_not_out_of_memory,
    import_onnxruntime,
    open_session,
)
from mpn.engines.spec import Role
from mpn.engines.weights import check_weights, read_weights
from mpn.errors import EngineError
from mpn.types import Float32Array

LOSS = "loss"
TARGET = "target"
LEARNING_RATE = "learning_rate"
STEP = "step"
_NEXT = "::next"
_FREE_INPUTS = frozenset({TARGET, LEARNING_RATE, STEP})

_WEIGHT_SETS = 3
"""Weights before the last step, before this step and after it. If the loss of this step is not
finite, the weights before it caused that, and those before the last step are good."""
_STATE_SETS = 2


class OrtFinetuneEngine(Closeable):
    """Implement :class:`FinetuneEngine` by onnxruntime.

    Args:
        directory: The engine directory.
        role: The network.
        entry: The role's fine-tuning entry in the manifest.
        scope: The trained part of the network; ``entry`` has its graph.
        backend: ``"cpu"`` or ``"cuda"``.
        threads: Threads per operator; None for onnxruntime's default.

    Raises:
        BackendError: If another backend than the requested one would run.
        EngineError: If the graph is missing, damaged, or not the one of the manifest.
        InputError: If ``threads`` is under 1.
        MissingExtraError: If onnxruntime is not installed.
    """

    def __init__(
        self,
        directory: Path,
        role: Role,
        entry: FinetuneEntry,
        *,
        scope: FinetuneScope = "all",
        backend: OrtBackend = "cpu",
        threads: int | None = None,
    ) -> None:
        self._directory = directory
        self._role = role
        self._entry = entry
        self._scope = scope
        self._device: OrtBackend = backend
        self._ort = import_onnxruntime(backend)
        path = resolve_inside(directory, entry.graphs[scope].path)
        self._session: Any = open_session(path, backend, threads)
        features = entry.features.get(scope)
        self._feature_session: Any = (
            None
            if features is None
            else open_session(resolve_inside(directory, features.path), backend, threads)
        )
        self._weights = {tensor.name: tensor for tensor in entry.tensors}
        self._trained = {tensor.name: tensor for tensor in entry.trained(scope)}
        self._inputs = self._checked_inputs(path)
        self._data = tuple(
            name
            for name in self._inputs
            if name not in _FREE_INPUTS and "::" not in name and name not in self._weights
        )
        self._frozen: dict[str, Any] = {}
        self._sets: list[dict[str, Any]] = []
        self._states: list[dict[str, Any]] = []
        self._done = 0
        self._failed = False
        self.begin()

    def __repr__(self) -> str:
        state = "closed" if self._session is None else f"{self._done} steps done"
        return f"OrtFinetuneEngine({self._role}, {self._scope}, {self.optimizer}, {state})"

    @property
    def role(self) -> Role:
        """The network that is trained."""
        return self._role

    @property
    def optimizer(self) -> str:
        """``"sgd"`` or ``"adamw"``, as exported."""
        return self._entry.optimizer

    @property
    def scope(self) -> FinetuneScope:
        """Trained part of the network."""
        return self._scope

    def begin(self, weights: Mapping[str, Float32Array] | None = None) -> None:
        """Restart, see :meth:`FinetuneEngine.begin`."""
        self._check_open()
        tensors = tuple(self._trained.values())
        if weights is None:
            weights = read_weights(self._directory, tensors)
        check_weights(tensors, weights, complete=True)
        if not self._sets:
            self._allocate()
        for name in self._trained:
            self._sets[0][name].update_inplace(np.ascontiguousarray(weights[name]))
        for name, value in self._states[0].items():
            value.update_inplace(np.zeros(self._state_shape(name), np.float32))
        self._done = 0
        self._failed = False

    def step(self, inputs: Float32Array, target: Float32Array, learning_rate: float) -> float:
        """Do one step, see :meth:`FinetuneEngine.step`."""
        self._check_open()
        if self._failed:
            raise EngineError(
                f"the {self._role} network's loss was not finite: begin again, with a smaller "
                "learning rate"
            )
        feeds = self._checked_feeds(inputs, target, learning_rate)
        binding = self._binding(feeds)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            check_not_out_of_memory(error, f"fine-tuning the {self._role} network", self._device)
            raise EngineError(
                f"fine-tuning the {self._role} network failed on {self._device}: {one_line(error)}"
            ) from error
        loss = float(binding.get_outputs()[0].numpy())
        if np.isfinite(loss):
            self._done += 1
        else:
            self._failed = True
        return loss

    def _features(self, inputs: Float32Array) -> dict[str, Float32Array]:
        """Run the frozen trunk of scope ``"head"``; outputs by name in the graph."""
        names = [node.name for node in self._feature_session.get_outputs()]
        binding = self._feature_session.io_binding()
        try:
            for node in self._feature_session.get_inputs():
                is_weight = node.name in self._weights
                value = self._frozen_value(node.name) if is_weight else self._value(inputs)
                binding.bind_ortvalue_input(node.name, value)
            for name in names:
                binding.bind_output(name, "cpu")
            self._feature_session.run_with_iobinding(binding)
        except Exception as error:
            check_not_out_of_memory(error, f"fine-tuning the {self._role} network", self._device)
            raise EngineError(
                f"the frozen trunk of the {self._role} network failed: {one_line(error)}"
            ) from error
        outputs = binding.copy_outputs_to_cpu()
        return dict(zip(names, outputs, strict=True))

    def weights(self) -> dict[str, Float32Array]:
        """Copy the trained tensors by name, with their values after the last step.

        If its loss or a tensor is not finite, copy the last ones with a finite loss.
        """
        self._check_open()
        newest = self._done - 1 if self._failed else self._done
        for index in (newest, newest - 1):
            found = {
                name: np.array(value.numpy(), np.float32)
                for name, value in self._sets[max(index, 0) % _WEIGHT_SETS].items()
            }
            if index <= 0 or all(np.isfinite(value).all() for value in found.values()):
                break
        return found

    def state(self) -> dict[str, Float32Array]:
        """Copy the optimiser's state by name, after the last step."""
        self._check_open()
        states = self._states[self._done % _STATE_SETS]
        return {name: np.array(value.numpy(), np.float32) for name, value in states.items()}

    def close(self) -> None:
        """Release session and state."""
        self._session = self._feature_session = None
        self._sets, self._states, self._frozen = [], [], {}

    def _binding(self, feeds: Mapping[str, Float32Array]) -> Any:
        before, after = self._done % _WEIGHT_SETS, (self._done + 1) % _WEIGHT_SETS
        state, next_state = self._done % _STATE_SETS, (self._done + 1) % _STATE_SETS
        binding = self._session.io_binding()
        binding.bind_output(LOSS, "cpu")
        for name in self._inputs:
            if name in feeds:
                binding.bind_ortvalue_input(name, self._value(feeds[name]))
            elif name in self._trained:
                binding.bind_ortvalue_input(name, self._sets[before][name])
                binding.bind_ortvalue_output(name + _NEXT, self._sets[after][name])
            elif name in self._states[0]:
                binding.bind_ortvalue_input(name, self._states[state][name])
                binding.bind_ortvalue_output(name + _NEXT, self._states[next_state][name])
            else:
                binding.bind_ortvalue_input(name, self._frozen_value(name))
        return binding

    def _allocate(self) -> None:
        def empty(shape: tuple[int, ...]) -> Any:
            return self._value(np.zeros(shape, np.float32))

        self._sets = [
            {name: empty(tensor.shape) for name, tensor in self._trained.items()}
            for _ in range(_WEIGHT_SETS)
        ]
        names = [name for name in self._inputs if name == STEP or "::" in name]
        self._states = [
            {name: empty(self._state_shape(name)) for name in names} for _ in range(_STATE_SETS)
        ]

    def _state_shape(self, name: str) -> tuple[int, ...]:
        return () if name == STEP else self._trained[name.rpartition("::")[0]].shape

    def _frozen_value(self, name: str) -> Any:
        """Return a weight that this scope does not train; read it once."""
        if name not in self._frozen:
            values = read_weights(self._directory, (self._weights[name],))
            self._frozen[name] = self._value(values[name])
        return self._frozen[name]

    def _value(self, array: Float32Array) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device, 0)

    def _checked_inputs(self, path: Path) -> tuple[str, ...]:
        """Return the names of the graph's inputs, checked against the manifest."""
        inputs = tuple(node.name for node in self._session.get_inputs())
        outputs = {node.name for node in self._session.get_outputs()}
        carried = set(self._trained) | {
            f"{name}::{state}" for name in self._trained for state in self._entry.state
        }
        carried |= {STEP} & set(inputs)
        wanted = carried | {TARGET, LEARNING_RATE}
        if not wanted <= set(inputs) or outputs != {LOSS} | {name + _NEXT for name in carried}:
            raise EngineError(
                f"{path.name} is not the fine-tuning graph of this manifest: export it again"
            )
        return inputs

    def _checked_feeds(
        self, inputs: Float32Array, target: Float32Array, learning_rate: float
    ) -> dict[str, Float32Array]:
        _check_array("target", target, 4)
        if target.shape[1] != 1 or target.min() < 0 or target.max() > 1:
            raise EngineError(f"the target must be (N, 1, H, W) of 0..1, got {target.shape}")
        if not (np.isfinite(learning_rate) and learning_rate >= 0):
            raise EngineError(f"the learning rate must be 0 or more, got {learning_rate}")
        feeds = {TARGET: target, LEARNING_RATE: np.asarray(learning_rate, np.float32)}
        _check_array("inputs", inputs, 4)
        if (inputs.shape[0], *inputs.shape[2:]) != (target.shape[0], *target.shape[2:]):
            raise EngineError(
                f"inputs {inputs.shape} and target {target.shape} differ in images, height or width"
            )
        arrays = (
            {self._data[0]: inputs} if self._feature_session is None else self._features(inputs)
        )
        return {**feeds, **arrays}

    def _check_open(self) -> None:
        if self._session is None:
            raise EngineError(f"the fine-tuning of the {self._role} network is closed")


def _check_array(what: str, array: Float32Array, axes: int) -> None:
    if array.ndim != axes or array.dtype != np.float32 or array.size == 0:
        raise EngineError(
            f"{what} must be float32 with {axes} axes, got {array.dtype} {array.shape}"
        )
    if not np.isfinite(array).all():
        raise EngineError(f"{what} must be finite, got NaN or infinity: check the frame and mask")


class FinetuneEngine(SupportsClose, Protocol):
    """Protocol of an engine that fine-tunes; it holds weights and optimiser state."""

    @property
    def role(self) -> Role:
        """The network that is trained."""

    @property
    def optimizer(self) -> str:
        """``"sgd"`` or ``"adamw"``, as exported."""

    @property
    def scope(self) -> FinetuneScope:
        """Trained part of the network."""

    def begin(self, weights: Mapping[str, Float32Array] | None = None) -> None:
        """Restart with given weights and an empty optimiser state.

        Args:
            weights: Each weight that the scope trains, by name; None for the directory's weights.

        Raises:
            EngineError: If a weight is missing, unknown, not finite or of another shape.
        """

    def step(self, inputs: Float32Array, target: Float32Array, learning_rate: float) -> float:
        """Do one step.

        Args:
            inputs: (N, C, H, W) float32, the network's input.
            target: (N, 1, H, W) float32 of 0 and 1.
            learning_rate: 0 or more.

        Returns:
            The loss before the step. If it is not finite, the step is dropped: :meth:`weights`
            returns the last weights with a finite loss, and :meth:`begin` must come next.

        Raises:
            EngineError: If an array does not fit or is not finite, :meth:`begin` must come
                first, or the engine is closed or fails.
        """

    def weights(self) -> dict[str, Float32Array]:
        """Copy the trained tensors by name."""

    def close(self) -> None:
        """Release the engine; closing twice is allowed."""


def open_finetune_engine(
    directory: str | os.PathLike[str],
    manifest: Manifest,
    role: Role,
    *,
    scope: FinetuneScope = "all",
    backend: OrtBackend = "cpu",
    threads: int | None = None,
    verify: bool = True,
) -> FinetuneEngine:
    """Open the fine-tuning engine of one network of an engine directory.

    Args:
        directory: Engine directory.
        manifest: Its manifest.
        role: ``"propagation"`` or ``"osvos"``.
        scope: Trained part of the network.
        backend: ``"cpu"`` or ``"cuda"``.
        threads: Threads per operator; None for onnxruntime's default.
        verify: Compare the digests of the files with the manifest first.

    Returns:
        An engine that starts from the directory's weights.

    Raises:
        BackendError: If the backend cannot run here.
        EngineError: If the directory cannot fine-tune this role in this scope.
        InputError: If ``threads`` is under 1.
        ManifestError: If a file is missing or has changed.
        MissingExtraError: If onnxruntime is not installed.
    """
    from mpn.engines.onnxruntime.finetune import OrtFinetuneEngine

    entry = finetune_entry(manifest, role)
    if scope not in entry.graphs:
        raise EngineError(
            f"the {role} engine of '{manifest.name}' cannot be fine-tuned in scope '{scope}', only "
            f"in {', '.join(entry.graphs)}"
        )
    path = Path(directory)
    if verify:
        for file in (*entry.scope_files(scope), *manifest.roles[role].external_data):
            check_digest(path, file)
    return OrtFinetuneEngine(path, role, entry, scope=scope, backend=backend, threads=threads)


def finetune_entry(manifest: Manifest, role: Role) -> FinetuneEntry:
    """Return the fine-tuning entry of a role.

    Raises:
        EngineError: If the directory has no such role, or the role no such entry.
    """
    found = manifest.roles.get(role)
    if found is None:
        raise EngineError(f"'{manifest.name}' has no {role} engine: export one too")
    if found.adapt is None:
        raise EngineError(
            f"the {role} engine of '{manifest.name}' was exported without its fine-tuning step: "
            "export it again with --finetune"
        )
    return found.adapt
