"""Weight update of a fine-tuning step, as ONNX nodes: SGD and AdamW."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import onnx

from mpn.engines.directory.entries import FINETUNE_OPTIMIZERS, FinetuneOptimizer
from mpn.engines.spec import Role
from mpn.errors import InputError
from mpn.export.autodiff import GraphBuilder

SGD_STATE = ("momentum",)
ADAMW_STATE = ("exp_avg", "exp_avg_sq")
STEP = "step"
"""Name of AdamW's count of steps, float32, for its bias correction."""

NEXT = "next"


@dataclass(frozen=True)
class TensorGroup:
    """Update parameters of one tensor.

    Attributes:
        learning_rate_factor: Factor of the learning rate given at run time.
        weight_decay: L2 for SGD; decoupled, times the learning rate, for AdamW.
    """

    learning_rate_factor: float = 1.0
    weight_decay: float = 0.0


@dataclass(frozen=True)
class OptimizerSettings:
    """Optimiser with all its numbers, which the export writes into the graph.

    Attributes:
        name: ``"sgd"`` or ``"adamw"``.
        momentum: Momentum of SGD.
        betas: Decay of AdamW's two averages.
        epsilon: Epsilon of AdamW's denominator.
        group: Returns the update parameters of a tensor by name.
    """

    name: FinetuneOptimizer
    group: Callable[[str], TensorGroup]
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    @property
    def state(self) -> tuple[str, ...]:
        """Names of the state tensors per weight, all of its shape and initially 0."""
        return SGD_STATE if self.name == "sgd" else ADAMW_STATE

    def as_json(self) -> dict[str, Any]:
        """Return its numbers for the manifest."""
        if self.name == "sgd":
            return {"momentum": self.momentum}
        return {"betas": list(self.betas), "epsilon": self.epsilon}


DEFAULT_OPTIMIZERS: Mapping[Role, FinetuneOptimizer] = {"propagation": "adamw", "osvos": "sgd"}
"""SGD for OSVOS, as its authors fine-tune it; AdamW for the propagation network, whose layers
differ more in the scale of their gradients."""


def optimizer_settings(role: Role, name: str | None = None) -> OptimizerSettings:
    """Return the optimiser of a role with its groups.

    OSVOS (S. Caelles et al., CVPR 2017, and their public code): weight decay 2e-4 on weights and
    none on biases, biases at twice the learning rate, the fusion at a hundredth. The propagation
    network: the same decay, one learning rate for all.

    Args:
        role: ``"propagation"`` or ``"osvos"``.
        name: One of the optimisers; None for the role's default.

    Raises:
        InputError: If there is no such optimiser.
    """
    chosen = DEFAULT_OPTIMIZERS.get(role) if name is None else name
    for known in FINETUNE_OPTIMIZERS:
        if chosen == known:
            return OptimizerSettings(known, _GROUPS.get(role, _plain_group))
    raise InputError(
        f"unknown optimiser '{name}': the optimisers are {', '.join(FINETUNE_OPTIMIZERS)}"
    )


def append_update(
    builder: GraphBuilder, settings: OptimizerSettings, gradients: Mapping[str, str]
) -> list[str]:
    """Append the update of every trained tensor.

    The graph then needs, besides the tensors, their states ``<name>::<state>``, ``learning_rate``
    and, for AdamW, ``step``. Biases are updated together, as one long vector: there are many, and
    each is so short that starting a node takes longer than running it.

    Args:
        builder: Graph to append to.
        settings: The optimiser.
        gradients: Tensor -> name of its gradient.

    Returns:
        The names of the new outputs: ``<name>::next`` and ``<name>::<state>::next`` in the order of
        the tensors, and ``step::next`` last.
    """
    rule = _Sgd(builder, settings) if settings.name == "sgd" else _AdamW(builder, settings)
    vectors: dict[TensorGroup, list[str]] = {}
    outputs = []
    for name, gradient in gradients.items():
        group, shape = settings.group(name), builder.shape(name)
        states = [state_name(name, state) for state in settings.state]
        outputs += [next_name(each) for each in (name, *states)]
        if len(shape) == 1:
            vectors.setdefault(group, []).append(name)
        else:
            finals = [next_name(each) for each in (name, *states)]
            rule.update(_Tensor(name, gradient, states, group, len(shape), finals))
    for group, names in vectors.items():
        _update_together(rule, names, gradients, group)
    return [*outputs, *rule.finish()]


def next_name(name: str) -> str:
    """Return the output name of a tensor after the step."""
    return f"{name}::{NEXT}"


def state_name(name: str, state: str) -> str:
    """Return the input name of a tensor's state."""
    return f"{name}::{state}"


class _Numbers:
    """Single numbers with the rank of the other operand, all axes of size 1.

    onnxruntime's CPU kernels take 60 times as long for (512, 384, 1, 1) times () as times (1, 1, 1,
    1).
    """

    def __init__(self, builder: GraphBuilder) -> None:
        self._builder = builder

    def constant(self, value: float, rank: int) -> str:
        """Append a constant."""
        return self._builder.scalar(value, rank)

    def shaped(self, name: str, rank: int) -> str:
        """Append the reshape of a number computed at run time, a tensor without axes."""
        return self._builder.once("Reshape", name, self._builder.ints(*[1] * rank))


class _Tensor(NamedTuple):
    """The names that the update of one tensor needs.

    Attributes:
        weight: The tensor.
        gradient: Its gradient.
        states: Its states.
        group: Its rates.
        rank: Its number of axes.
        finals: Names of the tensor and its states after the step; None: any name.
    """

    weight: str
    gradient: str
    states: Sequence[str]
    group: TensorGroup
    rank: int
    finals: Sequence[str | None]


class _Rule:
    """Arithmetic of an optimiser on one tensor."""

    def __init__(self, builder: GraphBuilder, settings: OptimizerSettings) -> None:
        self.builder = builder
        self.settings = settings
        self.numbers = _Numbers(builder)

    def update(self, tensor: _Tensor) -> list[str]:
        """Append the update; return the names of the new tensor and its states."""
        raise NotImplementedError

    def finish(self) -> list[str]:
        """Return the names of further outputs."""
        return []

    def rate(self, group: TensorGroup) -> str:
        """Return the learning rate of a group, a tensor without axes."""
        if group.learning_rate_factor == 1.0:
            return "learning_rate"
        factor = self.builder.scalar(group.learning_rate_factor)
        return self.builder.once("Mul", "learning_rate", factor)


class _Sgd(_Rule):
    """Rule of torch.optim.SGD.

    d = g + decay w, m' = momentum m + d, w' = w - rate m'.
    """

    def update(self, tensor: _Tensor) -> list[str]:
        weight, gradient, states, group, rank, finals = tensor
        op, numbers = self.builder.op, self.numbers
        change = gradient
        if group.weight_decay:
            decayed = op("Mul", weight, numbers.constant(group.weight_decay, rank))
            change = op("Add", gradient, decayed)
        kept = op("Mul", states[0], numbers.constant(self.settings.momentum, rank))
        averaged = op("Add", kept, change, output=finals[1])
        step = op("Mul", averaged, numbers.shaped(self.rate(group), rank))
        return [op("Sub", weight, step, output=finals[0]), averaged]


class _AdamW(_Rule):
    """Rule of torch.optim.AdamW.

    I. Loshchilov and F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2: w'
    = w (1 - rate decay) - rate / (1 - b1^t) m' / (sqrt(v' / (1 - b2^t)) + epsilon).
    """

    def __init__(self, builder: GraphBuilder, settings: OptimizerSettings) -> None:
        super().__init__(builder, settings)
        op, self._one = builder.op, builder.scalar(1.0)
        self._step = op("Add", STEP, self._one, output=next_name(STEP))
        first, second = (
            op("Sub", self._one, op("Pow", builder.scalar(beta), self._step))
            for beta in settings.betas
        )
        self._correction = first
        self._root_correction = op("Div", self._one, op("Sqrt", second))

    def update(self, tensor: _Tensor) -> list[str]:
        weight, gradient, states, group, rank, finals = tensor
        builder, numbers = self.builder, self.numbers
        op, once = builder.op, builder.once
        averages = []
        for state, beta, value, final in zip(
            states,
            self.settings.betas,
            (gradient, op("Mul", gradient, gradient)),
            finals[1:],
            strict=True,
        ):
            kept = op("Mul", state, numbers.constant(beta, rank))
            new = op("Mul", value, numbers.constant(1.0 - beta, rank))
            averages.append(op("Add", kept, new, output=final))
        root = op("Mul", op("Sqrt", averages[1]), numbers.shaped(self._root_correction, rank))
        safe = op("Add", root, numbers.constant(self.settings.epsilon, rank))
        rate = self.rate(group)
        corrected = numbers.shaped(once("Div", rate, self._correction), rank)
        change = op("Mul", op("Div", averages[0], safe), corrected)
        start = weight
        if group.weight_decay:
            decay = once("Mul", rate, builder.scalar(group.weight_decay))
            start = op("Mul", weight, numbers.shaped(once("Sub", self._one, decay), rank))
        return [op("Sub", start, change, output=finals[0]), *averages]

    def finish(self) -> list[str]:
        return [self._step]


def _update_together(
    rule: _Rule, names: Sequence[str], gradients: Mapping[str, str], group: TensorGroup
) -> None:
    """Update all vectors of one group as a single one, and split it."""
    builder, states = rule.builder, rule.settings.state
    sizes = [builder.shape(name)[0] or 0 for name in names]
    parts = [names, [gradients[name] for name in names]]
    parts += [[state_name(name, state) for name in names] for state in states]
    weight, gradient, *before = (builder.op("Concat", *part, axis=0) for part in parts)
    finals: list[str | None] = [None] * (1 + len(states))
    after = rule.update(_Tensor(weight, gradient, before, group, 1, finals))
    for long, part in zip(after, (parts[0], *parts[2:]), strict=True):
        builder.split(long, sizes, 0, outputs=[next_name(name) for name in part])


def _osvos_group(name: str) -> TensorGroup:
    rate = 0.01 if name.startswith("fuse.") else 1.0
    if name.endswith(".bias"):
        return TensorGroup(2.0 * rate)
    return TensorGroup(rate, _WEIGHT_DECAY)


def _plain_group(name: str) -> TensorGroup:
    return TensorGroup(weight_decay=_WEIGHT_DECAY if name.endswith(".weight") else 0.0)


_WEIGHT_DECAY = 2e-4
_GROUPS: Mapping[Role, Callable[[str], TensorGroup]] = {"osvos": _osvos_group}


_FLOAT = onnx.TensorProto.FLOAT


@dataclass(frozen=True)
class LossNodes:
    """Tensors of :func:`cross_entropy`.

    Attributes:
        loss: Name of the scalar.
        gradient: Name of its gradient with respect to the margin, of the margin's shape.
    """

    loss: str
    gradient: str


BALANCED_ROLES: frozenset[Role] = frozenset({"osvos"})
"""Roles with the balanced loss. OSVOS has it in its paper, because its object is a small part of a
whole frame. A propagation crop is cut to its object, and that network was trained on the plain
loss: the balanced one enlarges its masks (mean J of five training sequences 0.71 instead of 0.75
after 80 steps)."""


def cross_entropy(
    builder: GraphBuilder, margin: str, target: str, *, is_balanced: bool, loss: str
) -> LossNodes:
    """Append a cross-entropy over all pixels, plain or class-balanced.

    Balanced: per image, with N+ of its N pixels in the object and N- outside: N-/N times the
    cross-entropy summed over the object plus N+/N times that summed over the background, divided by
    N; then the mean over the images. This is the published loss (S. Caelles et al., "One-Shot Video
    Object Segmentation", CVPR 2017) divided by the number of pixels, so that one learning rate
    suits every size. An image without object, or without background, has loss 0 and no gradient.

    Args:
        builder: Graph to append to.
        margin: (N, 1, H, W) logits of the foreground against the background.
        target: (N, 1, H, W); a pixel of at least 0.5 belongs to the object.
        is_balanced: Give object and background the same weight, for any areas.
        loss: Name of the scalar.
    """
    op = builder.op
    inside = op("Cast", op("GreaterOrEqual", target, builder.scalar(0.5)), to=_FLOAT)
    weights = _balance(builder, inside) if is_balanced else None
    # -log of the probability of the target, in a form that cannot overflow.
    magnitude = op("Abs", margin)
    tail = op("Log", op("Add", op("Exp", op("Neg", magnitude)), builder.scalar(1.0)))
    entropy = op("Add", op("Sub", op("Relu", margin), op("Mul", margin, inside)), tail)
    weighed = entropy if weights is None else op("Mul", weights, entropy)
    op("ReduceMean", weighed, keepdims=0, output=loss)
    count = op("Cast", op("Size", margin), to=_FLOAT)
    error = op("Sub", op("Sigmoid", margin), inside)
    if weights is not None:
        error = op("Mul", error, weights)
    return LossNodes(loss, op("Div", error, count))


def _balance(builder: GraphBuilder, inside: str) -> str:
    """Append weights: 1 - share of the object inside it, its share outside."""
    op = builder.op
    share = op("ReduceMean", inside, builder.ints(1, 2, 3), keepdims=1)
    lean = op("Sub", builder.scalar(1.0), op("Add", share, share))
    return op("Add", op("Mul", inside, lean), share)
