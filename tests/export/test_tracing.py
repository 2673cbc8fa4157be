from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from mpn.engines.spec import ROLES, Role
from mpn.errors import ExportError
from mpn.export.graph import probe_inputs
from mpn.export.precision import prepare_network
from mpn.export.tracing import deployed


@pytest.mark.parametrize("role", ROLES)
@torch.inference_mode()
def test_inputs_and_outputs_are_always_float32(
    networks: Mapping[Role, nn.Module], role: Role
) -> None:
    half = prepare_network(role, networks[role], "fp16", probe_inputs(role)).network
    dtypes = {value.dtype for value in half.parameters()}
    assert torch.float16 in dtypes
    assert deployed(role, half)(*probe_inputs(role)).dtype == torch.float32


@torch.inference_mode()
def test_probabilities_are_of_the_foreground(networks: Mapping[Role, nn.Module]) -> None:
    (crop,) = probe_inputs("propagation")
    logits = networks["propagation"](crop)
    prob = deployed("propagation", networks["propagation"])(crop)
    assert prob.shape == (1, 1, 65, 65)
    torch.testing.assert_close(prob, torch.sigmoid(logits[:, 1:] - logits[:, :1]))
    (image,) = probe_inputs("osvos")
    prob = deployed("osvos", networks["osvos"])(image)
    fused = networks["osvos"](image)[-1]
    torch.testing.assert_close(prob, torch.sigmoid(fused))


def test_a_deployed_network_is_in_evaluation_mode(networks: Mapping[Role, nn.Module]) -> None:
    network = networks["propagation"].train()
    try:
        module = deployed("propagation", network)
        assert not any(part.training for part in module.modules())
    finally:
        network.eval()


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ExportError, match="unknown role 'depth': the roles are flow"):
        deployed("depth", nn.Identity())  # type: ignore[arg-type]
