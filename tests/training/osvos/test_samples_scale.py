from __future__ import annotations

import pytest
import torch

from mpn.errors import InputError
from mpn.networks.osvos import OsvosConfig, OsvosVgg
from mpn.training.osvos.samples import init_weights, weights_for_larger_input
from tests.tolerances import PARITY_RELATIVE

FORMS = [OsvosConfig(width=0.0625), OsvosConfig(4, "deconv_center_crop", width=0.0625)]


def _network(config: OsvosConfig) -> OsvosVgg:
    torch.manual_seed(0)
    network = OsvosVgg(config)
    init_weights(network)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    return network


@pytest.mark.parametrize("config", FORMS, ids=["resize", "deconv"])
def test_scaled_inputs_give_the_same_output(config: OsvosConfig) -> None:
    network = _network(config)
    larger = OsvosVgg(config)
    larger.load_state_dict(weights_for_larger_input(network.state_dict(), 64.0))
    image = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        expected, answers = network(image), larger(64 * image)
        unchanged = network(64 * image)
    for a, b, c in zip(expected, answers, unchanged, strict=True):
        assert (a - b).abs().max() <= PARITY_RELATIVE * a.abs().max()
        assert (a - c).abs().max() > a.abs().max()  # control: it does take other weights


def test_there_is_a_way_back() -> None:
    state = _network(FORMS[0]).state_dict()
    back = weights_for_larger_input(weights_for_larger_input(state, 64.0), 1 / 64)
    assert all(torch.equal(back[k], v) for k, v in state.items())  # 64 is a power of two


def test_no_factor_makes_inputs_vanish() -> None:
    with pytest.raises(InputError, match="by a factor above 0 only, got 0"):
        weights_for_larger_input({}, 0)


def test_random_weights_keep_the_size_of_features() -> None:
    torch.manual_seed(0)
    network = OsvosVgg(OsvosConfig(width=0.25))
    init_weights(network)
    with torch.no_grad():
        features = torch.randn(1, 3, 64, 64)
        for stage in network.stages:
            features = stage(features)
            # pooling takes maxima, so features grow a little; torch's own start shrinks them
            assert 0.3 < float(features.square().mean().sqrt()) < 10
        default = OsvosVgg(OsvosConfig(width=0.25))
        features = torch.randn(1, 3, 64, 64)
        for stage in default.stages:
            features = stage(features)
    assert float(features.square().mean().sqrt()) < 0.1  # control
