"""Parity of a written fine-tuning step with PyTorch's autograd and optimiser."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from mpn.engines.directory.entries import FinetuneScope
from mpn.engines.onnxruntime.finetune import OrtFinetuneEngine
from mpn.engines.spec import Role
from mpn.engines.weights import read_weights
from mpn.errors import EngineError, ExportError
from mpn.export.finetune.graph_step import GraphStep
from mpn.export.finetune.optimizer import OptimizerSettings, state_name
from mpn.export.finetune.pattern import GivenPattern
from mpn.export.finetune.step import FinetuneGraph
from mpn.export.finetune.torch_step import (
    FloatArray,
    TorchStep,
    step_example,
    torch_update,
)
from mpn.export.finetune.write import WrittenFinetune
from mpn.export.graph import input_channels
from mpn.export.parity import CaseParity, Limit, Measure

STEP_RATES = (0.0, 1.0)
"""Learning rates of the compared steps, each on another example. The first fills the optimiser's
state. The second has a rate at which the rounding of the weights does not hide their change."""

_SAMPLE = 4096
"""Number of elements per tensor whose update is compared: it is the same formula for each."""
_SMALLEST_CHANGE = 1e-3
"""Smallest change, over the largest of its tensor, that an error is related to. Relative to its own
change, each value shows a wrong weight decay, which is 1e-4 of the largest change."""
_TINY = 1e-30
"""Lower bound of divisors, for an all-zero tensor."""

LOSS_LIMIT = Limit(
    "loss_abs",
    1e-4,
    "of the loss: two float32 computations of one network",
)
PATTERN_LIMIT = Limit(
    "pattern_relative",
    1e-4,
    "of the largest value of a layer, how far from its kink a unit is that is active on one side "
    "only: rounding; 8e-7 measured in the paper-size DeepLab",
)
GRADIENT_LIMIT = Limit(
    "gradient_relative",
    1e-3,
    "of the largest gradient of a tensor, the worst tensor, at one activation pattern: sums over "
    "all pixels of all images in another order, through a whole network; 1e-5 measured in the "
    "paper-size DeepLab, 8e-5 in a lite OSVOS; a wrong derivative is off by 5e-2 and more",
)
UPDATE_LIMIT = Limit(
    "update_relative",
    1e-3,
    "of the change of each weight by the graph's own gradient, beyond the rounding of the weight: "
    "1e-5 measured, of AdamW's bias correction in float32; a wrong rate or decay is off by 2e-1",
)


def verify_step(
    role: Role, written: WrittenFinetune, folder: Path, scope: FinetuneScope
) -> CaseParity:
    """Compare two steps in onnxruntime with the same steps in PyTorch.

    Args:
        role: The network.
        written: Result of :func:`mpn.export.finetune.write.write_adapt`.
        folder: Folder of its files.
        scope: Trained part of the network.

    Raises:
        ExportError: If they differ; the message lists all differences.
    """
    # Read all of the directory's weights: half precision has rounded those of the trunk too.
    weights = read_weights(folder, written.entry.tensors)
    trained = tuple(tensor.name for tensor in written.entry.trained(scope))
    channels = input_channels(role, written.network)
    what = f"the {role} step of scope '{scope}'"
    try:
        with OrtFinetuneEngine(folder, role, written.entry, scope=scope) as engine:
            example = step_example(role, channels=channels)
            loss = engine.step(example.inputs, example.target, STEP_RATES[0])
        features = written.entry.features.get(scope)
        graph = FinetuneGraph(
            scope=scope,
            model=onnx.load(folder / written.entry.graphs[scope].path),
            features=None if features is None else onnx.load(folder / features.path),
            trained=trained,
        )
        reference = TorchStep(role, written.network, written.settings, weights, trained=trained)
        (of_loss, *others), expected = step_measures(
            role, GraphStep(graph, weights), reference, written.settings, channels=channels
        )
    except EngineError as error:
        raise ExportError(f"{what} does not run: {error}") from error
    worst = float(np.max([of_loss.value, abs(loss - expected)]))
    measures = (Measure(LOSS_LIMIT, worst), *others)
    failures = [str(measure) for measure in measures if not measure.is_within]
    if failures:
        raise ExportError(
            f"{what} differs from PyTorch's: {'; '.join(failures)}, a fault of the exporter"
        )
    name = f"two steps of fine-tuning, scope {scope}"
    return CaseParity(name, measures, reference_range=(0.0, expected))


def step_measures(
    role: Role,
    graph: GraphStep,
    reference: TorchStep,
    settings: OptimizerSettings,
    *,
    channels: int | None = None,
) -> tuple[tuple[Measure, ...], float]:
    """Compare the steps of a graph with PyTorch.

    The gradient, which the optimiser's state gives, is compared at the graph's activation pattern.
    The update is compared with the one that PyTorch makes of the graph's own gradient.

    Args:
        role: The network.
        graph: The graph before its first step.
        reference: The same weights in PyTorch.
        settings: The optimiser.
        channels: Channels of the network's input; None for the usual ones.

    Returns:
        The measures, each the worst over steps and tensors, and PyTorch's first loss.

    Raises:
        ExportError: If the layers of graph and network differ.
    """
    losses, patterns, gradients, updates, expected_losses = [], [], [], [], []
    for number, rate in enumerate(STEP_RATES):
        example = step_example(role, seed=number, channels=channels)
        before = graph.state
        loss = graph.step(example, rate)
        pattern = GivenPattern(graph.pattern)
        expected_loss, expected = reference.gradients(example, pattern)
        losses.append(abs(loss - expected_loss))
        expected_losses.append(expected_loss)
        patterns.append(pattern.distance)
        for name, gradient in expected.items():
            tensor = _Tensor(settings, name, before, graph.state)
            gradients.append(_relative(tensor.gradient() - gradient, gradient))
            if rate:
                updates.append(_update_error(tensor.sample(), rate, steps_before=number))
    # Unlike Python's, numpy's maximum returns NaN if any value is NaN.
    worst = [float(np.max(values)) for values in (losses, patterns, gradients, updates)]
    limits = (LOSS_LIMIT, PATTERN_LIMIT, GRADIENT_LIMIT, UPDATE_LIMIT)
    return tuple(map(Measure, limits, worst)), expected_losses[0]


class _Tensor:
    """A trained tensor and its states before and after a step.

    Args:
        settings: The optimiser.
        name: Name of the tensor.
        before: Tensors and states by name before the step.
        after: The same after it.
    """

    def __init__(
        self,
        settings: OptimizerSettings,
        name: str,
        before: Mapping[str, FloatArray],
        after: Mapping[str, FloatArray],
    ) -> None:
        self.settings = settings
        self.name = name
        self.old, self.new = before[name], after[name]
        keys = {state: state_name(name, state) for state in settings.state}
        self.old_states = {state: before[key] for state, key in keys.items()}
        self.new_states = {state: after[key] for state, key in keys.items()}

    def gradient(self) -> FloatArray:
        """Compute the gradient that changed the first state."""
        state = self.settings.state[0]
        old, new = self.old_states[state], self.new_states[state]
        if self.settings.name == "adamw":
            kept = self.settings.betas[0]
            return np.asarray((new - kept * old) / (1.0 - kept))
        decay = self.settings.group(self.name).weight_decay
        return np.asarray(new - self.settings.momentum * old - decay * self.old)

    def sample(self) -> _Tensor:
        """Return evenly spaced elements in float64."""

        def some(values: FloatArray) -> FloatArray:
            flat = values.ravel()
            return flat[:: -(-flat.size // _SAMPLE)].astype(np.float64)

        found = copy.copy(self)
        found.old, found.new = some(self.old), some(self.new)
        found.old_states = {state: some(values) for state, values in self.old_states.items()}
        found.new_states = {state: some(values) for state, values in self.new_states.items()}
        return found


def _update_error(tensor: _Tensor, rate: float, *, steps_before: int) -> float:
    """Compute the largest relative error of a tensor's change and of its new states."""
    weight, states = torch_update(
        tensor.settings,
        tensor.name,
        tensor.old,
        tensor.old_states,
        tensor.gradient(),
        rate,
        steps_before,
    )
    errors = [
        _relative(tensor.new_states[state] - expected, expected)
        for state, expected in states.items()
    ]
    change = np.abs(weight - tensor.old)
    magnitude = np.maximum(np.abs(tensor.old), np.abs(tensor.new))
    rounding = 2 * np.spacing(magnitude.astype(np.float32))
    error = np.maximum(np.abs(tensor.new - weight) - rounding, 0.0)
    smallest = max(_SMALLEST_CHANGE * float(change.max(initial=0.0)), _TINY)
    errors.append(float((error / np.maximum(change, smallest)).max(initial=0.0)))
    return float(np.max(errors))


def _relative(error: FloatArray, scale: FloatArray) -> float:
    largest = float(np.abs(scale).max(initial=0.0))
    return float(np.abs(error).max(initial=0.0)) / max(largest, _TINY)
