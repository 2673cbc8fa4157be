from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from mpn.engines.directory.entries import FINETUNE_OPTIMIZERS
from mpn.engines.spec import Role
from mpn.errors import InputError
from mpn.export.autodiff import GraphBuilder
from mpn.export.finetune.optimizer import (
    OptimizerSettings,
    TensorGroup,
    append_update,
    optimizer_settings,
    state_name,
)
from mpn.types import Float32Array
from tests.tolerances import UPDATES_RELATIVE

SHAPES: Mapping[str, tuple[int, ...]] = {
    "stages.0.0.weight": (4, 3, 3, 3),
    "stages.0.0.bias": (4,),
    "side_prep.0.weight": (2, 4, 1, 1),
    "side_prep.0.bias": (2,),
    "fuse.weight": (1, 2, 1, 1),
    "fuse.bias": (1,),
}
RATE = 0.05
STEPS = 12


class _Graph:
    """The update alone, its gradients as inputs."""

    def __init__(self, settings: OptimizerSettings) -> None:
        builder = GraphBuilder(SHAPES)
        gradients = {name: f"grad/{name}" for name in SHAPES}
        self.outputs = append_update(builder, settings, gradients)
        self.state: dict[str, Float32Array] = {}
        for name, shape in SHAPES.items():
            self.state[name] = _values(name, shape, 0)
            for state in settings.state:
                self.state[state_name(name, state)] = np.zeros(shape, np.float32)
        if settings.name == "adamw":
            self.state["step"] = np.zeros((), np.float32)
        sizes = {name: value.shape for name, value in self.state.items()}
        sizes |= {gradients[name]: shape for name, shape in SHAPES.items()} | {"learning_rate": ()}
        graph = helper.make_graph(
            builder.nodes,
            "update",
            [_info(name, shape) for name, shape in sizes.items()],
            [_info(name, sizes[name.removesuffix("::next")]) for name in self.outputs],
            builder.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        self._session = ort.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )

    def step(self, number: int) -> None:
        feeds = {f"grad/{name}": _values(name, shape, number) for name, shape in SHAPES.items()}
        feeds |= self.state | {"learning_rate": np.asarray(RATE, np.float32)}
        values = self._session.run(self.outputs, feeds)
        self.state = {
            name.removesuffix("::next"): value
            for name, value in zip(self.outputs, values, strict=True)
        }


def _info(name: str, shape: tuple[int, ...]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _values(name: str, shape: tuple[int, ...], number: int) -> Float32Array:
    seed = [number, *name.encode()]
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _torch_weights(settings: OptimizerSettings) -> dict[str, Float32Array]:
    """Run the same steps by torch.optim."""
    parameters = {
        name: torch.nn.Parameter(torch.tensor(_values(name, shape, 0)))
        for name, shape in SHAPES.items()
    }
    groups = [
        {
            "params": [value],
            "lr": RATE * settings.group(name).learning_rate_factor,
            "weight_decay": settings.group(name).weight_decay,
        }
        for name, value in parameters.items()
    ]
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(groups, lr=RATE, momentum=settings.momentum)
        if settings.name == "sgd"
        else torch.optim.AdamW(groups, lr=RATE, betas=settings.betas, eps=settings.epsilon)
    )
    for number in range(1, STEPS + 1):
        for name, value in parameters.items():
            value.grad = torch.tensor(_values(name, SHAPES[name], number))
        optimizer.step()
    return {name: value.detach().numpy() for name, value in parameters.items()}


def _difference(graph_settings: OptimizerSettings, torch_settings: OptimizerSettings) -> float:
    """Compute the largest relative difference over all tensors."""
    graph = _Graph(graph_settings)
    for number in range(1, STEPS + 1):
        graph.step(number)
    expected = _torch_weights(torch_settings)
    return max(
        float(np.abs(graph.state[name] - value).max() / np.abs(value).max())
        for name, value in expected.items()
    )


@pytest.mark.parametrize("role", ["propagation", "osvos"])
@pytest.mark.parametrize("name", FINETUNE_OPTIMIZERS)
def test_steps_are_those_of_torch(role: Role, name: str) -> None:
    settings = optimizer_settings(role, name)
    assert _difference(settings, settings) < UPDATES_RELATIVE


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sgd", {"momentum": 0.0}),
        ("sgd", {"group": lambda _: TensorGroup()}),
        ("adamw", {"betas": (0.9, 0.99)}),
        ("adamw", {"betas": (0.8, 0.999)}),
        ("adamw", {"epsilon": 1e-2}),
        ("adamw", {"group": lambda _: TensorGroup()}),
    ],
)
def test_other_momentum_decay_or_rate_is_detected(name: str, change: dict[str, Any]) -> None:
    settings = optimizer_settings("osvos", name)
    assert _difference(replace(settings, **change), settings) > 10 * UPDATES_RELATIVE


def test_osvos_has_the_published_groups() -> None:
    group = optimizer_settings("osvos").group
    assert group("stages.2.1.weight") == TensorGroup(1.0, 2e-4)
    assert group("stages.2.1.bias") == TensorGroup(2.0, 0.0)
    assert group("fuse.weight") == TensorGroup(0.01, 2e-4)
    assert group("fuse.bias") == TensorGroup(0.02, 0.0)


def test_each_role_has_its_own_optimizer_unless_one_is_named() -> None:
    assert optimizer_settings("osvos").name == "sgd"
    assert optimizer_settings("propagation").name == "adamw"
    assert optimizer_settings("propagation", "sgd").name == "sgd"
    with pytest.raises(InputError, match="unknown optimiser 'lion': the optimisers are sgd, adamw"):
        optimizer_settings("osvos", "lion")


def test_outputs_come_in_the_order_of_the_tensors() -> None:
    outputs = append_update(
        GraphBuilder(SHAPES),
        optimizer_settings("osvos", "adamw"),
        {name: f"grad/{name}" for name in SHAPES},
    )
    assert outputs[:3] == [
        "stages.0.0.weight::next",
        "stages.0.0.weight::exp_avg::next",
        "stages.0.0.weight::exp_avg_sq::next",
    ]
    assert outputs[-1] == "step::next"
    assert len(outputs) == 3 * len(SHAPES) + 1
