from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from mpn.engines.directory.entries import FINETUNE_SCOPES, FinetuneOptimizer, FinetuneScope
from mpn.engines.spec import Role
from mpn.errors import ExportError, OutputError
from mpn.export.finetune.graph_step import GraphStep
from mpn.export.finetune.optimizer import OptimizerSettings, TensorGroup, optimizer_settings
from mpn.export.finetune.step import adapt_graph, save_graph, trained_names
from mpn.export.finetune.torch_step import StepExample, TorchStep, step_example
from mpn.export.finetune.trace import ForwardGraph
from tests.tolerances import ADAPT_PROB, ADAPT_WEIGHT_RELATIVE

ROLES: tuple[Role, ...] = ("propagation", "osvos")
INPUTS: Mapping[Role, str] = {"propagation": "rgb_prob", "osvos": "image"}
RATES: Mapping[tuple[Role, FinetuneOptimizer], float] = {
    ("propagation", "sgd"): 3e-2,
    ("propagation", "adamw"): 1e-3,
    ("osvos", "sgd"): 3e-3,
    ("osvos", "adamw"): 1e-3,
}
STEPS = 20
MAX_BYTES = 300_000

Forwards = Callable[[Role], ForwardGraph]


def _both(
    forward: ForwardGraph,
    network: nn.Module,
    settings: OptimizerSettings,
    *,
    scope: FinetuneScope = "all",
    graph_settings: OptimizerSettings | None = None,
    examples: Sequence[StepExample] | None = None,
    steps: int = STEPS,
) -> tuple[GraphStep, TorchStep, list[tuple[float, float]]]:
    """Run ``steps`` steps by the graph and by PyTorch; return their losses."""
    built = adapt_graph(forward, graph_settings or settings, scope)
    graph = GraphStep(built, forward.weights, threads=1)
    trained = trained_names(forward, scope)
    reference = TorchStep(forward.role, network, settings, forward.weights, trained=trained)
    rate = RATES[forward.role, settings.name]
    given = examples or [step_example(forward.role)]
    losses = []
    for number in range(steps):
        example = given[number % len(given)]
        losses.append((graph.step(example, rate), reference.step(example, rate)))
    return graph, reference, losses


def _worst(graph: GraphStep, reference: TorchStep) -> float:
    """Compute the largest weight difference relative to its tensor's largest."""
    return max(
        float(np.abs(graph.state[name] - value).max() / np.abs(value).max())
        for name, value in reference.weights().items()
    )


@pytest.mark.parametrize("role", ROLES)
def test_inputs_and_outputs_are_those_of_the_contract(forwards: Forwards, role: Role) -> None:
    forward = forwards(role)
    settings = optimizer_settings(role)
    graph = adapt_graph(forward, settings)
    inputs = {value.name: value for value in graph.model.graph.input}
    outputs = [value.name for value in graph.model.graph.output]
    assert list(inputs)[:3] == [INPUTS[role], "target", "learning_rate"]
    carried = [
        *forward.weights,
        *(f"{name}::{state}" for state in settings.state for name in forward.weights),
        *(["step"] if settings.name == "adamw" else []),
    ]
    assert set(inputs) == {INPUTS[role], "target", "learning_rate", *carried}
    assert outputs[0] == "loss"
    assert set(outputs[1:]) == {f"{name}::next" for name in carried}
    sizes = [
        size.dim_param or size.dim_value for size in inputs["target"].type.tensor_type.shape.dim
    ]
    assert sizes == ["batch", 1, "height", "width"]
    assert graph.trained == tuple(forward.weights)


@pytest.mark.parametrize("scope", FINETUNE_SCOPES)
@pytest.mark.parametrize("role", ROLES)
def test_a_graph_is_small_and_holds_no_weights(
    forwards: Forwards, role: Role, scope: FinetuneScope, tmp_path: Path
) -> None:
    graph = adapt_graph(forwards(role), optimizer_settings(role), scope)
    for model in (graph.model, graph.features):
        if model is not None:
            save_graph(model, tmp_path / "graph.onnx")
            assert (tmp_path / "graph.onnx").stat().st_size < MAX_BYTES
            sizes = [int(np.prod(tensor.dims)) for tensor in model.graph.initializer]
            assert max(sizes, default=0) < 200  # bounds, axes and parts


def test_weights_have_the_names_and_values_of_the_network(
    forwards: Forwards, adapt_networks: Mapping[Role, nn.Module]
) -> None:
    for role in ROLES:
        parameters = dict(adapt_networks[role].named_parameters())
        forward = forwards(role)
        unused = set(parameters) - set(forward.weights)
        assert all(name.startswith("score_dsn.") for name in unused)  # supervision alone
        for name, values in forward.weights.items():
            np.testing.assert_array_equal(values, parameters[name].detach().numpy())


@pytest.mark.parametrize(("role", "optimizer"), RATES)
def test_steps_are_those_of_torch(
    forwards: Forwards,
    adapt_networks: Mapping[Role, nn.Module],
    role: Role,
    optimizer: FinetuneOptimizer,
) -> None:
    settings = optimizer_settings(role, optimizer)
    examples = [step_example(role, seed=seed) for seed in range(3)]
    graph, reference, losses = _both(
        forwards(role), adapt_networks[role], settings, examples=examples
    )
    assert losses[-1][0] < 0.8 * losses[0][0]
    assert losses[-1][1] < 0.8 * losses[0][1]
    for found, expected in losses:
        assert found == pytest.approx(expected, rel=ADAPT_WEIGHT_RELATIVE[optimizer])
    assert _worst(graph, reference) < ADAPT_WEIGHT_RELATIVE[optimizer]
    # The probability that the fine-tuned weights give.
    prob = reference.prob(examples[0].inputs)
    weights = {name: graph.state[name] for name in graph.trained}
    copied = TorchStep(role, adapt_networks[role], settings, weights)
    assert np.abs(copied.prob(examples[0].inputs) - prob).max() < ADAPT_PROB[optimizer]


def _without_momentum(settings: OptimizerSettings) -> OptimizerSettings:
    return replace(settings, momentum=0.0)


def _without_groups(settings: OptimizerSettings) -> OptimizerSettings:
    return replace(settings, group=lambda _: TensorGroup(weight_decay=2e-4))


@pytest.mark.parametrize("broken", [_without_momentum, _without_groups])
def test_wrong_optimizer_is_detected(
    forwards: Forwards,
    adapt_networks: Mapping[Role, nn.Module],
    broken: Callable[[OptimizerSettings], OptimizerSettings],
) -> None:
    settings = optimizer_settings("osvos")
    graph, reference, _ = _both(
        forwards("osvos"), adapt_networks["osvos"], settings, graph_settings=broken(settings)
    )
    assert _worst(graph, reference) > 3 * ADAPT_WEIGHT_RELATIVE["sgd"]


def test_one_wrong_derivative_in_a_network_is_detected(
    forwards: Forwards, adapt_networks: Mapping[Role, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpolation of the last logits, its gradient with the wrong sign."""
    from mpn.export.autodiff import backward

    right = backward.RULES["Resize"]

    def wrong(tape: Any, node: Any, grad: str) -> Any:
        yield from ((name, tape.builder.op("Neg", part)) for name, part in right(tape, node, grad))

    monkeypatch.setattr(backward, "RULES", {**backward.RULES, "Resize": wrong})
    settings = optimizer_settings("propagation", "sgd")
    graph, reference, _ = _both(
        forwards("propagation"), adapt_networks["propagation"], settings, steps=3
    )
    assert _worst(graph, reference) > 3 * ADAPT_WEIGHT_RELATIVE["sgd"]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("shape", [(1, 65, 65), (3, 97, 49), (2, 70, 45)])
def test_batch_and_size_are_free(
    forwards: Forwards,
    adapt_networks: Mapping[Role, nn.Module],
    role: Role,
    shape: tuple[int, int, int],
) -> None:
    """OSVOS accepts any size; propagation 16 n + 1, and others like torch."""
    settings = optimizer_settings(role, "sgd")
    graph, reference, _ = _both(
        forwards(role),
        adapt_networks[role],
        settings,
        examples=[step_example(role, shape)],
        steps=2,
    )
    assert _worst(graph, reference) < ADAPT_WEIGHT_RELATIVE["sgd"]


@pytest.mark.parametrize("role", ROLES)
def test_the_head_alone_is_trained_as_torch_trains_it(
    forwards: Forwards, adapt_networks: Mapping[Role, nn.Module], role: Role
) -> None:
    settings = optimizer_settings(role, "sgd")
    forward = forwards(role)
    graph, reference, losses = _both(forward, adapt_networks[role], settings, scope="head")
    assert losses[-1][0] < losses[0][0]
    assert _worst(graph, reference) < ADAPT_WEIGHT_RELATIVE["sgd"]
    frozen = set(forward.weights) - set(trained_names(forward, "head"))
    assert frozen
    assert frozen.isdisjoint(graph.state)


@pytest.mark.parametrize("role", ROLES)
def test_head_graph_takes_features_only(forwards: Forwards, role: Role) -> None:
    forward = forwards(role)
    graph = adapt_graph(forward, optimizer_settings(role), "head")
    inputs = {value.name for value in graph.model.graph.input}
    assert forward.input_name not in inputs
    whole = adapt_graph(forward, optimizer_settings(role))
    assert len(graph.model.graph.node) < 0.6 * len(whole.model.graph.node)
    assert graph.features is not None
    made = {value.name for value in graph.features.graph.output}
    data = {name for name in inputs if "::" not in name and name not in forward.weights}
    assert data - {"target", "learning_rate", "step"} == made


def test_a_graph_that_is_not_valid_is_not_written(forwards: Forwards, tmp_path: Path) -> None:
    graph = adapt_graph(forwards("osvos"), optimizer_settings("osvos"))
    broken = copy.deepcopy(graph.model)
    del broken.graph.node[3]
    with pytest.raises(ExportError, match="is no valid graph") as info:
        save_graph(broken, tmp_path / "graph.onnx")
    assert "\n" not in str(info.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="cannot write"):
        save_graph(graph.model, tmp_path / "missing" / "graph.onnx")
