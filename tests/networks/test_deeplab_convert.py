from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mpn.errors import CheckpointError, InputError
from mpn.networks.propagation import (
    PropagationConfig,
    PropagationNet,
    first_layer,
    with_more_channels,
)
from tests.networks.seeded import DEEPLAB_GAIN, seeded, seeded_state_dict

COLOUR = PropagationConfig(in_channels=3, width=0.125, head_width=0.125, middle_blocks=1)
FIRST_LAYER = first_layer("xception")
FOUR = PropagationConfig(width=0.125, head_width=0.125, middle_blocks=1)


def widened(state: dict[str, Tensor], how: str, channels: int = 4) -> dict[str, Tensor]:
    return with_more_channels(state, FIRST_LAYER, channels, how)


@pytest.fixture(scope="module")
def colour_state() -> dict[str, Tensor]:
    return seeded_state_dict(PropagationNet(COLOUR), DEEPLAB_GAIN)


@torch.inference_mode()
def test_fourth_channel_zero_keeps_colour_network(
    colour_state: dict[str, Tensor],
) -> None:
    three = seeded(PropagationNet(COLOUR), DEEPLAB_GAIN)
    four = PropagationNet(FOUR).eval()
    four.load_state_dict(widened(colour_state, "zero"), strict=True)
    rgb = torch.rand((1, 3, 33, 33))
    for probability in (torch.zeros((1, 1, 33, 33)), torch.ones((1, 1, 33, 33))):
        logits = four(torch.cat((rgb, probability), dim=1))
        torch.testing.assert_close(logits, three(rgb))


def test_fourth_channel_mean_and_normal_values(
    colour_state: dict[str, Tensor],
) -> None:
    colours = colour_state[FIRST_LAYER]
    mean = widened(colour_state, "mean")[FIRST_LAYER]
    assert torch.equal(mean[:, :3], colours)
    torch.testing.assert_close(mean[:, 3], colours.sum(dim=1) / 3)
    normal = widened(colour_state, "normal")[FIRST_LAYER]
    assert torch.equal(normal, widened(colour_state, "normal")[FIRST_LAYER])
    assert 0.5e-4 < normal[:, 3].std().item() < 2e-4


@torch.inference_mode()
def test_fifth_channel_zero_keeps_the_network() -> None:
    config = replace(FOUR, prior_skip=True)
    four = seeded(PropagationNet(config), DEEPLAB_GAIN)
    five = PropagationNet(replace(config, in_channels=5)).eval()
    five.load_state_dict(widened(four.state_dict(), "zero", channels=5), strict=True)
    crop = torch.rand((1, 5, 33, 33))
    torch.testing.assert_close(five(crop), four(crop[:, :4]))
    # control: a gain of the score changes the result
    five.prior_gain.data[1] = 1.0
    assert float((five(crop) - four(crop[:, :4])).abs().max()) > 0.1


def test_unknown_ways_and_other_layers_are_refused(colour_state: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match="there are zero, mean, normal"):
        widened(colour_state, "ones")
    five = widened(colour_state, "zero", channels=5)
    with pytest.raises(CheckpointError, match=r"3 to 4 input channels, got \(8, 5, 3, 3\)"):
        widened(five, "zero")
    with pytest.raises(CheckpointError, match="got None"):
        widened({}, "zero")
