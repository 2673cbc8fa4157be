from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mpn.errors import CheckpointError, InputError
from mpn.networks.deeplab import FIRST_LAYER, DeepLabConfig, DeepLabXception, with_fourth_channel
from tests.networks.seeded import DEEPLAB_GAIN, seeded, seeded_state_dict

COLOUR = DeepLabConfig(in_channels=3, width=0.125, head_width=0.125, middle_blocks=1)
FOUR = DeepLabConfig(width=0.125, head_width=0.125, middle_blocks=1)


@pytest.fixture(scope="module")
def colour_state() -> dict[str, Tensor]:
    return seeded_state_dict(DeepLabXception(COLOUR), DEEPLAB_GAIN)


@torch.inference_mode()
def test_fourth_channel_zero_keeps_colour_network(
    colour_state: dict[str, Tensor],
) -> None:
    three = seeded(DeepLabXception(COLOUR), DEEPLAB_GAIN)
    four = DeepLabXception(FOUR).eval()
    four.load_state_dict(with_fourth_channel(colour_state, "zero"), strict=True)
    rgb = torch.rand((1, 3, 33, 33))
    for probability in (torch.zeros((1, 1, 33, 33)), torch.ones((1, 1, 33, 33))):
        logits = four(torch.cat((rgb, probability), dim=1))
        torch.testing.assert_close(logits, three(rgb))


def test_fourth_channel_mean_and_normal_values(
    colour_state: dict[str, Tensor],
) -> None:
    colours = colour_state[FIRST_LAYER]
    mean = with_fourth_channel(colour_state, "mean")[FIRST_LAYER]
    assert torch.equal(mean[:, :3], colours)
    torch.testing.assert_close(mean[:, 3], colours.sum(dim=1) / 3)
    normal = with_fourth_channel(colour_state, "normal")[FIRST_LAYER]
    assert torch.equal(normal, with_fourth_channel(colour_state, "normal")[FIRST_LAYER])
    assert 0.5e-4 < normal[:, 3].std().item() < 2e-4


def test_unknown_ways_and_other_layers_are_refused(colour_state: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match="there are zero, mean, normal"):
        with_fourth_channel(colour_state, "ones")
    four = with_fourth_channel(colour_state, "zero")
    with pytest.raises(CheckpointError, match=r"\(C, 3, 3, 3\) to be extended, got \(8, 4, 3, 3\)"):
        with_fourth_channel(four, "zero")
    with pytest.raises(CheckpointError, match="got None"):
        with_fourth_channel({}, "zero")
