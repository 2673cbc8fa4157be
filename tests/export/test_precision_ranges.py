from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import nn

from mpn.engines.spec import Role
from mpn.errors import ExportError
from mpn.export.graph import probe_inputs
from mpn.export.precision import activation_peak, check_activation_peak
from mpn.export.tracing import deployed


@pytest.mark.parametrize("role", ["flow", "propagation", "osvos"])
def test_ordinary_activations_fit(networks: Mapping[Role, nn.Module], role: Role) -> None:
    peak = activation_peak(deployed(role, networks[role]), probe_inputs(role))
    assert 0 < peak.magnitude < 65504
    check_activation_peak(role, peak)


@pytest.mark.parametrize(("value", "shown"), [(1e5, r"\d\.\d+e\+0[5-9]"), (float("nan"), "inf")])
def test_the_layer_that_overflows_is_named(
    networks: Mapping[Role, nn.Module], value: float, shown: str
) -> None:
    network = copy.deepcopy(networks["osvos"])
    with torch.no_grad():
        network.get_parameter("stages.1.1.bias")[:] = value
    peak = activation_peak(deployed("osvos", network), probe_inputs("osvos"))
    with pytest.raises(ExportError, match=rf"activations of '.*' reach {shown}.*fp32"):
        check_activation_peak("osvos", peak)
    if value != value:
        assert peak.layer == "stages.1.1"  # the first one, not all those that it poisons


def test_float32_values_do_not_count(networks: Mapping[Role, nn.Module]) -> None:
    network = copy.deepcopy(networks["flow"])
    with torch.no_grad():
        network.get_parameter("flownets_1.predict_flow2.bias")[:] = 1e6
    peak = activation_peak(deployed("flow", network), probe_inputs("flow"))
    assert peak.magnitude < 65504
