"""The update of an adaptation step, as ONNX nodes: SGD with momentum, and AdamW."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mpn.engines.adapt_entry import ADAPT_OPTIMIZERS, AdaptOptimizer
from mpn.engines.spec import Role
from mpn.errors import InputError
from mpn.export.autodiff import GraphBuilder

SGD_STATE = ("momentum",)
ADAMW_STATE = ("exp_avg", "exp_avg_sq")
STEP = "step"
"""AdamW's number of steps done, float32, for its bias correction."""

NEXT = "next"


@dataclass(frozen=True)
class TensorGroup:
    """How one tensor is updated.

    Attributes:
        learning_rate_factor: Times the learning rate given at run time.
        weight_decay: L2 for SGD; decoupled, times the learning rate, for AdamW.
    """

    learning_rate_factor: float = 1.0
    weight_decay: float = 0.0


@dataclass(frozen=True)
class OptimizerSettings:
    """An optimiser with all its numbers, which the export bakes into the graph.

    Attributes:
        name: ``"sgd"`` or ``"adamw"``.
        momentum: Of SGD.
        betas: Decay of AdamW's two averages.
        epsilon: Of AdamW's denominator.
        group: Tensor's name -> how it is updated.
    """

    name: AdaptOptimizer
    group: Callable[[str], TensorGroup]
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    @property
    def state(self) -> tuple[str, ...]:
        """Names of the state tensors that each weight has, all of its shape, all 0 at first."""
        return SGD_STATE if self.name == "sgd" else ADAMW_STATE

    def as_json(self) -> dict[str, Any]:
        """What the manifest says of it."""
        if self.name == "sgd":
            return {"name": self.name, "momentum": self.momentum}
        return {"name": self.name, "betas": list(self.betas), "epsilon": self.epsilon}


DEFAULT_OPTIMIZERS: Mapping[Role, AdaptOptimizer] = {"propagation": "adamw", "osvos": "sgd"}
"""OSVOS as its authors fine-tune it; AdamW for the propagation network, whose layers differ more in
the scale of their gradients."""


def optimizer_settings(role: Role, name: str | None = None) -> OptimizerSettings:
    """The optimiser of a role with its groups.

    OSVOS (models.md 3.3; S. Caelles et al., CVPR 2017, and their public code): weight decay 2e-4 on
    weights and none on biases, biases at twice the learning rate, the fusion at a hundredth. The
    propagation network: the same decay, one learning rate for all.

    Args:
        role: ``"propagation"`` or ``"osvos"``.
        name: One of the optimisers; None for the role's default.

    Raises:
        InputError: If there is no such optimiser.
    """
    wanted = DEFAULT_OPTIMIZERS.get(role) if name is None else name
    for known in ADAPT_OPTIMIZERS:
        if wanted == known:
            return OptimizerSettings(known, _GROUPS.get(role, _plain_group))
    raise InputError(
        f"unknown optimiser '{name}': the optimisers are {', '.join(ADAPT_OPTIMIZERS)}"
    )


def append_update(
    builder: GraphBuilder, settings: OptimizerSettings, gradients: Mapping[str, str]
) -> list[str]:
    """Append the update of every trained tensor.

    The graph then needs, besides the tensors, their states ``<name>::<state>``, ``learning_rate``
    and, for AdamW, ``step``.

    Args:
        builder: Takes the nodes.
        settings: The optimiser.
        gradients: Tensor -> name of its gradient.

    Returns:
        The names of the outputs made: ``<name>::next`` and ``<name>::<state>::next`` in the order
        of the tensors, and ``step::next`` last.
    """
    if settings.name == "sgd":
        return _append_sgd(builder, settings, gradients)
    return _append_adamw(builder, settings, gradients)


def next_name(name: str) -> str:
    """The output that holds a tensor after the step."""
    return f"{name}::{NEXT}"


def state_name(name: str, state: str) -> str:
    """The input that holds a state of a tensor."""
    return f"{name}::{state}"


def _append_sgd(
    builder: GraphBuilder, settings: OptimizerSettings, gradients: Mapping[str, str]
) -> list[str]:
    """As torch.optim.SGD: d = g + decay w, m' = momentum m + d, w' = w - rate m'."""
    op, momentum = builder.op, builder.scalar(settings.momentum)
    outputs = []
    for name, gradient in gradients.items():
        group = settings.group(name)
        change = gradient
        if group.weight_decay:
            change = op("Add", gradient, op("Mul", name, builder.scalar(group.weight_decay)))
        state = state_name(name, "momentum")
        averaged = op("Add", op("Mul", state, momentum), change, output=next_name(state))
        step = op("Mul", averaged, _rate(builder, group))
        outputs += [op("Sub", name, step, output=next_name(name)), averaged]
    return outputs


def _append_adamw(
    builder: GraphBuilder, settings: OptimizerSettings, gradients: Mapping[str, str]
) -> list[str]:
    """I. Loshchilov and F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2.

    w' = w (1 - rate decay) - rate / (1 - b1^t) m' / (sqrt(v' / (1 - b2^t)) + epsilon), as
    torch.optim.AdamW does it.
    """
    op, scalar = builder.op, builder.scalar
    one = scalar(1.0)
    step = op("Add", STEP, one, output=next_name(STEP))
    corrections = [op("Sub", one, op("Pow", scalar(beta), step)) for beta in settings.betas]
    sharper = op("Div", one, op("Sqrt", corrections[1]))
    outputs = []
    for name, gradient in gradients.items():
        group = settings.group(name)
        averages = []
        for state, beta, value in zip(
            ADAMW_STATE, settings.betas, (gradient, op("Mul", gradient, gradient)), strict=True
        ):
            before = state_name(name, state)
            kept, new = op("Mul", before, scalar(beta)), op("Mul", value, scalar(1.0 - beta))
            averages.append(op("Add", kept, new, output=next_name(before)))
        root = op("Mul", op("Sqrt", averages[1]), sharper)
        direction = op("Div", averages[0], op("Add", root, scalar(settings.epsilon)))
        rate = _rate(builder, group)
        change = op("Mul", direction, builder.once("Div", rate, corrections[0]))
        start = name
        if group.weight_decay:
            decay = builder.once("Mul", rate, scalar(group.weight_decay))
            start = op("Mul", name, builder.once("Sub", one, decay))
        outputs += [op("Sub", start, change, output=next_name(name)), *averages]
    return [*outputs, step]


def _rate(builder: GraphBuilder, group: TensorGroup) -> str:
    if group.learning_rate_factor == 1.0:
        return "learning_rate"
    return builder.once("Mul", "learning_rate", builder.scalar(group.learning_rate_factor))


def _osvos_group(name: str) -> TensorGroup:
    rate = 0.01 if name.startswith("fuse.") else 1.0
    if name.endswith(".bias"):
        return TensorGroup(2.0 * rate)
    return TensorGroup(rate, _WEIGHT_DECAY)


def _plain_group(name: str) -> TensorGroup:
    return TensorGroup(weight_decay=_WEIGHT_DECAY if name.endswith(".weight") else 0.0)


_WEIGHT_DECAY = 2e-4
_GROUPS: Mapping[Role, Callable[[str], TensorGroup]] = {"osvos": _osvos_group}
