"""The comparison of a step with PyTorch at the graph's activation pattern."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.accuracy.planted import PLANTED, Planted, grouped, scaled
from mpn.engines.spec import Role
from mpn.errors import ExportError
from mpn.export.finetune.graph_step import GraphStep
from mpn.export.finetune.optimizer import optimizer_settings
from mpn.export.finetune.parity import GRADIENT_LIMIT, step_measures
from mpn.export.finetune.pattern import GivenPattern
from mpn.export.finetune.step import FinetuneGraph, adapt_graph
from mpn.export.finetune.torch_step import TorchStep, step_example
from mpn.export.finetune.trace import ForwardGraph
from mpn.export.parity import Measure
from mpn.types import Float32Array

Forwards = Callable[[Role], ForwardGraph]
Networks = Mapping[Role, nn.Module]

PLANTED_IN_OSVOS = {
    "pooling halved": Planted("MaxPool", scaled(0.5, 0), nth=2),
    "momentum of 0.8": Planted(settings=lambda settings: replace(settings, momentum=0.8)),
    "one learning rate": Planted(settings=grouped(learning_rate_factor=1.0)),
}
"""OSVOS has max pooling, and SGD with groups."""


def _measures(
    role: Role, network: nn.Module, graph: FinetuneGraph, weights: Mapping[str, Float32Array]
) -> tuple[tuple[Measure, ...], GraphStep, TorchStep]:
    settings = optimizer_settings(role)
    reference = TorchStep(role, network, settings, weights, trained=graph.trained)
    step = GraphStep(graph, weights, threads=1)
    return step_measures(role, step, reference, settings)[0], step, reference


@pytest.mark.parametrize("role", ["propagation", "osvos"])
def test_right_graph_is_far_from_each_limit(
    forwards: Forwards, adapt_networks: Networks, role: Role
) -> None:
    forward = forwards(role)
    graph = adapt_graph(forward, optimizer_settings(role))
    measures, _, _ = _measures(role, adapt_networks[role], graph, forward.weights)
    assert max(measure.used for measure in measures) < 0.1


@pytest.mark.parametrize(
    ("role", "planted"),
    [
        *(pytest.param("propagation", each, id=name) for name, each in PLANTED.items()),
        *(pytest.param("osvos", each, id=f"osvos {n}") for n, each in PLANTED_IN_OSVOS.items()),
    ],
)
def test_planted_error_is_found(
    forwards: Forwards, adapt_networks: Networks, role: Role, planted: Planted
) -> None:
    forward = forwards(role)
    graph = planted.graph(forward, optimizer_settings(role))
    measures, _, _ = _measures(role, adapt_networks[role], graph, forward.weights)
    assert max(measure.used for measure in measures) > 10


def _with_units_on_the_brink(weights: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
    """Make one channel of OSVOS the difference of two equal ones: 0, up to rounding."""
    found = {name: values.copy() for name, values in weights.items()}
    for name in ("stages.0.0.weight", "stages.0.0.bias"):
        found[name][1] = found[name][0]
    kernel = found["stages.0.2.weight"]
    kernel[0, 2:] = 0.0
    kernel[0, 1] = -kernel[0, 0]
    found["stages.0.2.bias"][0] = 0.0
    return found


def test_units_on_the_brink_of_their_relu_are_no_fault(
    forwards: Forwards, adapt_networks: Networks
) -> None:
    """Each side has its own active ones; those of the graph count."""
    role: Role = "osvos"
    forward, network = forwards(role), adapt_networks[role]
    weights = _with_units_on_the_brink(forward.weights)
    graph = adapt_graph(forward, optimizer_settings(role))
    measures, step, reference = _measures(role, network, graph, weights)
    assert max(measure.used for measure in measures) < 0.1
    # Control: at PyTorch's own pattern the gradient is another one.
    example, pattern = step_example(role, seed=1), GivenPattern(step.pattern)
    _, given = reference.gradients(example, pattern)
    assert pattern.flipped > 0
    _, own = reference.gradients(example)
    name = "stages.0.2.weight"
    change = np.abs(given[name] - own[name]).max() / np.abs(given[name]).max()
    assert change > 3 * GRADIENT_LIMIT.value


def _gradient(
    function: Callable[[torch.Tensor], torch.Tensor], values: Float32Array, *, given: Float32Array
) -> Float32Array:
    leaf = torch.tensor(values, requires_grad=True)
    with GivenPattern([given]):
        result = function(leaf)
    result.backward(torch.arange(1.0, 1 + result.numel()).reshape(result.shape))
    assert leaf.grad is not None
    return leaf.grad.numpy()


@pytest.mark.parametrize(
    ("function", "given", "expected"),
    [
        (F.relu, [0.0, 1e-6, 6.0, 7.0], [0.0, 2.0, 3.0, 4.0]),
        (nn.ReLU(inplace=False), [0.0, 1e-6, 6.0, 7.0], [0.0, 2.0, 3.0, 4.0]),
        (F.relu6, [0.0, 1e-6, 6.0, 5.9], [0.0, 2.0, 0.0, 4.0]),
        (nn.ReLU6(), [0.0, 1e-6, 6.0, 5.9], [0.0, 2.0, 0.0, 4.0]),
        (nn.MaxPool2d(2), [0.0, 9.0, 8.0, 7.0], [0.0, 1.0, 0.0, 0.0]),
    ],
)
def test_pattern_gives_the_derivative(
    function: Callable[[torch.Tensor], torch.Tensor], given: list[float], expected: list[float]
) -> None:
    """The values are close to the kinks: PyTorch alone would take other sides."""
    values = np.float32([1e-6, -1e-6, 5.9999995, 6.0000005]).reshape(1, 1, 2, 2)
    near = np.float32(given).reshape(1, 1, 2, 2)
    gradient = _gradient(function, values, given=near)
    np.testing.assert_array_equal(gradient.ravel(), expected)
    # Control: the given values are of another pattern.
    assert not np.array_equal(_gradient(function, values, given=values).ravel(), expected)


def test_pattern_of_another_network_is_refused() -> None:
    value = torch.ones(1, 2, 3, 3, requires_grad=True)
    right = np.ones((1, 2, 3, 3), np.float32)
    with GivenPattern([right]) as pattern:
        F.relu(value)
        F.relu(value.detach())  # needs no gradient
        pattern.check_complete()
        with pytest.raises(ExportError, match="PyTorch has more such layers, the graph 1"):
            F.relu(value)
    unused = GivenPattern([right])
    with pytest.raises(ExportError, match="PyTorch has 0 such layers, the graph 1"):
        unused.check_complete()
    with GivenPattern([right[:, :1]]), pytest.raises(ExportError, match=r"the shape \(1, 2, 3, 3"):
        F.relu(value)


def test_units_far_from_their_kink_are_a_fault() -> None:
    value = torch.tensor([[[[-2.0, 4.0]]]], requires_grad=True)
    with GivenPattern([np.float32([[[[1e-9, 4.0]]]])]) as pattern:
        F.relu(value)
    assert (pattern.flipped, pattern.distance) == (1, 0.5)
