"""Parity of a written fine-tuning step with PyTorch's autograd and optimiser."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpn.engines.directory.entries import FinetuneScope
from mpn.engines.onnxruntime.finetune import OrtFinetuneEngine
from mpn.engines.spec import Role
from mpn.engines.weights import read_weights
from mpn.errors import EngineError, ExportError
from mpn.export.finetune.optimizer import BALANCED_ROLES, OptimizerSettings
from mpn.export.finetune.trace import MarginGraph
from mpn.export.finetune.write import WrittenFinetune
from mpn.export.graph import input_channels
from mpn.export.parity import CaseParity, Limit, Measure
from mpn.types import Float32Array

STEP_SHAPE = (2, 81, 97)
"""Images, height and width; the sides differ, so that swapped axes are found."""

_EXAMPLES = 3
"""Examples to try until both sides agree. A unit near the kink of its ReLU may be active on one
side only, which changes whole tensors' gradients by 1e-2 in some examples. A wrong derivative is
wrong in all."""
_LEARNING_RATE = 1e-2
_CLEAR = 1e-2
"""Smallest gradient to compare, relative to a tensor's largest: AdamW's first step is the sign of
each gradient, and the order of summation may flip the sign of a smaller one."""

LOSS_LIMIT = Limit(
    "loss_abs",
    1e-4,
    "of the loss: two float32 computations of one network",
)
GRADIENT_LIMIT = Limit(
    "gradient_relative",
    1e-3,
    "of the largest gradient of a tensor, the worst tensor: sums over all pixels of all images in "
    "another order, through a whole network; 2e-6 measured in the lite networks and 2e-5 in "
    "paper-size ones, a wrong derivative is off by 1e-1 and more",
)
UPDATE_LIMIT = Limit(
    "update_relative",
    1e-2,
    "of the largest change of a tensor by one step, where its gradient is clear, beyond the "
    "rounding of the weight itself",
)


@dataclass(frozen=True)
class StepExample:
    """Inputs of one step.

    Attributes:
        inputs: (N, C, H, W) float32, the network's input.
        target: (N, 1, H, W) float32 of 0 and 1.
    """

    inputs: Float32Array
    target: Float32Array


def verify_step(
    role: Role, written: WrittenFinetune, folder: Path, scope: FinetuneScope
) -> CaseParity:
    """Compare one step in onnxruntime with the same step in PyTorch.

    Args:
        role: The network.
        written: Result of :func:`mpn.export.finetune.write.write_adapt`.
        folder: Folder of its files.
        scope: Trained part of the network.

    Raises:
        ExportError: If they differ; the message lists all differences.
    """
    # Read all of the directory's weights: half precision has rounded those of the trunk too.
    own = read_weights(folder, written.entry.tensors)
    channels = input_channels(role, written.network)
    failures: list[str] = []
    try:
        with OrtFinetuneEngine(folder, role, written.entry, scope=scope) as engine:
            for seed in range(_EXAMPLES):
                example = step_example(role, seed=seed, channels=channels)
                measures, loss = _compared(engine, written, own, example)
                failures = [str(measure) for measure in measures if not measure.is_within]
                if not failures:
                    name = f"one step of fine-tuning, scope {scope}"
                    return CaseParity(name, measures, reference_range=(0.0, loss))
    except EngineError as error:
        raise ExportError(f"the {role} step of scope '{scope}' does not run: {error}") from error
    raise ExportError(
        f"the {role} step of scope '{scope}' differs from PyTorch's: {'; '.join(failures)}: "
        "this is a fault of the exporter, use --no-finetune"
    )


def _compared(
    engine: OrtFinetuneEngine,
    written: WrittenFinetune,
    own: Mapping[str, Float32Array],
    example: StepExample,
) -> tuple[tuple[Measure, ...], float]:
    """Run one step on both sides; return the differences and PyTorch's loss."""
    engine.begin()
    before = engine.weights()
    loss = engine.step(example.inputs, example.target, _LEARNING_RATE)
    after, state = engine.weights(), engine.state()
    reference = TorchStep(
        engine.role, written.network, written.settings, own, trained=tuple(before)
    )
    expected_loss = reference.step(example, _LEARNING_RATE)
    moment = written.settings.state[0]
    gradients, updates = [0.0], [0.0]
    for name, expected in reference.weights().items():
        gradient = reference.state(name, moment)
        gradients.append(_relative(state[f"{name}::{moment}"], gradient))
        clear = np.abs(gradient) >= _CLEAR * np.abs(gradient).max()
        change = np.abs(expected - before[name])[clear]
        error = np.abs(after[name] - expected) - 2 * np.spacing(np.abs(expected))
        largest = float(change.max(initial=0.0))
        updates.append(float(error[clear].max(initial=0.0)) / max(largest, 1e-30))
    measures = (
        Measure(LOSS_LIMIT, abs(loss - expected_loss)),
        # Unlike Python's, numpy's maximum returns NaN if any value is NaN.
        Measure(GRADIENT_LIMIT, float(np.max(gradients))),
        Measure(UPDATE_LIMIT, float(np.max(updates))),
    )
    return measures, expected_loss


class TorchStep:
    """Reference of the graphs: the same step by PyTorch's autograd and optimisers.

    Args:
        role: The network.
        network: Folded, float32; it is not changed.
        settings: The optimiser.
        weights: Initial values by name; other weights keep theirs.
        trained: Names of the trained tensors; None for all of ``weights``.
        memory_format: Memory format of the computation, which affects speed only.
    """

    def __init__(
        self,
        role: Role,
        network: nn.Module,
        settings: OptimizerSettings,
        weights: Mapping[str, Float32Array],
        *,
        trained: Sequence[str] | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self._is_balanced = role in BALANCED_ROLES
        network = copy.deepcopy(network).requires_grad_(False)
        self._graph = MarginGraph(role, network)
        parameters = dict(network.named_parameters())
        for name, values in weights.items():
            parameters[name].data = torch.tensor(values)
        network.to(memory_format=memory_format)  # type: ignore[call-overload]
        self._memory_format = memory_format
        self._trained = {
            name: parameters[name].requires_grad_(True)
            for name in (weights if trained is None else trained)
        }
        groups = [
            {
                "params": [value],
                "weight_decay": settings.group(name).weight_decay,
                "factor": settings.group(name).learning_rate_factor,
            }
            for name, value in self._trained.items()
        ]
        self._optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum)
            if settings.name == "sgd"
            else torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.epsilon)
        )

    def step(self, example: StepExample, learning_rate: float) -> float:
        """Run one step and return the loss before it."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["factor"]
        self._optimizer.zero_grad(set_to_none=True)
        inputs = torch.from_numpy(example.inputs).contiguous(memory_format=self._memory_format)
        margin = self._graph(inputs)
        loss = step_loss(margin, torch.from_numpy(example.target), self._is_balanced)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return float(loss.detach())

    def weights(self) -> dict[str, Float32Array]:
        """Copy the trained tensors."""
        return {name: value.detach().numpy().copy() for name, value in self._trained.items()}

    def prob(self, inputs: Float32Array) -> Float32Array:
        """Compute the foreground probability (N, 1, H, W) with the present weights."""
        with torch.inference_mode():
            prob: Tensor = self._graph(torch.from_numpy(inputs)).sigmoid()
        return prob.numpy()

    def state(self, name: str, state: str) -> Float32Array:
        """Return a state of the optimiser, by its name in the graphs."""
        key = "momentum_buffer" if state == "momentum" else state
        value: Tensor = self._optimizer.state[self._trained[name]][key]
        return value.detach().numpy()


def step_loss(margin: Tensor, target: Tensor, is_balanced: bool) -> Tensor:
    """Compute the loss of ``optimizer.cross_entropy`` in PyTorch."""
    inside = (target >= 0.5).float()
    entropy = F.binary_cross_entropy_with_logits(margin, inside, reduction="none")
    if not is_balanced:
        return entropy.mean()
    share = inside.mean(dim=(1, 2, 3), keepdim=True)
    weights = inside * (1 - share) + (1 - inside) * share
    return (weights * entropy).mean()


def step_example(
    role: Role,
    shape: tuple[int, int, int] = STEP_SHAPE,
    seed: int = 0,
    channels: int | None = None,
) -> StepExample:
    """Make a disc on noise, with values of real network inputs.

    Args:
        role: The network.
        shape: Images, height, width.
        seed: Seed of the noise.
        channels: Channels of the network's input; None for the usual ones.
    """
    images, height, width = shape
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - 0.5 * height, columns - 0.45 * width)
    disc = (distance < 0.3 * min(height, width)).astype(np.float32)
    target = np.repeat(disc[None, None], images, axis=0)
    channels = input_channels(role) if channels is None else channels
    noise = rng.standard_normal((images, channels, height, width), np.float32)
    inputs = noise + target
    if role == "propagation":
        soft = np.clip(1.5 - distance / (0.3 * min(height, width)), 0.0, 1.0)
        inputs[:, 3:] = soft
    else:
        inputs *= np.float32(50.0)
    return StepExample(np.ascontiguousarray(inputs, np.float32), target)


def _relative(got: Float32Array, expected: Float32Array) -> float:
    largest = float(np.abs(expected).max(initial=0.0))
    return float(np.abs(got - expected).max(initial=0.0)) / max(largest, 1e-30)
