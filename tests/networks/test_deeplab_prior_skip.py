from __future__ import annotations

import pytest
import torch

from mpn.errors import MpnError
from mpn.networks.propagation import PropagationConfig, PropagationNet

TINY = {"width": 0.0625, "head_width": 0.0625, "middle_blocks": 1}


def _network(**changes: object) -> PropagationNet:
    torch.manual_seed(0)
    return PropagationNet(PropagationConfig(**TINY, **changes)).eval()  # type: ignore[arg-type]


@torch.inference_mode()
def test_zero_logits_return_the_prior() -> None:
    network = _network(prior_skip=True)
    for parameter in network.decoder.last_conv[8].parameters():
        parameter.zero_()
    prob = torch.rand(2, 1, 65, 65)
    logits = network(torch.cat([torch.randn(2, 3, 65, 65), prob], dim=1))
    answer = logits.softmax(dim=1)[:, 1:]
    torch.testing.assert_close(answer, torch.sigmoid(4 * (2 * prob - 1)))
    assert torch.equal(answer > 0.5, prob > 0.5)


@torch.inference_mode()
def test_prior_skip_only_adds_to_the_logits() -> None:
    plain, skipped = _network(), _network(prior_skip=True)
    skipped.load_state_dict(plain.state_dict(), strict=False)
    crops = torch.rand(1, 4, 65, 65)
    difference = skipped(crops) - plain(crops)
    torch.testing.assert_close(difference[:, 1:], 4 * (crops[:, 3:] - 0.5))
    torch.testing.assert_close(difference[:, :1], -difference[:, 1:])
    # control: without the skip there is no such difference
    assert torch.equal(plain(crops), _network()(crops))


@torch.inference_mode()
def test_prior_and_score_have_a_gain_each() -> None:
    plain, skipped = _network(in_channels=5), _network(in_channels=5, prior_skip=True)
    skipped.load_state_dict(plain.state_dict(), strict=False)
    crops = torch.rand(1, 5, 65, 65)
    margin = (skipped(crops) - plain(crops)).diff(dim=1)
    expected = 3 * (2 * crops[:, 3:4] - 1) + 1 * (2 * crops[:, 4:] - 1)
    torch.testing.assert_close(margin, expected)


@torch.inference_mode()
@pytest.mark.parametrize("in_channels", [4, 5])
def test_margin_is_the_difference_of_the_logits(in_channels: int) -> None:
    network = _network(in_channels=in_channels, prior_skip=True)
    crops = torch.rand(2, in_channels, 65, 65)
    logits = network(crops)
    torch.testing.assert_close(network.margin(crops), logits[:, 1:] - logits[:, :1])
    # control: the parts of the margin are not negligible
    assert logits.abs().max() > 0.5


def test_prior_skip_is_not_public_and_needs_four_channels() -> None:
    assert "prior_gain" not in _network().state_dict()
    assert "prior_gain" in _network(prior_skip=True).state_dict()
    with pytest.raises(MpnError, match="prior_skip needs 4 or 5 input channels"):
        PropagationConfig(in_channels=3, prior_skip=True)
