"""Reference of the fine-tuning step: PyTorch's autograd and optimisers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpn.engines.spec import Role
from mpn.export.finetune.optimizer import BALANCED_ROLES, OptimizerSettings
from mpn.export.finetune.pattern import GivenPattern
from mpn.export.finetune.trace import MarginGraph
from mpn.export.graph import input_channels
from mpn.types import Float32Array

FloatArray = npt.NDArray[np.floating]
Float64Array = npt.NDArray[np.float64]

STEP_SHAPE = (2, 81, 97)
"""Images, height and width; the sides differ, so that swapped axes are found."""

_BUFFERS = {"momentum": "momentum_buffer"}
"""Names of PyTorch for the states of the graphs, if they differ."""


@dataclass(frozen=True)
class StepExample:
    """Inputs of one step.

    Attributes:
        inputs: (N, C, H, W) float32, the network's input.
        target: (N, 1, H, W) float32 of 0 and 1.
    """

    inputs: Float32Array
    target: Float32Array


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
        self._optimizer = _torch_optimizer(settings, self._trained)

    def step(self, example: StepExample, learning_rate: float) -> float:
        """Run one step and return the loss before it."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["factor"]
        loss = self._loss(example)
        self._optimizer.step()
        return loss

    def gradients(
        self, example: StepExample, pattern: GivenPattern | None = None
    ) -> tuple[float, dict[str, Float32Array]]:
        """Compute the loss and the gradient of each trained tensor; no weight changes.

        Args:
            example: The inputs.
            pattern: Activation pattern of the gradient; None for PyTorch's own.

        Raises:
            ExportError: If the pattern is not of this network.
        """
        loss = self._loss(example, pattern)
        if pattern is not None:
            pattern.check_complete()
        found = {}
        for name, value in self._trained.items():
            found[name] = (
                np.zeros(value.shape, np.float32)
                if value.grad is None
                else (value.grad.numpy().copy())
            )
        return loss, found

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
        value: Tensor = self._optimizer.state[self._trained[name]][_BUFFERS.get(state, state)]
        return value.detach().numpy()

    def _loss(self, example: StepExample, pattern: GivenPattern | None = None) -> float:
        """Compute the loss and leave the gradients in the tensors."""
        self._optimizer.zero_grad(set_to_none=True)
        inputs = torch.from_numpy(example.inputs).contiguous(memory_format=self._memory_format)
        if pattern is None:
            margin = self._graph(inputs)
        else:
            with pattern:
                margin = self._graph(inputs)
        loss = step_loss(margin, torch.from_numpy(example.target), self._is_balanced)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())


def torch_update(
    settings: OptimizerSettings,
    name: str,
    weight: FloatArray,
    states: Mapping[str, FloatArray],
    gradient: FloatArray,
    learning_rate: float,
    steps_before: int,
) -> tuple[Float64Array, dict[str, Float64Array]]:
    """Update one tensor in float64.

    Args:
        settings: The optimiser.
        name: Name of the tensor.
        weight: The tensor.
        states: Its states.
        gradient: Its gradient.
        learning_rate: Learning rate of the step, without the factor of the tensor.
        steps_before: Number of steps that made the states.

    Returns:
        The new tensor and its new states.
    """
    parameter = torch.tensor(weight, dtype=torch.float64, requires_grad=True)
    optimizer = _torch_optimizer(settings, {name: parameter})
    group = optimizer.param_groups[0]
    group["lr"] = learning_rate * group["factor"]
    state = {
        _BUFFERS.get(key, key): torch.tensor(value, dtype=torch.float64)
        for key, value in states.items()
    }
    optimizer.state[parameter] = state
    if settings.name == "adamw":
        state["step"] = torch.tensor(float(steps_before))
    parameter.grad = torch.tensor(gradient, dtype=torch.float64)
    optimizer.step()
    after = {key: state[_BUFFERS.get(key, key)].numpy() for key in states}
    return parameter.detach().numpy(), after


def _torch_optimizer(
    settings: OptimizerSettings, tensors: Mapping[str, Tensor]
) -> torch.optim.Optimizer:
    groups = [
        {
            "params": [value],
            "weight_decay": settings.group(name).weight_decay,
            "factor": settings.group(name).learning_rate_factor,
        }
        for name, value in tensors.items()
    ]
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.epsilon)


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
