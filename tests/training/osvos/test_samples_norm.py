from __future__ import annotations

import torch

from mpn.networks.osvos import OsvosConfig, OsvosVgg
from mpn.training.osvos.samples import (
    folded_weights,
    has_batch_norm,
    init_weights,
    normalised_network,
)
from tests.tolerances import PARITY_RELATIVE

CONFIG = OsvosConfig(width=0.0625)


def _trained() -> OsvosVgg:
    """Make a normalised network with trained statistics and factors."""
    torch.manual_seed(0)
    network = normalised_network(CONFIG)
    init_weights(network)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    network.train()
    for _ in range(3):
        network(torch.randn(2, 3, 64, 64))
    return network.eval()


def test_folding_keeps_the_output() -> None:
    network = _trained()
    plain = OsvosVgg(CONFIG)
    plain.load_state_dict(folded_weights(network, network.state_dict()))
    image = torch.randn(1, 3, 48, 80)
    with torch.no_grad():
        expected, answer = network(image), plain(image)
        # control: without the statistics it is another network
        network.stages[2][2].running_mean += 1
        broken = network(image)
    for a, b in zip(expected, answer, strict=True):
        bound = PARITY_RELATIVE * a.abs().max()
        assert (a - b).abs().max() <= bound
    assert (broken[-1] - expected[-1]).abs().max() > 100 * bound


def test_folding_a_plain_network_keeps_its_weights() -> None:
    plain = OsvosVgg(CONFIG)
    folded = folded_weights(plain, plain.state_dict())
    assert folded.keys() == plain.state_dict().keys()
    assert all(torch.equal(folded[k], v) for k, v in plain.state_dict().items())
    assert not has_batch_norm(plain)
    assert has_batch_norm(normalised_network(CONFIG))
